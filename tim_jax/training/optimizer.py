"""The optimizer: AdamW or Muon, a schedule and clipping, for each trained network by itself."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from tim_jax.training import names
from tim_jax.types import Auxiliary

UNUSED = {
    ("optimizer.ema_warmup",): ("ema is empty", lambda c: not c.ema),
    ("optimizer.momentum",): ("optimizer.name is not 'muon'", lambda c: c.optimizer.name != "muon"),
}

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "linear")


# What networks call the parameters of blocks that are stacked on axis 0.
STACKS = ("blocks", "encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """How gradients become updates."""

    name: str = "adamw"  # adamw, muon
    learning_rate: float = 2e-4
    schedule: str = "constant"  # constant, cosine, linear (both to 0 over decay_steps)
    warmup_steps: int = 0
    decay_steps: int = 0  # counted from step 0, warm-up included; 0: training.steps
    # of AdamW, and with muon of what is no matrix in a block, where AdamW takes Nesterov's step
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-6  # of AdamW's denominators, and of the norms that Muon divides by
    momentum: float = 0.95  # of Muon
    weight_decay: float = 0.01
    clip: float = 1.0  # global gradient norm; 0: no clipping
    accumulation: int = 1  # microbatches per step
    # Names of parameters, or beginnings of them, with * for anything: "label_embedder", "blocks/attn", "*/bias".
    frozen: tuple[str, ...] = ()  # stay as they start, such as ("blocks",)
    # Factors of the learning rate, such as (("label_embedder", 10.0),); the first that fits counts.
    learning_rate_factors: tuple[tuple[str, float], ...] = ()
    # Decays of EMAs start low, min(decay, (1 + step)/(10 + step)), so that the first parameters are soon forgotten;
    # False: each decay is the same in all steps.
    ema_warmup: bool = True

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name is {self.name!r}; it must be one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0")
        if self.eps <= 0:
            raise ValueError(f"optimizer.eps is {self.eps}; it must be above 0")
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.schedule != "constant" and 0 < self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps is {self.decay_steps}; it must be above optimizer.warmup_steps, "
                f"{self.warmup_steps}, with the schedule {self.schedule!r}, or 0, which follows training.steps"
            )
        if self.schedule == "constant" and self.decay_steps:
            raise ValueError(f"optimizer.decay_steps is {self.decay_steps}; it must be 0 with the schedule 'constant'")
        if self.accumulation < 1:
            raise ValueError(f"optimizer.accumulation is {self.accumulation}; it must be at least 1")
        for pair in self.learning_rate_factors:
            if not 0 < pair[1] < math.inf:
                raise ValueError(
                    f"optimizer.learning_rate_factors is {self.learning_rate_factors!r}; each of them must have a "
                    "factor above 0 (optimizer.frozen is for 0)"
                )

    def following(self, steps: int) -> "OptimizerSettings":
        """Returns the settings with decay_steps that follow the number of steps to train, where they are to.

        A warm-up that takes all of these steps is not followed by any decay.
        """
        if self.schedule == "constant" or self.decay_steps:
            return self
        return dataclasses.replace(self, decay_steps=max(steps, self.warmup_steps + 1))

    def doubts(self, steps: int) -> list[str]:
        """Returns what a schedule does in so many steps of training that hardly anybody wants, a line each."""
        found = []
        if 0 < self.decay_steps < steps:
            found.append(
                f"optimizer.decay_steps is {self.decay_steps}, and training.steps {steps}: the learning rate is 0 in "
                f"the steps between; with optimizer.decay_steps={steps} it falls until the last one"
            )
        if self.warmup_steps >= steps:
            found.append(
                f"optimizer.warmup_steps is {self.warmup_steps}, and training.steps {steps}: the learning rate stays "
                "below optimizer.learning_rate"
            )
        return found

    def check_names(self, parameters: Iterable[str]) -> None:
        """Checks the patterns of names.

        Args:
            parameters: Names of the network's parameters.

        Raises:
            ValueError: If a pattern matches none of them, or nothing is left to train.
        """
        parameters = list(parameters)
        names.check_patterns("optimizer.frozen", self.frozen, parameters)
        names.check_patterns(
            "optimizer.learning_rate_factors", [pattern for pattern, _ in self.learning_rate_factors], parameters
        )
        if self.frozen and all(names.matches(name, self.frozen) for name in parameters):
            raise ValueError(f"optimizer.frozen is {self.frozen}; it must leave something to train")


def make_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Returns the learning rate by the number of updates made before: a warm-up, then constant, or down to 0.

    The warm-up is linear from 0, the other two shapes end at decay_steps. Updates that are left out do not count.

    Args:
        settings: As `OptimizerSettings.following` returns them.
    """
    peak, warmup, decay = settings.learning_rate, settings.warmup_steps, settings.decay_steps - settings.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay),
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay),
    }[settings.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), after], [warmup])


def updates_made(opt_state: Any) -> jax.Array:
    """Returns the number of updates that the online network's next learning rate goes by, from an optimizer's state."""

    def is_schedule(path: tuple, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    counts = optax.tree.get_all_with_path(opt_state, "count", filtering=is_schedule)
    of_online = [count for path, count in counts if any(getattr(part, "key", None) == "online" for part in path)]
    made: jax.Array = (of_online or [count for _, count in counts])[0]
    return made


def matrix_axes(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
    """Returns which axes of a parameter form the matrix that Muon orthogonalises, or None where AdamW updates it.

    Blocks are stacked on axis 0, and q, k, v, or both factors of a SwiGLU where they are one product, on the axis after
    the input: each is a matrix of its own. Embedders, modulations' output layers' biases, norms, the patch and final
    layers stay with AdamW, as is usual for Muon.
    """
    names = [str(getattr(part, "key", part)) for part in path]
    if not set(STACKS) & set(names) or names[-1] != "kernel":
        return None
    stacked = leaf.ndim - 1
    if stacked == 2:  # (L, in, out)
        return MuonDimensionNumbers((1,), (2,))
    if stacked == 3 and "out" in names:  # (L, H, K, D)
        return MuonDimensionNumbers((1, 2), (3,))
    if stacked == 3 and "mlp" in names:  # (L, D, 2, hidden)
        return MuonDimensionNumbers((1,), (3,))
    if stacked == 3:  # (L, D, H, K)
        return MuonDimensionNumbers((1,), (2, 3))
    return MuonDimensionNumbers((1,), (3, 4))  # (L, D, 3, H, K)


def make_optimizer(
    settings: OptimizerSettings, networks: Mapping[str, Auxiliary] = {"online": Auxiliary()}
) -> optax.GradientTransformation:
    """Returns an optimizer of several networks, each with a state of its own and gradients clipped by their own norm.

    Parameters that `settings.frozen` matches get no update, have no state and do not count in the clipped norm. The
    schedule of a network that makes several updates in a step is as long in steps as that of any other.

    Args:
        settings: Kind and numbers; patterns of names are of every network's parameters.
        networks: What they have of their own, by name; parameters are {name: tree}.
    """
    parts = {
        name: make_update(
            dataclasses.replace(
                settings,
                learning_rate=own.learning_rate or settings.learning_rate,
                warmup_steps=own.updates * settings.warmup_steps,
                decay_steps=own.updates * settings.decay_steps,
            )
        )
        for name, own in networks.items()
    }
    by_part = optax.partition(parts, {part: part for part in parts})
    tx = optax.chain(clip_parts(settings.clip), by_part) if settings.clip else by_part
    if not settings.frozen:
        return tx

    def labels(params: dict[str, Any]) -> dict[str, Any]:
        selected = {part: names.select(tree, settings.frozen) for part, tree in params.items()}
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", selected)

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def make_update(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Returns the optimizer of one network, without clipping."""
    schedule = make_schedule(settings)
    if settings.name == "adamw":
        update = optax.adamw(
            schedule, b1=settings.b1, b2=settings.b2, eps=settings.eps, weight_decay=settings.weight_decay
        )
    else:
        update = muon(
            schedule,
            beta=settings.momentum,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            adam_weight_decay=settings.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(matrix_axes, params),
        )
    if settings.learning_rate_factors:
        update = optax.chain(update, scale_by_name(settings.learning_rate_factors))
    return update


def clip_parts(norm: float) -> optax.GradientTransformation:
    """Returns a transformation that scales the gradients of each network in {name: tree} down to a global norm."""
    clip = optax.clip_by_global_norm(norm)

    def clip_each(gradients: dict[str, Any], params: Any) -> dict[str, Any]:
        return {part: clip.update(tree, optax.EmptyState())[0] for part, tree in gradients.items()}

    return optax.stateless(clip_each)


def scale_by_name(factors: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates {part: tree} by factors; others stay.

    Args:
        factors: (pattern, factor); the first pattern that matches a parameter counts.
    """

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        name = names.name_of(path[1:])
        return update * next((factor for pattern, factor in factors if names.matches(name, (pattern,))), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))
