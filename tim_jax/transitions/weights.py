"""Weights of an example's loss, by its times and by its own error, and the direction and alignment terms."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.transports import Transport

# Kernels of a non-negative quantity d and σ_d (TiM, section 4.2).
KERNELS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "constant": lambda d, sigma_d: jnp.ones_like(d),
    "reciprocal": lambda d, sigma_d: 1 / (d + sigma_d),
    "sqrt": lambda d, sigma_d: 1 / jnp.sqrt(d + sigma_d),
    "square": lambda d, sigma_d: 1 / (d + sigma_d) ** 2,
    "soft_min_snr": lambda d, sigma_d: 1 / (d**2 + sigma_d**2),
    "sine": lambda d, sigma_d: jnp.sin(jnp.pi / 2 * d),  # FACM (arXiv 2507.03738)
    "tan": lambda d, sigma_d: jnp.tan(2 / 5 * jnp.pi * (1 - d)) + 1,  # TwinFlow (arXiv 2512.05150)
}

OF_SHARES = ("sine", "tan")  # kernels that are above 0 for d up to 1 alone

# The largest d of a weight: some scales have no bound, and examples that are pure noise shall keep some weight.
MAX_DIFFERENCE = 1e3

# τ(t), the scale on which the kernel measures time.
SCALES: dict[str, Callable[[Transport, jax.Array], jax.Array]] = {
    "time": lambda transport, t: t,
    "share": lambda transport, t: transport.share(t),
    "tan": lambda transport, t: jnp.tan(t),
    "odds": lambda transport, t: t / (1 - t),
    "noise_to_signal": lambda transport, t: transport.ratio(t),
}

# The largest T_max at which a scale still grows and is not negative.
SCALE_LIMITS = {"tan": np.pi / 2, "odds": 1.0}

UNUSED = {
    ("objective.weight.scale", "objective.weight.difference"): (
        "objective.weight.kernel is 'constant'",
        lambda c: c.objective.weight.kernel == "constant",
    ),
    ("objective.weight.sigma_d",): (
        "objective.weight.kernel is 'constant', 'sine' or 'tan'",
        lambda c: c.objective.weight.kernel in ("constant", *OF_SHARES),
    ),
    ("objective.adaptive.offset", "objective.adaptive.total", "objective.adaptive.equal"): (
        "objective.adaptive.power is 0",
        lambda c: c.objective.adaptive.power == 0,
    ),
}


@dataclasses.dataclass(frozen=True)
class TimeWeight:
    """The weight w = kernel(min(τ(t) − τ(r), 1000), σ_d), or of τ(t) alone without `difference`; 1 where r = t."""

    kernel: str = "sqrt"  # constant, reciprocal, sqrt, square, soft_min_snr, sine, tan
    scale: str = "tan"  # τ, of time in the weight: time, share (of the time domain), tan, odds, noise_to_signal
    difference: bool = True  # weight by τ(t) − τ(r); False: by τ(t)
    sigma_d: float = 1.0  # σ_d of the kernel

    def check(self, transport: Transport) -> None:
        """Raises ValueError, naming key and value, for invalid settings and scales that do not fit the transport."""
        if self.kernel not in KERNELS:
            raise ValueError(f"objective.weight.kernel is {self.kernel!r}; it must be one of {', '.join(KERNELS)}")
        if self.scale not in SCALES:
            raise ValueError(f"objective.weight.scale is {self.scale!r}; it must be one of {', '.join(SCALES)}")
        if self.sigma_d <= 0:
            raise ValueError(f"objective.weight.sigma_d is {self.sigma_d}; it must be above 0")
        if self.kernel in OF_SHARES and self.scale != "share":
            raise ValueError(
                f"objective.weight.scale is {self.scale!r}; it must be 'share' for the kernel {self.kernel!r}, which "
                "is above 0 up to 1"
            )
        limit = SCALE_LIMITS.get(self.scale, np.inf)
        if transport.T_max > limit and self.kernel != "constant":
            raise ValueError(
                f"objective.weight.scale is {self.scale!r}; it must be 'noise_to_signal' or 'time', since that one "
                f"holds up to t = {limit:.4g} and {transport.name} reaches {transport.T_max:g}"
            )

    def __call__(self, transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
        """Returns the weights (B,) of examples at times t, r (B,)."""
        scale = SCALES[self.scale]
        d = scale(transport, t) - scale(transport, r) if self.difference else scale(transport, t)
        return jnp.where(r == t, 1.0, KERNELS[self.kernel](jnp.minimum(d, MAX_DIFFERENCE), self.sigma_d))


@dataclasses.dataclass(frozen=True)
class AdaptiveWeight:
    """The weight 1/(sg(loss) + offset)^power. TiM has power 1 and offset 1e-5.

    With power ½ and offset c² the gradient is twice that of the pseudo-Huber loss √(loss + c²) − c. MeanFlow's losses
    are sums over the values of an example, so that its offset is meant for the `total`.
    """

    power: float = 1.0  # examples are divided by (own loss + offset)^power; 0: not
    offset: float = 1e-5
    total: bool = False  # the offset is for sums over the values of an example, not means
    equal: bool = True  # examples with r = t are weighted, too

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name in ("power", "offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.adaptive.{name} is {getattr(self, name)}; it must be at least 0")

    def __call__(self, loss: jax.Array, values: int = 1) -> jax.Array:
        """Returns the weights (B,) of losses (B,), each a mean over `values` values."""
        offset = self.offset / values if self.total else self.offset
        return (jax.lax.stop_gradient(loss) + offset) ** -self.power if self.power else jnp.ones_like(loss)


# The axes of (B, …, C) along which a vector has a direction, by the number of all axes.
DIRECTION_AXES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "none": lambda ndim: (),
    "channels": lambda ndim: (-1,),
    "image": lambda ndim: tuple(range(1, ndim)),
}


def direction_error(F: jax.Array, target: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the mean (B,) of 1 − cos(F, F*), the cosine being taken along `axes`.

    A vector shorter than 1e-6 has no direction: its error counts as 1, with zero gradient, so that value and gradient
    of an output that starts at zero are finite.

    Args:
        F, target: Predictions and targets (B, …).
        axes: The axes of the vectors.
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
    """Returns the mean (B,) over tokens of 1 − cos(h, features) (REPA, arXiv 2410.06940).

    Args:
        hidden: Hidden states (B, N, Z) of the network.
        features: Features (B, N, Z) of a frozen image encoder.
        mask: (B,), 0 for examples without features, whose error is then 0.
    """
    error = direction_error(hidden, features, (-1,))
    return error if mask is None else jnp.where(mask > 0, error, 0.0)
