"""Couplings: paths that begin at a degraded image in place of noise (Albergo et al., arXiv 2310.03725).

The noise end of an example's path depends on its data,

    x_t = α_t x + σ_t ε,   ε = m(x) + s ξ,   ξ ~ N(0, 1),

with m(x) the degraded image, which is an input of the network, too. s is `scale` everywhere for super-resolution, and
for inpainting where pixels are missing alone (section 4.1), so that known ones never move. An objective sees nothing
but (x, ε, condition), and its equations hold as they are. A sample starts from σ_{T_max} (m(y) + s ξ) of an image y.

Operators take an image (h, w, C) to the degraded one; a mask (h, w, 1), 1 where pixels are known, is one more channel.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tim_jax.transitions.transports import Transport

KEY = 2**32 - 2  # folded into the key of a batch: a number that nothing else is folded in by
OF_IMAGE = 2**31 - 2  # the same for the key of an image that is sampled

UNUSED = {
    ("objective.coupling.scale",): ("objective.coupling.task is 'none'", lambda c: c.objective.coupling.task == "none"),
    ("objective.coupling.factor",): (
        "objective.coupling.task is not 'super_resolution'",
        lambda c: c.objective.coupling.task != "super_resolution",
    ),
    ("objective.coupling.missing",): (
        "objective.coupling.task is not 'inpainting'",
        lambda c: c.objective.coupling.task != "inpainting",
    ),
}


def super_resolution(coupling: "Coupling", key: jax.Array, x: jax.Array) -> jax.Array:
    """Means over squares of `factor` positions, repeated: (h, w, C); what it returns it leaves as it is."""
    h, w, C = x.shape
    n = coupling.factor
    means = x.reshape(h // n, n, w // n, n, C).mean(axis=(1, 3), keepdims=True)
    return jnp.broadcast_to(means, (h // n, n, w // n, n, C)).reshape(x.shape)


def inpainting(coupling: "Coupling", key: jax.Array, x: jax.Array) -> jax.Array:
    """The image with zeros in a rectangle, and the mask: (h, w, C + 1).

    The rectangle has the share `missing` of the area, a side of the image's own √missing times e^u, |u| ≤ ½, and lies
    anywhere in the image.
    """
    h, w, _ = x.shape
    shape_key, place_key = jax.random.split(key)
    side, stretch = jnp.sqrt(coupling.missing), jnp.exp(jax.random.uniform(shape_key, minval=-0.5, maxval=0.5))
    sides = jnp.minimum(side * jnp.stack([stretch, 1 / stretch]), 1.0)
    height, width = jnp.maximum(jnp.round(sides * jnp.array([h, w])), 1)
    top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * (jnp.array([h - height, w - width]) + 1))
    rows, columns = jnp.arange(h)[:, None, None], jnp.arange(w)[None, :, None]
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    known = (~inside).astype(x.dtype)
    return jnp.concatenate([known * x, known], axis=-1)


def colourisation(coupling: "Coupling", key: jax.Array, x: jax.Array) -> jax.Array:
    """Luma (ITU-R BT.601) in all three channels: (h, w, 3); what it returns it leaves as it is."""
    grey = x @ jnp.array([0.299, 0.587, 0.114], x.dtype)
    return jnp.broadcast_to(grey[..., None], x.shape)


class Operator(NamedTuple):
    """A task of restoration: the operator (coupling, key, x) → image, and whether a mask is its last channel."""

    degrade: Callable[["Coupling", jax.Array, jax.Array], jax.Array]
    masks: bool = False


COUPLINGS: dict[str, Operator] = {
    "super_resolution": Operator(super_resolution),
    "inpainting": Operator(inpainting, masks=True),
    "colourisation": Operator(colourisation),
}


@dataclasses.dataclass(frozen=True)
class Coupling:
    """What the noise end of an example's path depends on; see above."""

    task: str = "none"  # none: independent noise; or a name in COUPLINGS: super_resolution, inpainting, colourisation
    scale: float = 1.0  # standard deviation of the noise on the degraded image, or where pixels are missing
    factor: int = 2  # of super_resolution: positions along a side that become one
    missing: float = 0.25  # of inpainting: share of the area that is missing

    @property
    def active(self) -> bool:
        """Whether the noise depends on the data at all."""
        return self.task != "none"

    def channels(self, channels: int) -> int:
        """The channels of the network's input for examples of `channels`; 0: there is none."""
        return channels + COUPLINGS[self.task].masks if self.active else 0

    def check(self, transport: Transport) -> None:
        """Raises ValueError, naming key and value, for invalid settings and for a path that keeps data to its end."""
        if self.task not in ("none", *COUPLINGS):
            raise ValueError(
                f"objective.coupling.task is {self.task!r}; it must be one of none, {', '.join(COUPLINGS)}"
            )
        if self.scale < 0:
            raise ValueError(f"objective.coupling.scale is {self.scale}; it must be at least 0")
        if self.factor < 2:
            raise ValueError(f"objective.coupling.factor is {self.factor}; it must be at least 2")
        if not 0 < self.missing < 1:
            raise ValueError(f"objective.coupling.missing is {self.missing}; it must lie in (0, 1)")
        if self.active and float(transport.alpha(jnp.asarray(transport.T_max))) > 0.01:
            raise ValueError(
                f"objective.coupling.task is {self.task!r}; it must be 'none' for {transport.name}, whose states hold "
                "a part of the data at all times"
            )

    def check_shape(self, height: int, width: int, channels: int) -> None:
        """Raises ValueError, naming key and value, for examples that the operator cannot take."""
        if self.active and channels not in ((3,) if self.task == "colourisation" else (1, 3)):
            raise ValueError(
                f"objective.coupling.task is {self.task!r}; it must be another one for examples with {channels} "
                "channels (data.channels)"
            )
        if self.task == "super_resolution" and (height % self.factor or width % self.factor):
            raise ValueError(
                f"objective.coupling.factor is {self.factor}; it must divide the height and width of examples, "
                f"{height} and {width}"
            )

    def degrade(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Returns condition["image"] (B, h, w, channels) of images (B, h, w, C), each by its own key (B,)."""
        operator = COUPLINGS[self.task]
        image: jax.Array = jax.vmap(lambda key, x: operator.degrade(self, key, x))(keys, x)
        return image

    def couple(self, key: jax.Array, x: jax.Array, xi: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns condition["image"] and the noise ends (B, h, w, C) of a batch x, by its key and normal noise ξ."""
        image = self.degrade(jax.random.split(jax.random.fold_in(key, jnp.uint32(KEY)), len(x)), x)
        return image, self.noise(image, xi)

    def mean(self, image: jax.Array) -> jax.Array:
        """Returns m (B, h, w, C) of condition["image"]."""
        return image[..., :-1] if COUPLINGS[self.task].masks else image

    def noise(self, image: jax.Array, xi: jax.Array) -> jax.Array:
        """Returns the end m + s ξ (B, h, w, C) of paths, of condition["image"] and standard normal noise ξ."""
        s = self.scale * (1 - image[..., -1:]) if COUPLINGS[self.task].masks else self.scale
        return self.mean(image) + s * xi
