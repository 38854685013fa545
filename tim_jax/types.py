"""The tuples that rooms hand to one another."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

# Types of computation, by their names in configurations.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

PyTree: TypeAlias = Any  # a tree of arrays; JAX has no type for it


class Query(NamedTuple):
    """A group of examples that a network is called on.

    Attributes:
        x_t: States (B, …), such as images (B, h, w, C).
        t, r: The times (B,) where the jump starts and ends, already passed through the transport's c_noise.
        condition: A pytree of (B, ...) arrays: {"label"} or {"text", "mask"}.
        key: Random keys (B,), one per example, for dropout; None turns dropout off.
    """

    x_t: jax.Array
    t: jax.Array
    r: jax.Array
    condition: PyTree
    key: jax.Array | None = None


class TangentQuery(Query):
    """A Query inside a `jax.jvp` that carries tangents.

    An attention with linear memory cannot find this out by itself: it has one differentiation rule for a plain Query,
    which refuses `jax.jvp`, and another one for a TangentQuery, which has no reverse mode outside `jax.jvp`.
    """

    __slots__ = ()


class Output(NamedTuple):
    """A network's output for one Query.

    Attributes:
        F: The prediction (B, …), like the state.
        hidden: Hidden states (B, N, Z) for feature alignment, or None.
        heads: A dictionary with the outputs of the extra heads, or None.
    """

    F: jax.Array
    hidden: jax.Array | None = None
    heads: Any = None


class Examples(NamedTuple):
    """A global batch of B examples as an objective sees it.

    Attributes:
        x: Data (B, …), such as images or latents (B, h, w, C).
        noise: Noise of the same shape.
        condition, null_condition: Pytrees of (B, ...) arrays.
        is_null: (B,) bool, true for examples that are trained with the null condition.
        features: Features (B, N, Z) of a frozen image encoder, or None.
        features_mask: (B,), zero for examples without features; None where all have them.
        weight: Loss weights (B,), zero for padding.
        keys: Random keys (B,) for the network's dropout, or None.
        known: The network's own prediction (B, …) at r = t, where a target has been made with it, or None.
        loser: Data of the same shape and condition that x was preferred to, or None.
        reward: The reward (B,) of x, or None.
    """

    x: jax.Array
    noise: jax.Array
    condition: PyTree
    null_condition: PyTree
    is_null: jax.Array
    features: jax.Array | None = None
    features_mask: jax.Array | None = None
    weight: jax.Array | None = None
    keys: jax.Array | None = None
    known: jax.Array | None = None
    loser: jax.Array | None = None
    reward: jax.Array | None = None
