"""What proves that a state is fit to be saved, and that what was saved can be restored."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tim_jax.system.user_errors import one_line
from tim_jax.training import checksums
from tim_jax.training.names import by_name


class _Silent:
    """An open array of TensorStore, which does not say how it is stored.

    What `spec().to_json()` returns is never freed (TensorStore 0.1.86), and orbax asks every array for it: some 1 MiB
    for each checkpoint. Where that fails, orbax does without.
    """

    base = None

    def __init__(self, array: Any):
        self._array = array

    def spec(self) -> Any:
        raise NotImplementedError("it is not asked for")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)


@functools.cache
def _ask_less() -> None:
    """Has orbax describe arrays that are `_Silent`, where it is a version that does so by this function (0.12.8)."""
    try:
        from orbax.checkpoint._src.serialization import tensorstore_utils

        describe = tensorstore_utils.array_metadata_from_tensorstore
    except (ImportError, AttributeError):
        return
    tensorstore_utils.array_metadata_from_tensorstore = lambda array, *args, **more: describe(
        _Silent(array), *args, **more
    )


class NotProven(RuntimeError):
    """What was to be written is not fit to go on from, or what was written cannot be read back."""


def not_finite(state: Any) -> str | None:
    """Returns the name of an array of a tree that has numbers which are not finite, or None."""
    arrays = {name: leaf for name, leaf in by_name(state).items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    finite = np.asarray(_all_finite(list(arrays.values()))) if arrays else np.ones(0, bool)
    return next((name for name, good in zip(arrays, finite, strict=True) if not good), None)


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    """Whether each of several arrays is finite, (n,) of bool."""
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def broken(folder: epath.Path, shapes: list[tuple] | None = None) -> str | None:
    """Returns why the structure of a checkpoint's state cannot be restored, or None: every array is opened.

    Args:
        folder: Of the checkpoint.
        shapes: Shapes and types that its arrays must have, sorted; None for any.
    """
    _ask_less()
    try:
        if found := checksums.unreadable(folder / "state"):
            return f"state/{found}"
        tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
    except Exception as error:  # orbax and tensorstore have errors of many kinds
        return f"its state cannot be restored: {one_line(error)[:200]}"
    if shapes is not None and shapes_of(tree) != shapes:
        return "its state has other arrays than what was saved"
    return None


def shapes_of(tree: Any) -> list[tuple]:
    """The shapes and types of all arrays of a tree, sorted."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sorted((tuple(leaf.shape), str(np.dtype(leaf.dtype))) for leaf in leaves)
