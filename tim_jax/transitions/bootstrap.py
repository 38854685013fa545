"""Where the two jumps t → s → r come from whose end is the target of a jump t → r; they have no gradient.

The first ends at s, "half" way (Shortcut, arXiv 2410.12557), at a "uniform" point of (r, t) (SplitMeanFlow, arXiv
2507.16884), or after the share α of the interval, s = t − α (t − r), which may change over training. It is the
network's own, or goes along the velocity of data and noise, which is guided where targets are (α-Flow, arXiv
2510.20771), or with solver steps along that of a teacher (CTM, arXiv 2310.02279).

A jump along the velocity of one example is not that of the flow, unless it is short: only with α → 0 does a network
that agrees with such targets learn the flow map. F* − F⁻ vanishes with α as well. With `weighting` "rate" the loss is
that of what does not, the rate at which the ends of both ways part (SoFlow, arXiv 2512.15657):

    D = (f_{t→r}(x_t) − f_{s→r}(x_s)) / (t − s) = ±κ (F − F*),   κ = |B_{t,r}| / (t − s),   1/α for OT-FM

In place of w a(L) L, L the error of F and a an adaptive weight, it is w a(κ² L) κ L: κ² L is the error of D. At r = t,
κ is |∂B_{t,r}/∂r|.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.jump import coefficient_B
from tim_jax.transitions.transports import Transport

SPLITS = ("half", "uniform", "alpha")
FIRST = ("network", "velocity")
WEIGHTINGS = ("none", "alpha", "rate")
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
    # none, alpha (losses of examples with r ≠ t times α, while it is above 0), rate (of the difference per time, by the
    # error of which examples are weighted)
    weighting: str = "none"
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
            if self.weighting == "rate":
                raise ValueError(
                    "objective.bootstrap.weighting is 'rate'; it must be 'alpha' or 'none' for 'annealed', whose first "
                    "jump has no length in the end"
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

    def loss_factors(
        self, transport: Transport, t: jax.Array, r: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the factors (B,) of an error before and after its adaptive weight, 1 but for a `weighting`.

        Args:
            transport: The transport.
            t, r: The times (B,) of the examples.
            step: The training step, a scalar.
        """
        one = jnp.ones_like(t)
        if self.split != "alpha" or self.weighting == "none":
            return one, one
        alpha, moves = self.alpha(step), r != t
        if self.weighting == "alpha":
            return one, jnp.where(moves & (alpha > 0), alpha, 1.0)
        B_dot = jax.jvp(lambda r: coefficient_B(transport, t, r), (t,), (one,))[1]
        length = jnp.where(moves, alpha * (t - r), 1.0)
        kappa = jnp.abs(jnp.where(moves, coefficient_B(transport, t, r) / length, B_dot))
        return kappa**2, 1 / kappa
