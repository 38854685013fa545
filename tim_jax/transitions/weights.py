"""Weights of a row's loss by its times, by its own error, and the direction and alignment terms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.transports import Transport

# Kernels of a non-negative quantity d and σ_d (TiM, section 4.2).
KERNELS = {
    "constant": lambda d, sigma_d: jnp.ones_like(d),
    "reciprocal": lambda d, sigma_d: 1 / (d + sigma_d),
    "sqrt": lambda d, sigma_d: 1 / jnp.sqrt(d + sigma_d),
    "square": lambda d, sigma_d: 1 / (d + sigma_d) ** 2,
    "soft_min_snr": lambda d, sigma_d: 1 / (d**2 + sigma_d**2),
}

# The largest d of a weight: some scales have no bound, and rows that are noise alone are to keep some weight.
MOST = 1e3

# τ(t), the scale on which the kernel measures time.
SCALES = {
    "time": lambda transport, t: t,
    "tan": lambda transport, t: jnp.tan(t),
    "odds": lambda transport, t: t / (1 - t),
    "noise_to_signal": lambda transport, t: transport.ratio(t),
}

# The largest T_max at which a scale still grows and is not negative.
SCALE_LIMITS = {"tan": np.pi / 2, "odds": 1.0}


UNUSED = {
    ("objective.weight.scale", "objective.weight.difference", "objective.weight.sigma_d"): (
        "objective.weight.kernel is 'constant'",
        lambda c: c.objective.weight.kernel == "constant",
    ),
    ("objective.adaptive.offset", "objective.adaptive.total"): (
        "objective.adaptive.power is 0",
        lambda c: c.objective.adaptive.power == 0,
    ),
}


@dataclasses.dataclass(frozen=True)
class TimeWeight:
    """w = kernel(min(τ(t) − τ(r), 1000), σ_d), or of τ(t) alone without `difference`; 1 where r = t."""

    kernel: str = "sqrt"  # constant, reciprocal, sqrt, square, soft_min_snr
    scale: str = "tan"  # τ, of time in the weight: time, tan, odds, noise_to_signal
    difference: bool = True  # weight by τ(t) − τ(r); False: by τ(t)
    sigma_d: float = 1.0  # σ_d of the kernel

    def check(self, transport: Transport) -> None:
        """Raises ValueError for an unknown form, or one outside the transport's range of times."""
        if self.kernel not in KERNELS:
            raise ValueError(f"objective.weight.kernel is {self.kernel!r}; it must be one of {', '.join(KERNELS)}")
        if self.scale not in SCALES:
            raise ValueError(f"objective.weight.scale is {self.scale!r}; it must be one of {', '.join(SCALES)}")
        if self.sigma_d <= 0:
            raise ValueError(f"objective.weight.sigma_d is {self.sigma_d}; it must be above 0")
        limit = SCALE_LIMITS.get(self.scale, np.inf)
        if transport.T_max > limit and self.kernel != "constant":
            raise ValueError(
                f"objective.weight.scale is {self.scale!r}; it must be 'noise_to_signal' or 'time', since that one holds "
                f"up to t = {limit:.4g} and {transport.name} reaches {transport.T_max:g}"
            )

    def __call__(self, transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
        """(B,) weights for times (B,)."""
        scale = SCALES[self.scale]
        d = scale(transport, t) - scale(transport, r) if self.difference else scale(transport, t)
        return jnp.where(r == t, 1.0, KERNELS[self.kernel](jnp.minimum(d, MOST), self.sigma_d))


@dataclasses.dataclass(frozen=True)
class AdaptiveWeight:
    """1/(stop-gradient(loss) + offset)^power.

    With power ½ and offset c² the gradient is half that of the pseudo-Huber loss √(loss + c²) − c. MeanFlow's losses
    are
    sums over the values of an example, and so `total` is its.
    """

    power: float = 1.0  # examples are divided by (own loss + offset)^power; 0: not
    offset: float = 1e-5
    total: bool = False  # the offset is for sums over the values of an example, not means

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        for name in ("power", "offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.adaptive.{name} is {getattr(self, name)}; it must be at least 0")

    def __call__(self, loss: jax.Array, values: int = 1) -> jax.Array:
        """Weights (B,) of losses (B,), means over `values` values each."""
        offset = self.offset / values if self.total else self.offset
        return (jax.lax.stop_gradient(loss) + offset) ** -self.power if self.power else jnp.ones_like(loss)


DIRECTION_AXES = {"none": None, "channels": -1, "image": (-3, -2, -1)}


def direction_error(F: jax.Array, target: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """(B,) mean of 1 − cosine(F, F*) over the given axes of (B, h, w, C).

    A vector shorter than 1e-6 has no direction: it counts as 1, with zero gradient, so that an output that starts at
    zero is finite in value and gradient.
    """
    tiny = 1e-12
    square_F = jnp.sum(F**2, axis=axes, keepdims=True)
    square_target = jnp.sum(target**2, axis=axes, keepdims=True)
    has_direction = (square_F > tiny) & (square_target > tiny)
    # The inner `where` keeps rsqrt's gradient finite in the branch that the outer one discards.
    norms = jax.lax.rsqrt(jnp.where(has_direction, square_F * square_target, 1.0))
    cosine = jnp.sum(F * target, axis=axes, keepdims=True) * norms
    error = 1 - jnp.where(has_direction, cosine, 0.0)
    return error.reshape(len(error), -1).mean(axis=1)


def alignment_error(hidden: jax.Array, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """(B,) mean over tokens of 1 − cosine(h, features) (REPA, arXiv 2410.06940); hidden, features: (B, N, Z).

    mask: (B,), 0 for rows without features, whose error is then 0.
    """
    error = direction_error(hidden, features, -1)
    return error if mask is None else jnp.where(mask > 0, error, 0.0)
