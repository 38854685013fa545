"""Splitting a batch into the rows with r = t ("plain") and the others ("moving"), on every device alike.

The split is static. A batch of B rows lies on `shards` devices in contiguous blocks; where every block holds the same
pattern, the split happens inside the blocks and moves nothing between devices. Where it does not (rows per device
times share is not whole), there are no plain rows: all of them carry the tangent, which changes no number, since the
derivative's factor is 0 at r = t.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Static row groups. plain, moving: row indices within a block; blocks: number of equal contiguous blocks."""

    plain: tuple[int, ...]
    moving: tuple[int, ...]
    blocks: int

    def take(self, rows: Any, group: tuple[int, ...]) -> Any:
        """The rows of one group from a pytree of (B, …) arrays."""
        index = np.array(group, int)

        def pick(leaf):
            blocked = leaf.reshape(self.blocks, -1, *leaf.shape[1:])
            return blocked[:, index].reshape(-1, *leaf.shape[1:])

        return jax.tree.map(pick, rows)

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The groups that hold rows, the moving one last."""
        return [group for group in (self.plain, self.moving) if group]

    def merge(self, parts: list[jax.Array]) -> jax.Array:
        """One array per group, each (rows of the group, …), as (B, …) in the batch's order again."""
        blocked = [part.reshape(self.blocks, -1, *part.shape[1:]) for part in parts]
        order = np.argsort(self.plain + self.moving)
        joined = jnp.concatenate(blocked, axis=1)[:, order]
        return joined.reshape(-1, *joined.shape[2:])


def split_rows(equal: np.ndarray, shards: int = 1) -> Split:
    """The split of rows whose r = t flags are `equal` (B,), lying on `shards` devices in contiguous blocks."""
    rows = len(equal)
    if rows % shards:
        raise ValueError(f"a batch of {rows} rows does not divide over {shards} devices")
    blocks = equal.reshape(shards, -1)
    if (blocks == blocks[0]).all():
        return Split(tuple(np.flatnonzero(blocks[0]).tolist()), tuple(np.flatnonzero(~blocks[0]).tolist()), shards)
    return Split((), tuple(range(rows // shards)), shards)
