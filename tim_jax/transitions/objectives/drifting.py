"""Drifting (arXiv 2602.04770): one jump from noise makes samples, which drift to the data and away from one another.

The examples of a batch form groups of `drift.samples`, which share the condition of their first one. Their samples are
f_i = f_{T_max→T_min}(σ ε_i)/α. Around one of them lie the y_j: the other samples of its group and, with guidance, data
of all classes are negatives, and the queue of its class in the memory (`memory.py`) holds the positives. With the
distances d_ij of features, their weighted mean S over the batch and c = S/√D, every temperature R has the force

    V_i = Σ_p Σ_n A_ip A_in (y_p − y_n)/c,   A_ij = w_j √(softmax_j(−d_ij/(S R)) softmax_i(−d_ij/(S R)))

over all pairs of a positive and a negative. Samples learn where the forces, each of unit size, would bring them:

    ‖f_i/c − sg(f_i/c + Σ_R V_i/√mean V²)‖²

with c constant. So the loss says nothing of progress; the metric "force", the mean of V², does. Negatives of guidance ω
have the weight w = (ω − 1)(M − 1)/N, M samples and N of them; all others have 1.

The paper takes features of a pretrained encoder, of many places and scales; here they are the numbers of the example
(`Drifting.features`). Its networks are trained for a range of guidance scales, which is an input; here there is one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions import memory as banks
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.groups import for_each, in_groups
from tim_jax.transitions.jump import expand, jump
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.kinds import TARGET_KEYS
from tim_jax.transitions.terms.term import add_terms
from tim_jax.transitions.times import Times
from tim_jax.types import Examples, PyTree

FAR = 100.0  # is added to a sample's distance from itself
TIMES = tuple(f"times.{field.name}" for field in dataclasses.fields(Times))
REFRESH = tuple(f"objective.refresh.{field.name}" for field in dataclasses.fields(Annealing))
UNUSED = {
    (*TARGET_KEYS, *TIMES, *REFRESH): (
        "objective.name is 'drifting', which has no target F* and one jump",
        lambda c: c.objective.name == "drifting",
    ),
}


@dataclasses.dataclass(frozen=True)
class Drift:
    """Groups, queues and forces of drifting."""

    samples: int = 16  # M examples of a group, with the same condition
    queue: int = 64  # examples of each class, and of all, that are remembered
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)  # R, in units of the mean distance
    guidance: float = 1.0  # ω: above 1 samples drift away from data of all classes as well

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name, lowest in (("samples", 2), ("queue", 1), ("guidance", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"objective.drift.{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"objective.drift.temperatures is {self.temperatures}; it must have numbers above 0")


@dataclasses.dataclass(frozen=True)
class Drifting(Objective):
    """The loss above. Batches are multiples of `drift.samples`; padding is neither sample nor data.

    Without a memory, as `mean_loss` has none, the positives of a group are its own data, and those of guidance all data
    of the batch: then examples of a group are to have the same condition.
    """

    drift: Drift = Drift()  # drifting alone has it

    @property
    def batch_multiple(self) -> int:
        return self.drift.samples

    def check(self) -> None:
        super().check()
        self.drift.check()
        if self.velocity != "data":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'data' for drifting")

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the features (B, D) in which samples drift, of examples (B, …)."""
        return x.reshape(len(x), -1)

    def memory(self, example: tuple[int, ...], classes: int) -> dict[str, jax.ShapeDtypeStruct]:
        return banks.queues(example, classes, self.drift.queue)

    def remember(self, memory: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> banks.Memory:
        x = batch["x"]
        return banks.push(memory, x, batch["label"], batch.get("weight", jnp.ones(len(x))) > 0)

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (t, r), each (count,): T_max and T_min."""
        return jnp.full(count, self.transport.T_max), jnp.full(count, self.transport.T_min)

    def __call__(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        step: jax.Array,
        key: jax.Array,
        batch: jax.Array | None = None,
        memory: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        t, r = self.draw(key, len(examples.x), 1)
        loss, metrics = self.loss(nets, examples, t, r, step, key, memory)
        return add_terms(self, nets, examples, step, jax.random.fold_in(key, jnp.uint32(2**32 - 3)), loss, metrics)

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
        memory: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        transport, size = self.transport, self.drift.samples
        first = jax.tree.map(lambda leaf: leaf[:, 0], in_groups(examples.condition, size))
        condition = for_each(first, size)
        x_t = transport.sigma(expand(t, examples.noise)) * examples.noise
        (output,) = nets["online"]((query(transport, x_t, t, r, condition, examples.keys),))
        x = jump(transport, x_t, output.F, t, r) / transport.alpha(expand(r, x_t))

        there = jnp.ones(t.shape, bool) if examples.weight is None else examples.weight > 0
        f, present = in_groups((self.features(x), there), size)
        of_class, of_all = self.data(examples.x, there, first, memory)
        negatives = [Cloud(jax.lax.stop_gradient(f), present, present.astype(f.dtype))]
        if self.drift.guidance > 1:
            others, M, N = of_all[1], present.sum(1, keepdims=True), of_all[1].sum(1, keepdims=True)
            weight = (self.drift.guidance - 1) * jnp.maximum(M - 1, 0) / jnp.maximum(N, 1)
            negatives.append(Cloud(*of_all, weight * others))
        error, V = drift(f, negatives, Cloud(*of_class, of_class[1].astype(f.dtype)), self.drift.temperatures)
        error = error.reshape(-1)
        zero, force = jnp.zeros_like(t), jnp.mean(V**2, axis=(0, -1)).reshape(-1)
        metrics = dict(error=error, denoising=error, tangent=zero, alignment=zero, t=t, r=r, force=force)
        return error, metrics | dict(level_t=transport.level(t), level_r=transport.level(r))

    def data(
        self, x: jax.Array, there: jax.Array, condition: PyTree, memory: Mapping[str, jax.Array] | None
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Returns the data of its class and of all classes for each group: features (G, N, D), and which are there.

        Args:
            x: The data (B, …) of the batch.
            there: (B,) bool, false for padding.
            condition: The conditions of the groups.
            memory: The queues, or None.
        """
        count = len(x) // self.drift.samples

        def features(x: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = self.features(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1)
            return jnp.broadcast_to(found, (count, *found.shape[1:])), jnp.broadcast_to(there, (count, there.shape[1]))

        if memory is None:
            return features(*in_groups((x, there), self.drift.samples)), features(x[None], there[None])
        of_all = jnp.full(1, len(memory["added"]) - 1)
        return features(*banks.take(memory, condition["label"])), features(*banks.take(memory, of_all))


class Cloud(NamedTuple):
    """Points around the samples of each group.

    Attributes:
        y: The points (G, N, D).
        there: (G, N) bool, false for places that have none.
        weight: Their weights (G, N), 0 where there is none.
    """

    y: jax.Array
    there: jax.Array
    weight: jax.Array


def drift(
    f: jax.Array, negatives: Sequence[Cloud], positives: Cloud, temperatures: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Returns the losses (G, M) of samples, and the forces on them for every temperature, (R, G, M, D).

    Args:
        f: The samples (G, M, D).
        negatives: What they drift away from, they themselves, without gradient, first.
        positives: What they drift to.
        temperatures: Of the softmaxes.
    """
    samples, present, _ = negatives[0]
    scale, V = forces(negatives, positives, temperatures)
    square = jnp.sum(V**2, axis=(1, 2, 3), keepdims=True) / jnp.maximum(present.sum() * f.shape[-1], 1)
    aim = samples / scale + jnp.sum(V / jnp.sqrt(jnp.maximum(square, 1e-8)), axis=0)
    return jnp.where(present, jnp.mean((f / scale - aim) ** 2, axis=-1), 0.0), V


def forces(negatives: Sequence[Cloud], positives: Cloud, temperatures: Sequence[float]) -> tuple[jax.Array, jax.Array]:
    """Returns the unit of distance c, a scalar, and the forces (R, G, M, D); arguments are those of `drift`."""
    f, present, _ = negatives[0]
    y, there, weight = (jnp.concatenate(parts, axis=1) for parts in zip(*negatives, positives, strict=True))
    positive = (jnp.arange(y.shape[1]) >= y.shape[1] - positives.y.shape[1])[None, None]

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision="highest")

    square = jnp.sum(f**2, -1)[..., None] + jnp.sum(y**2, -1)[:, None] - 2 * product(f, y.swapaxes(1, 2))
    d = jnp.sqrt(jnp.maximum(square, 1e-8))
    w = present[..., None] * weight[:, None]
    S = jnp.sum(d * w) / jnp.maximum(jnp.sum(w), 1e-8)
    scale = jnp.maximum(S / np.sqrt(f.shape[-1]), 1e-3)
    distance = d / jnp.maximum(S, 1e-3) + FAR * jnp.eye(d.shape[1], d.shape[2], dtype=d.dtype)[None]

    def force(temperature: float) -> jax.Array:
        logits = jnp.where(present[..., None] & there[:, None], -distance / temperature, -1e9)
        near = jax.nn.softmax(logits, axis=2) * jax.nn.softmax(logits, axis=1)
        A = jnp.sqrt(jnp.maximum(near, 1e-6)) * weight[:, None]
        pull, push = A * positive, A * ~positive
        coefficients = pull * push.sum(2, keepdims=True) - push * pull.sum(2, keepdims=True)
        return product(coefficients, y) / scale * present[..., None]

    return scale, jnp.stack([force(temperature) for temperature in temperatures])
