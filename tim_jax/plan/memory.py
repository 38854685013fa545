"""Bytes that a step needs on each chip, and the largest batch that fits."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip. parameters, emas, optimizer, teachers, batch: from shapes and shardings. activations: what the
    compiler needs besides them, gradients and gathered parameters among it. program: code, constants and padding."""

    parameters: int
    emas: int
    optimizer: int
    teachers: int
    batch: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def of_step(state: Any, batch: Any, compiled: jax.stages.Compiled, teachers: Any = ()) -> Memory:
    """Memory of a compiled step on an abstract state and batch, and abstract parameters of frozen networks."""
    stats = compiled.memory_analysis()
    named = _named(state, batch, teachers)
    arguments = sum(named.values())
    extra = stats.argument_size_in_bytes - arguments + stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = max(extra, 0) + stats.generated_code_size_in_bytes
    return Memory(**named, activations=stats.temp_size_in_bytes, program=program)


def of_refusal(state: Any, batch: Any, message: str, teachers: Any = ()) -> Memory | None:
    """Memory of a step that the TPU compiler refused for want of it, from its message; None if it says nothing."""
    named = _named(state, batch, teachers)
    for pattern, besides in (
        (r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", sum(named.values())),
        (r"HLO temporaries \(([\d.]+)([KMG])\)", 0),
    ):
        if said := re.search(pattern, message):
            size = int(float(said[1]) * 1024 ** (1 + "KMG".index(said[2])))
            return Memory(**named, activations=max(size - besides, 0), program=0)
    return None


def _named(state: Any, batch: Any, teachers: Any) -> dict[str, int]:
    return {
        "parameters": shard_bytes(state.params),
        "emas": shard_bytes(state.emas),
        "optimizer": shard_bytes(state.opt_state),
        "teachers": shard_bytes(teachers),
        "batch": shard_bytes(batch),
    }


def largest_batch(
    measure: Callable[[int], int], rows: int, used: int, capacity: int, unit: int, tries: int = 5
) -> tuple[int, int]:
    """(rows, bytes) of a batch below `rows` that fits, the largest by extrapolation; (0, 0) if not even `unit` does.

    measure: rows → bytes per chip, by a compilation. used: bytes for `rows`, above `capacity`. Bytes are nearly linear
    in rows: half of them gives a line, the line the largest batch (whole units), and a compilation confirms it.
    """
    low, low_bytes, high = 0, 0, rows  # the most rows that fit, the fewest that do not
    last, need, guess = rows, used, rows // 2 // unit * unit
    for turn in range(tries):
        if high - low <= unit:
            break
        guess = min(max(guess, low + unit), high - unit)
        found = measure(guess)
        slope = (need - found) / (last - guess) or 1.0
        last, need = guess, found
        if found > capacity:
            high = guess
        else:
            low, low_bytes = guess, found
            if turn:
                break
        guess = int((guess + (capacity - found) / slope) // unit * unit)
    return low, low_bytes
