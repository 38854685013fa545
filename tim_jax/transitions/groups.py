"""Static splits of a batch into two groups of examples, alike on every device, and groups of consecutive examples.

An objective computes no tangent for examples on the diagonal (r = t), and therefore separates them from the others
before it calls the network. A batch of B examples lies on `shards` devices in contiguous blocks. Where every block has
the same pattern of flags, the split happens inside the blocks and moves nothing between devices. Where it has not (the
examples of a device times the share is not whole), no example is selected and all of them take the general way, which
changes no number: the factor of the derivative is 0 at r = t.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = TypeVar("Tree")  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Split:
    """Two static groups of examples.

    Attributes:
        selected: Indices, within a block, of examples that all have the flag; may be empty.
        remaining: Indices, within a block, of all others.
        blocks: The number of equal contiguous blocks.
    """

    selected: tuple[int, ...]
    remaining: tuple[int, ...]
    blocks: int

    def take(self, examples: Tree, group: tuple[int, ...]) -> Tree:
        """Returns the examples of one group from a pytree of (B, …) arrays."""
        index = np.array(group, int)

        def pick(leaf: jax.Array) -> jax.Array:
            blocked = leaf.reshape(self.blocks, -1, *leaf.shape[1:])
            return blocked[:, index].reshape(-1, *leaf.shape[1:])

        picked: Tree = jax.tree.map(pick, examples)
        return picked

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The groups that are not empty, `remaining` last."""
        return [group for group in (self.selected, self.remaining) if group]

    def merge(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Joins one array per group, each (examples of the group, …), to one (B, …) in the batch's order."""
        blocked = [part.reshape(self.blocks, -1, *part.shape[1:]) for part in parts]
        order = np.argsort(self.selected + self.remaining)
        joined = jnp.concatenate(blocked, axis=1)[:, order]
        return joined.reshape(-1, *joined.shape[2:])


def split_examples(flags: np.ndarray, shards: int = 1) -> Split:
    """Returns the split of a batch by static flags.

    Args:
        flags: (B,) bool, true for the examples to select, such as those with r = t.
        shards: The number of devices on which the batch lies in contiguous blocks.

    Raises:
        ValueError: The batch does not divide over the devices.
    """
    count = len(flags)
    if count % shards:
        raise ValueError(f"a batch of {count} examples does not divide over {shards} devices")
    blocks = flags.reshape(shards, -1)
    if (blocks == blocks[0]).all():
        return Split(tuple(np.flatnonzero(blocks[0]).tolist()), tuple(np.flatnonzero(~blocks[0]).tolist()), shards)
    return Split((), tuple(range(count // shards)), shards)


def in_groups(examples: Tree, size: int) -> Tree:
    """Returns (B, …) arrays as (B/size, size, …): groups of consecutive examples.

    A batch that is a multiple of devices times `size` has every group on one device.
    """
    grouped: Tree = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), examples)
    return grouped


def for_each(groups: Tree, size: int) -> Tree:
    """Returns what belongs to groups, (B/size, …) arrays, for each of their examples: (B, …)."""
    repeated: Tree = jax.tree.map(lambda leaf: jnp.repeat(leaf, size, axis=0), groups)
    return repeated
