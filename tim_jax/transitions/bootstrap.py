"""Where the two jumps t → s → r come from whose end is the target of a jump t → r; they have no gradient.

The first ends at s, "half" way (Shortcut, arXiv 2410.12557), at a "uniform" point of (r, t) (SplitMeanFlow, arXiv
2507.16884), or after the share α of the interval, s = t − α (t − r), which may change over training. It is the
network's own, or goes along the velocity of data and noise, which is guided where targets are (α-Flow, arXiv
2510.20771), or with solver steps along that of a teacher (CTM, arXiv 2310.02279).

A jump along the velocity of one example is not that of the flow, unless it is short: only with α → 0 does a network
that agrees with such targets learn the flow map.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tim_jax.transitions.annealing import Annealing

SPLITS = ("half", "uniform", "alpha")
FIRST = ("network", "velocity")
WEIGHTINGS = ("none", "alpha")
TWO_JUMPS = ("semigroup", "annealed")  # the consistencies that have such targets

UNUSED = {
    tuple(f"objective.bootstrap.{name}" for name in (
        "ema", "split", "first", "min_interval", "solver_steps", "clip"
    )): (
        "objective.consistency is not 'semigroup' or 'annealed'",
        lambda c: c.objective.consistency not in TWO_JUMPS,
    ),
    ("objective.bootstrap.weighting", *(
        f"objective.bootstrap.alpha.{field.name}" for field in dataclasses.fields(Annealing)
    )): (
        "objective.bootstrap.split is not 'alpha' (or objective.consistency not 'semigroup' or 'annealed')",
        lambda c: c.objective.bootstrap.split != "alpha" or c.objective.consistency not in TWO_JUMPS,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """The settings of the two jumps."""

    ema: str = "online"  # whose two jumps are the target: "online" or the name of an EMA
    split: str = "half"  # where the first ends: half, uniform, alpha (after the share α of the interval)
    first: str = "network"  # what makes the first: network, velocity (of the data, guided where targets are)
    alpha: Annealing = Annealing()
    weighting: str = "none"  # none, alpha (losses of examples with r ≠ t times α, while it is above 0)
    clip: float = 0.0  # targets are kept within ± this; 0: they are not
    min_interval: float = 0.0  # jumps up to this share of the time domain are evaluated at r = t
    solver_steps: int = 0  # of Heun's method along the teacher that make the first jump; 0: none

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name, known in (("split", SPLITS), ("first", FIRST), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"objective.bootstrap.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        if self.clip < 0:
            raise ValueError(f"objective.bootstrap.clip is {self.clip}; it must be at least 0")
        if not 0 <= self.min_interval < 1:
            raise ValueError(f"objective.bootstrap.min_interval is {self.min_interval}; it must lie in [0, 1)")
        if self.solver_steps < 0:
            raise ValueError(f"objective.bootstrap.solver_steps is {self.solver_steps}; it must be at least 0")
        if self.solver_steps and self.first == "velocity":
            raise ValueError(
                f"objective.bootstrap.solver_steps is {self.solver_steps}; it must be 0 where the first jump goes "
                "along the velocity"
            )
        if self.split == "alpha":
            self.alpha.check("objective.bootstrap.alpha")

    def check_limit(self, consistency: str) -> None:
        """Raises ValueError where a first jump of no length is, or is not, what a consistency can take."""
        if consistency == "annealed":
            for name, only in (("split", "alpha"), ("first", "velocity")):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"objective.bootstrap.{name} is {getattr(self, name)!r}; it must be {only!r} for 'annealed'"
                    )
        if consistency == "semigroup" and self.split == "alpha" and self.alpha.vanishes:
            raise ValueError(
                f"objective.bootstrap.alpha.final is {self.alpha.final}; it must be above 0 and "
                "objective.bootstrap.alpha.clamp for 'semigroup', whose first jump needs a length"
            )

    def following(self, steps: int) -> "Bootstrap":
        """Returns these settings for so many steps of training."""
        return dataclasses.replace(self, alpha=self.alpha.following(steps))

    def split_point(self, t: jax.Array, r: jax.Array, step: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns the time s (B,), r ≤ s ≤ t, where the first jump ends. key: for uniform split points."""
        if self.split == "half":
            return t + 0.5 * (r - t)
        if self.split == "alpha":
            return jnp.clip(t + self.alpha(step) * (r - t), r, t)
        assert key is not None, "uniform split points are drawn with a key"
        return t + jax.random.uniform(key, t.shape, t.dtype) * (r - t)

    def loss_weight(self, t: jax.Array, r: jax.Array, step: jax.Array) -> jax.Array:
        """Returns the weights (B,) of the losses of examples at times t, r (B,)."""
        if self.split != "alpha" or self.weighting == "none":
            return jnp.ones_like(t)
        alpha = self.alpha(step)
        return jnp.where((r != t) & (alpha > 0), alpha, 1.0)
