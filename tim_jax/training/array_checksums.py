"""Checksums of arrays where they lie: every device sums up its own copies, which are then compared on the devices.

The checksum of words b_i of 32 bits is Σ_i mix(b_i ⊕ i·φ) mod 2³², where `mix` is a bijection. One element that changes
always changes it; any other change, of elements that have changed places too, goes unseen once in 2³².
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tim_jax.system import cluster
from tim_jax.training.names import name_of

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by the bytes of a number; those of 8 are two
# 2³² over the golden ratio, and the two factors of MurmurHash3's last mix; odd, so that multiplying is a bijection.
PHI, FIRST, SECOND = (np.uint32(factor) for factor in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35))

Position = tuple[int, ...]  # of a device in the mesh


def checksum(x: jax.Array) -> jax.Array:
    """Returns the checksum of an array, a uint32 scalar; of a device's own part within `jax.shard_map`."""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize])
    # A CPU has vector instructions for a long loop and not for nested ones; a TPU would have to lay the array out anew.
    return jax.lax.platform_dependent(words, cpu=lambda words: _summed(words.ravel()), default=_summed)


def _summed(words: jax.Array) -> jax.Array:
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = words.astype(jnp.uint32) ^ (index * PHI)
    mixed = (mixed ^ (mixed >> 16)) * FIRST
    mixed = (mixed ^ (mixed >> 13)) * SECOND
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Checksums:
    """The checksums of all arrays of a tree.

    Attributes:
        mesh: The devices.
        specs: How the arrays lie on it.
        structure: Of the tree.
        table: uint32 (axes of the mesh …, arrays), every checksum on the device that it is of.
        differ: Whether copies of an array differ, or any checksum from the one expected; bool scalar, on all devices.
    """

    mesh: Mesh
    specs: tuple[PartitionSpec, ...]
    structure: Any
    table: jax.Array
    differ: jax.Array

    def names(self, arrays: Sequence[int]) -> list[str]:
        """Returns the names of arrays by their numbers."""
        paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(self.structure, range(len(self.specs))))
        return [name_of(paths[array][0]) for array in arrays]

    def gathered(self) -> np.ndarray:
        """Returns the table on the host; all processes must call this."""
        return cluster.gathered(self.table)


def checksums(tree: Any, expected: Checksums | None = None) -> Checksums:
    """Sums up a tree of arrays on a mesh, and compares the copies that devices hold of the same part.

    Args:
        tree: Arrays with a `NamedSharding`.
        expected: Earlier checksums of the same arrays, with which these are compared as well.
    """
    leaves, structure = jax.tree.flatten(tree)
    mesh, specs = leaves[0].sharding.mesh, tuple(leaf.sharding.spec for leaf in leaves)
    table, differ = _on_mesh(mesh, specs, leaves, *(() if expected is None else (expected.table,)))
    return Checksums(mesh, specs, structure, table, differ)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _on_mesh(mesh: Mesh, specs: tuple[PartitionSpec, ...], leaves: list[jax.Array], *expected: jax.Array) -> Any:
    ones, of_table = (1,) * mesh.devices.ndim, PartitionSpec(*mesh.axis_names, None)

    def on_device(leaves: list[jax.Array], *expected: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums = jnp.stack([checksum(leaf) for leaf in leaves])
        differ = jnp.array(False)
        for table in expected:
            differ |= (sums != table.ravel()).any()
        for axes, arrays in _replicated(mesh, specs).items():
            some = sums[np.array(arrays)]
            highest, lowest = jnp.split(jax.lax.pmax(jnp.concatenate([some, ~some]), axes), 2)
            differ |= (highest != ~lowest).any()
        return sums.reshape(*ones, -1), jax.lax.pmax(differ.astype(jnp.uint32), mesh.axis_names) > 0

    in_specs = (list(specs), *[of_table] * len(expected))
    on_mesh = jax.shard_map(
        on_device, mesh=mesh, in_specs=in_specs, out_specs=(of_table, PartitionSpec()), check_vma=False
    )
    return on_mesh(leaves, *expected)


def _replicated(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> dict[tuple[str, ...], list[int]]:
    """The numbers of the arrays by the axes of the mesh along which devices hold copies of them."""
    found: dict[tuple[str, ...], list[int]] = {}
    for array, spec in enumerate(specs):
        split = _split(spec)
        axes = tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis not in split)
        if axes:
            found.setdefault(axes, []).append(array)
    return found


def _split(spec: PartitionSpec) -> set[str]:
    return {axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ())}


def share_with_copies(mesh: Mesh, tree: Any) -> float:
    """Returns the share of the bytes of a tree of arrays, or of their shapes, of which other devices have copies."""
    leaves = jax.tree.leaves(tree)
    sizes = [math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves]
    with_copies = itertools.chain(*_replicated(mesh, tuple(leaf.sharding.spec for leaf in leaves)).values())
    return sum(sizes[array] for array in with_copies) / max(sum(sizes), 1)


@dataclasses.dataclass(frozen=True)
class Odd:
    """Where checksums are not what they should be.

    Attributes:
        positions: Of the devices, in the mesh.
        arrays: Numbers of the arrays.
        certain: Whether it is these devices, and not others that hold the same arrays.
    """

    positions: list[Position]
    arrays: list[int]
    certain: bool


def odd_copies(sums: Checksums) -> Odd:
    """Returns the devices whose copy of an array is not that of most; both of two, or all where no most agree.

    All processes must call this.
    """
    table, axes = sums.gathered(), sums.mesh.axis_names
    positions: dict[Position, None] = {}
    arrays, certain = [], True
    for array, spec in enumerate(sums.specs):
        split = [number for number, axis in enumerate(axes) if axis in _split(spec)]
        parts: dict[Position, list[Position]] = {}
        for position in np.ndindex(table.shape[:-1]):
            parts.setdefault(tuple(position[number] for number in split), []).append(position)
        for copies in parts.values():
            values = [int(table[*position, array]) for position in copies]
            (value, count), *others = collections.Counter(values).most_common()
            if others:
                most = count > len(copies) / 2
                certain &= most
                positions |= {at: None for at, own in zip(copies, values, strict=True) if not most or own != value}
                arrays.append(array)
    return Odd(sorted(positions), list(dict.fromkeys(arrays)), certain)


def odd_against(table: np.ndarray, expected: np.ndarray) -> Odd:
    """Returns the devices with other checksums in a table than those expected."""
    wrong = table != expected
    positions = [tuple(int(i) for i in position) for position in np.argwhere(wrong.any(-1))]
    return Odd(positions, np.flatnonzero(wrong.any(tuple(range(wrong.ndim - 1)))).tolist(), True)


def holders(mesh: Mesh, per_example: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> list[Position]:
    """Returns where the devices are that hold the examples of which a step returned other numbers than the other time.

    Args:
        mesh: Over whose first two axes a batch lies.
        per_example: Arrays (B,) by name.
        other: Those of the other time.
    """
    wrong = [per_example[name].view(np.uint8).reshape(len(per_example[name]), -1) for name in sorted(per_example)]
    right = [other[name].view(np.uint8).reshape(len(other[name]), -1) for name in sorted(other)]
    examples = np.any([(a != b).any(-1) for a, b in zip(wrong, right, strict=True)], axis=0)
    parts = examples.reshape(mesh.devices.shape[0], mesh.devices.shape[1], -1).any(-1)
    return [position for position in np.ndindex(mesh.devices.shape) if parts[position[:2]]]
