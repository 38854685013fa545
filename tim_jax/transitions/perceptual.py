"""A perceptual term: the data x̂ that a prediction stands for, compared with x by frozen features.

    λ mean_l mean ‖φ_l(x̂) − φ_l(x)‖²   where t is at most `max_time` of the time domain,   x̂ = (σ̂_t x_t − σ_t F)/C_t

As in pixel MeanFlow (arXiv 2601.22158), whose φ are pretrained, and whose x̂ is that of F(x_t, t, r) for any r. Near
noise x̂ is a mean of many images, which no features should make sharp. The two entries of the table need no weights from
elsewhere; a pretrained φ is a function of one's own in it, by a plugin.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import data_and_noise
from tim_jax.transitions.transports import Transport

Features: TypeAlias = Callable[[jax.Array], Sequence[jax.Array]]  # images (B, h, w, C) → maps (B, …), of any shapes

UNUSED = {
    ("objective.perceptual.features", "objective.perceptual.max_time"): (
        "objective.perceptual.weight is 0",
        lambda c: not c.objective.perceptual.weight,
    ),
}


def halved(x: jax.Array) -> jax.Array:
    """Returns means (B, h/2, w/2, C) over 2 × 2 positions; a last odd row or column is left out."""
    B, h, w, C = x.shape
    even = x[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(B, h // 2, 2, w // 2, 2, C).mean((2, 4))


def pyramid(x: jax.Array, levels: int = 4) -> list[jax.Array]:
    """Returns the images, and those of half, a quarter, … of their size, as far as these have two positions a side."""
    found = [x]
    while len(found) < levels and min(found[-1].shape[1:3]) >= 4:
        found.append(halved(found[-1]))
    return found


def random_convolutions(x: jax.Array, levels: int = 3, width: int = 32) -> list[jax.Array]:
    """Returns maps of 3 × 3 convolutions with fixed random weights and ReLUs, of unit length over channels as in LPIPS.

    After each of them positions are halved.
    """
    found: list[jax.Array] = []
    for level in range(levels):
        shape = (3, 3, x.shape[-1], width)
        weights = jax.random.normal(jax.random.fold_in(jax.random.key(0), level), shape, x.dtype)
        weights = weights * (2 / (9 * x.shape[-1])) ** 0.5
        axes = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=axes))
        found.append(x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-6))
        if min(x.shape[1:3]) < 4:
            break
        x = halved(x)
    return found


PERCEPTUAL: dict[str, Features] = {"random_convolutions": random_convolutions, "pyramid": pyramid}


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Settings of the formula above."""

    weight: float = 0.0  # λ; 0: none
    features: str = "random_convolutions"  # φ: random_convolutions, pyramid, or a name that a plugin adds
    max_time: float = 0.8  # above which there is no such term, as a share of the time domain

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.weight < 0:
            raise ValueError(f"objective.perceptual.weight is {self.weight}; it must be at least 0")
        if self.features not in PERCEPTUAL:
            raise ValueError(
                f"objective.perceptual.features is {self.features!r}; it must be one of {', '.join(PERCEPTUAL)}"
            )
        if not 0 < self.max_time <= 1:
            raise ValueError(f"objective.perceptual.max_time is {self.max_time}; it must lie in (0, 1]")

    def __call__(self, transport: Transport, x: jax.Array, x_t: jax.Array, F: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the term (B,), without λ.

        Args:
            transport: The transport.
            x: Images (B, h, w, C).
            x_t: Their states.
            F: The predictions at x_t, which get the gradient.
            t: The times (B,).

        Raises:
            ValueError: The examples are no images.
        """
        if x.ndim != 4:
            raise ValueError(
                f"objective.perceptual.weight is {self.weight}; it must be 0 for examples {x.shape[1:]}, which are no "
                "images (h, w, C)"
            )
        applies = transport.share(t) <= self.max_time
        x_hat, _ = data_and_noise(transport, x_t, F, jnp.where(applies, t, transport.T_min))
        maps = PERCEPTUAL[self.features](jnp.concatenate([x_hat, x]))
        errors = [((found[: len(x)] - found[len(x) :]) ** 2).reshape(len(x), -1).mean(1) for found in maps]
        return jnp.where(applies, sum(errors[1:], errors[0]) / len(errors), 0.0)
