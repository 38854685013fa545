"""An adversary: heads on a network's states, which tell noised data from noised samples of the student.

Samples x̂ and data x are noised to the same times, x̂_t and x_t, each by noise of its own. The heads
(`networks/discriminator.py`) see the states of a trunk at (x_t, t, t), and have logits d. With ς(d) = log(1 + e^d),

                      trains the student    trains the heads
    non_saturating    ς(−d(x̂_t))            ς(d(x̂_t)) + ς(−d(x_t))
    hinge             −d(x̂_t)               ½ (1 + d(x̂_t))₊ + ½ (1 − d(x_t))₊

each of them a mean over heads and tokens. To the heads' loss γ (d(x_t) − d(x_t + s ξ))² may be added, ξ normal: R1
without a second derivative (arXiv 2501.08316).

The trunk is the teacher, which stays as it is (LADD, arXiv 2403.12015; SANA-Sprint, arXiv 2503.09641), or the network
that learns the student's samples (`matching.py`) and may learn from the heads' loss as well (DMD2, arXiv 2405.14867).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.terms.constant import constant
from tim_jax.transitions.terms.matching import SCORE
from tim_jax.transitions.times import USES_NORMAL, positions
from tim_jax.types import Auxiliary, Examples, Heads, Query

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

DISCRIMINATOR = "discriminator"  # the name of the heads among the networks
TEACHER = "teacher"
TRUNKS = (TEACHER, SCORE)
OWN_TIMES = "times"
DISTRIBUTIONS = (OWN_TIMES, *USES_NORMAL, "uniform")


UNUSED = {
    tuple(
        f"objective.adversary.{name}"
        for name in ("loss", "trunk", "blocks", "width", "distribution", "r1_weight", "trunk_weight")
    )
    + tuple(f"objective.adversary.network.{field.name}" for field in dataclasses.fields(Auxiliary)): (
        "objective.adversary.weight is 0",
        lambda c: not c.objective.adversary.weight,
    ),
    ("objective.adversary.P_mean", "objective.adversary.P_std"): (
        "objective.adversary.distribution is not logit_normal, log_normal or arctan_normal",
        lambda c: c.objective.adversary.distribution not in USES_NORMAL,
    ),
    ("objective.adversary.r1_noise",): (
        "objective.adversary.r1_weight is 0",
        lambda c: not c.objective.adversary.r1_weight,
    ),
    ("objective.adversary.trunk_weight",): (
        "objective.adversary.trunk is 'teacher', which is never trained",
        lambda c: c.objective.adversary.trunk == TEACHER,
    ),
}


class GanLoss(NamedTuple):
    """A pair of losses, elementwise in logits.

    Attributes:
        student: Of d(x̂_t).
        heads: Of d(x̂_t) and d(x_t).
    """

    student: Callable[[jax.Array], jax.Array]
    heads: Callable[[jax.Array, jax.Array], jax.Array]


LOSSES = {
    "non_saturating": GanLoss(
        student=lambda sample: jax.nn.softplus(-sample),
        heads=lambda sample, data: jax.nn.softplus(sample) + jax.nn.softplus(-data),
    ),
    "hinge": GanLoss(
        student=lambda sample: -sample,
        heads=lambda sample, data: 0.5 * jax.nn.relu(1 + sample) + 0.5 * jax.nn.relu(1 - data),
    ),
}


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Settings of the terms above."""

    weight: float = 0.0  # of the student's term; 0: none
    loss: str = "non_saturating"  # non_saturating, hinge
    trunk: str = TEACHER  # whose states the heads see: teacher, or score, the network of objective.matching
    blocks: tuple[int, ...] = ()  # of the trunk, counted from 1, after each of which there is a head
    width: int = 256  # of the heads
    # of the times to which samples and data are noised: times (that of t), logit_normal, log_normal, arctan_normal or
    # uniform
    distribution: str = OWN_TIMES
    P_mean: float = 0.0  # of the normal in logit_normal, log_normal and arctan_normal
    P_std: float = 1.0
    r1_weight: float = 0.0  # γ of the approximate R1; 0: none
    r1_noise: float = 0.1  # s of the same
    trunk_weight: float = 0.0  # of the heads' loss in what the trunk "score" learns; 0: it learns nothing from it
    network: Auxiliary = Auxiliary()  # how the heads are trained

    @property
    def asks_teacher(self) -> bool:
        return False

    @property
    def auxiliary(self) -> dict[str, Auxiliary]:
        return {DISCRIMINATOR: self.network}

    @property
    def heads(self) -> dict[str, Heads]:
        return {DISCRIMINATOR: Heads(self.trunk, self.blocks, self.width, "objective.adversary.blocks")}

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name, known in (
            ("loss", tuple(LOSSES)), ("trunk", TRUNKS), ("distribution", DISTRIBUTIONS)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(
                    f"objective.adversary.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        for name in ("weight", "r1_weight", "trunk_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.adversary.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("P_std", "r1_noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.adversary.{name} is {getattr(self, name)}; it must be above 0")
        if self.width < 1:
            raise ValueError(f"objective.adversary.width is {self.width}; it must be at least 1")
        if self.weight and not self.blocks:
            raise ValueError(
                f"objective.adversary.blocks is {self.blocks}; it must name blocks of the {self.trunk}, such as "
                f"(2, 4), with objective.adversary.weight {self.weight}"
            )
        self.network.check("objective.adversary.network")

    def __call__(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """See `Term`."""
        return self.losses(objective, nets, examples, *self.noised(objective, examples, x, key))

    def auxiliary_loss(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """See `Term`."""
        t, states = self.noised(objective, examples, x, key)
        return self.losses(objective, nets, examples, t, states)[1]

    def noised(
        self, objective: "Objective", examples: Examples, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Draws times (B,). Returns them and the states (B, …) of samples x, of data and, for R1, x_t + s ξ."""
        transport = objective.transport
        time_key, sample_key, data_key, r1_key = jax.random.split(key, 4)
        times = objective.times
        if self.distribution != OWN_TIMES:
            times = dataclasses.replace(times, distribution=self.distribution, P_mean=self.P_mean, P_std=self.P_std)
        t = times.draw_t(transport, time_key, (len(x),), positions(x))

        def state(x: jax.Array, key: jax.Array) -> jax.Array:
            return interpolate(transport, x, draw_noise(transport.augmented_dimensions, key, x.shape, x.dtype), t)

        states = state(x, sample_key), state(examples.x, data_key)
        if not self.r1_weight:
            return t, states
        return t, (*states, states[1] + self.r1_noise * jax.random.normal(r1_key, x.shape, x.dtype))

    def losses(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        states: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns the student's losses (B,), those of the heads (B,), and metrics (B,).

        Args:
            objective: The objective.
            nets: The networks by name.
            examples: Give the conditions.
            t: The times (B,) of the states.
            states: What `noised` returns.
        """
        loss = LOSSES[self.loss]
        queries = tuple(query(objective.transport, x_t, t, t, examples.condition) for x_t in states)
        # Where the trunk learns, the heads see it as it is, and the student sees what stands for it.
        seen = self.taps(constant(nets, self.trunk), queries[:1] if self.trunk_weight else queries)
        of_student = loss.student(flat(constant(nets, DISCRIMINATOR)(seen[0]))).mean(axis=1)
        if self.trunk_weight:
            seen = self.taps(nets[self.trunk], jax.lax.stop_gradient(queries))
        sample, data, *moved = (
            flat(cast(Callable[..., jax.Array], nets[DISCRIMINATOR])(self.scaled(taps))) for taps in seen
        )
        of_heads = loss.heads(sample, data).mean(axis=1)
        for d in moved:
            of_heads = of_heads + self.r1_weight * jnp.mean((data - d) ** 2, axis=1)
        metrics = dict(adversary=of_student, discriminator=of_heads)
        return of_student, of_heads, metrics | dict(logit_sample=sample.mean(axis=1), logit_data=data.mean(axis=1))

    def logits(
        self, objective: "Objective", nets: Mapping[str, Net], x_t: jax.Array, t: jax.Array, examples: Examples
    ) -> jax.Array:
        """Returns the logits (B, M) of all heads at all tokens, which have a gradient in the states alone.

        Args:
            objective: The objective.
            nets: The networks by name.
            x_t: States (B, …).
            t: Their times (B,).
            examples: Give the conditions.
        """
        here = query(objective.transport, x_t, t, t, examples.condition)
        (taps,) = self.taps(constant(nets, self.trunk), (here,))
        return flat(constant(nets, DISCRIMINATOR)(taps))

    def taps(self, trunk: Net, queries: tuple[Query, ...]) -> tuple[tuple[jax.Array, ...], ...]:
        """Returns the states (B, N, D) after `blocks`, for every query."""
        return tuple(output.taps for output in trunk(queries, taps=self.blocks))

    def scaled(self, taps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Returns the same states, with `trunk_weight` times their gradient."""
        fixed = jax.lax.stop_gradient(taps)
        return tuple(h_fixed + self.trunk_weight * (h - h_fixed) for h, h_fixed in zip(taps, fixed, strict=True))


def flat(logits: jax.Array) -> jax.Array:
    """Returns logits (B, K, N) as (B, K N)."""
    return logits.reshape(len(logits), -1)
