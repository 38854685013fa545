"""What rooms hand to one another."""

import dataclasses
from collections.abc import Mapping
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
        taps: The states (B, N, D) after the blocks that were asked for, a tuple in their order, or None.
    """

    F: jax.Array
    hidden: jax.Array | None = None
    heads: Any = None
    taps: Any = None


class ClassScores(NamedTuple):
    """What a classifier says of B images.

    Attributes:
        cosines: Of their features with the embedding of each class (B, K).
        logits: Of the classes (B, K).
        features: Of the images, of length 1 (B, d); None where nothing is compared by them.
    """

    cosines: jax.Array
    logits: jax.Array
    features: jax.Array | None = None


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


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """How a network that trains beside the online network is trained: by an optimizer of its own.

    Where a step makes several of its updates, all but the last come before that of the online network, on the same
    batch with other random keys.
    """

    learning_rate: float = 0.0  # 0: optimizer.learning_rate, with the same schedule; frozen parameters stay so
    updates: int = 1  # for each update of the online network
    average: float = 0.0  # decay of an EMA of its weights, which then stands for it wherever it does not learn; 0: none

    def check(self, key: str) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be. key: where they are."""
        if self.learning_rate < 0:
            raise ValueError(f"{key}.learning_rate is {self.learning_rate}; it must be at least 0")
        if self.updates < 1:
            raise ValueError(f"{key}.updates is {self.updates}; it must be at least 1")
        if not 0 <= self.average < 1:
            raise ValueError(f"{key}.average is {self.average}; it must lie in [0, 1)")


class Heads(NamedTuple):
    """An auxiliary network that is no copy of the online network: heads on hidden states of another one.

    Attributes:
        trunk: The name of the network whose states they see.
        blocks: After which of its blocks, counted from 1.
        width: Their hidden width.
        key: The key of `blocks`, for errors.
    """

    trunk: str
    blocks: tuple[int, ...]
    width: int
    key: str


def averages(auxiliary: Mapping[str, Auxiliary]) -> dict[str, tuple[str, float]]:
    """Returns {name of an EMA: (the auxiliary network that it averages, decay)}."""
    return {ema_of(name): (name, each.average) for name, each in auxiliary.items() if each.average}


def ema_of(name: str) -> str:
    """Returns the name of the EMA of an auxiliary network."""
    return f"{name}_average"
