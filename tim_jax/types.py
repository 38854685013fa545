"""The tuples that rooms hand to one another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Types of computation, by their names in configurations.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Query(NamedTuple):
    """A group of rows put to a network.

    x_t: (B, h, w, C). t, r: (B,), already passed through the transport's c_noise. condition: a pytree of (B, ...)
    arrays, {"label"} or {"text", "mask"}. key: None, or (B,) random keys, one per row, for dropout.
    """

    x_t: jax.Array
    t: jax.Array
    r: jax.Array
    condition: Any
    key: jax.Array | None = None


class TangentQuery(Query):
    """A Query inside a `jax.jvp` that has tangents for it.

    Not every attention knows this by itself: one with linear memory refuses `jax.jvp` for a plain Query, and for a
    TangentQuery one reverse mode without `jax.jvp`.
    """

    __slots__ = ()


class Output(NamedTuple):
    """A network's answer to one Query: F (B, h, w, C), hidden (B, N, Z) for feature alignment or None, extra heads."""

    F: jax.Array
    hidden: jax.Array | None = None
    heads: Any = None


class Examples(NamedTuple):
    """A global batch as an objective sees it, one row per image.

    x: (B, h, w, C) images or latents. noise: the same shape. condition, null_condition: pytrees of (B, ...) arrays.
    is_null: (B,) bool, rows trained with the null condition. features: (B, N, Z) frozen image features or None, with
    features_mask (B,). weight: (B,), 0 for padding rows. keys: None, or (B,) random keys for the network's dropout.
    """

    x: jax.Array
    noise: jax.Array
    condition: Any
    null_condition: Any
    is_null: jax.Array
    features: jax.Array | None = None
    features_mask: jax.Array | None = None
    weight: jax.Array | None = None
    keys: jax.Array | None = None
