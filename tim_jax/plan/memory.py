"""Memory: the bytes that a step needs on each chip, and the largest batch that fits."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
        parameters: of the state.
        emas: of the state.
        optimizer: of the state.
        banks: what the objective remembers, of the state.
        teachers: parameters of frozen networks.
        batch: of the input.
        activations: temporaries of the compiler, gradients and gathered parameters among them.
        program: code, constants and padding.
    """

    parameters: int
    emas: int
    optimizer: int
    banks: int
    teachers: int
    batch: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return sum(dataclasses.astuple(self))


def shard_bytes(tree: Any) -> int:
    """Returns the bytes of a tree of abstract arrays on one chip, from shapes and shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def of_step(state: Any, batch: Any, compiled: jax.stages.Compiled, teachers: Any = ()) -> Memory:
    """Returns the memory of a compiled step.

    Args:
        state: abstract training state.
        batch: abstract batch.
        compiled: the step, compiled for them.
        teachers: abstract parameters of frozen networks.
    """
    stats: Any = compiled.memory_analysis()
    named = _named(state, batch, teachers)
    arguments = sum(named.values())
    extra = stats.argument_size_in_bytes - arguments + stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = max(extra, 0) + stats.generated_code_size_in_bytes
    return Memory(**named, activations=stats.temp_size_in_bytes, program=program)


def of_refusal(state: Any, batch: Any, message: str, teachers: Any = ()) -> Memory | None:
    """Returns the memory of a step that the TPU compiler refused because it does not fit.

    Args:
        state: abstract training state.
        batch: abstract batch.
        message: of the compiler's error.
        teachers: abstract parameters of frozen networks.

    Returns:
        The memory that the message states, None if it states none.
    """
    named = _named(state, batch, teachers)
    for pattern, besides in (
        (r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", sum(named.values())),
        (r"HLO temporaries \(([\d.]+)([KMG])\)", 0),
    ):
        if match := re.search(pattern, message):
            size = int(float(match[1]) * 1024 ** (1 + "KMG".index(match[2])))
            return Memory(**named, activations=max(size - besides, 0), program=0)
    return None


def _named(state: Any, batch: Any, teachers: Any) -> dict[str, int]:
    return {
        "parameters": shard_bytes(state.params),
        "emas": shard_bytes(state.emas),
        "optimizer": shard_bytes(state.opt_state),
        "banks": shard_bytes(state.memory),
        "teachers": shard_bytes(teachers),
        "batch": shard_bytes(batch),
    }


def largest_batch(
    measure: Callable[[int], int], batch_size: int, used: int, capacity: int, unit: int, tries: int = 5
) -> tuple[int, int]:
    """Searches for the largest batch that fits.

    Bytes are nearly linear in the size of the batch: half of it gives a line, the line gives the largest batch, and a
    compilation confirms that.

    Args:
        measure: maps the size of a batch to bytes per chip, by a compilation.
        batch_size: of a batch that does not fit.
        used: bytes per chip that it needs.
        capacity: bytes of a chip.
        unit: what the size must be a multiple of.
        tries: compilations at most.

    Returns:
        (size, bytes per chip) of the largest batch that was found; (0, 0) if not even `unit` fits.
    """
    low, low_bytes, high = 0, 0, batch_size  # the largest size that fits, the smallest that does not
    last, need, guess = batch_size, used, batch_size // 2 // unit * unit
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
