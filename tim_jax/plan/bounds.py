"""Bounds: how fast a step can be at best, as compute, memory and interconnect each allow."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tim_jax.plan.collectives import Collective
from tim_jax.plan.memory import Memory
from tim_jax.system.topologies import Topology


class Program(Protocol):
    """What bounds the time of a step, such as a `compile.Step`.

    Attributes:
        memory: Bytes on one chip.
        executed_flops: Operations of matrix products on all chips.
    """

    @property
    def memory(self) -> Memory: ...

    @property
    def executed_flops(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that a step takes at least, if one resource alone limits it.

    Attributes:
        compute: of matrix products at the peak speed of bfloat16.
        memory: of reading and writing the state, reading teachers and batch, and writing and reading temporaries and
            gathered arrays once each.
        interconnect: of moving every byte at full speed, over links within an island and the network between islands.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """Seconds of a step if the three overlap completely."""
        return max(dataclasses.astuple(self))

    @property
    def name(self) -> str:
        """The name of the largest."""
        seconds = dataclasses.asdict(self)
        return max(seconds, key=lambda name: seconds[name])


def bounds(step: Program, topology: Topology, collectives: Sequence[Collective]) -> Bounds:
    """Returns the bounds of a compiled step on a topology, whose chips give the speeds."""
    chip, memory = topology.chip, step.memory
    gathers = [(whole(c), c.count) for c in collectives if c.kind == "all-gather"]
    temporaries = max(0.0, memory.activations - sum(size for size, _ in gathers))
    traffic = (
        2 * (memory.parameters + memory.emas + memory.optimizer + memory.banks + temporaries)
        + memory.teachers
        + memory.batch
    )
    traffic += 2 * sum(size * count for size, count in gathers)
    over_network = sum(network_bytes(c, topology.island) * c.count for c in collectives)
    over_links = sum(c.bytes * c.count for c in collectives) - over_network
    return Bounds(
        compute=step.executed_flops / len(topology.devices) / chip.flops,
        memory=traffic / chip.memory_bandwidth,
        interconnect=max(over_links / chip.link, over_network / chip.network),
    )


def whole(collective: Collective) -> float:
    """Returns the bytes of the array that n chips gather or scatter, of which each receives (n − 1)/n."""
    n = collective.groups.shape[1]
    return collective.bytes * n / (n - 1)


def network_bytes(collective: Collective, island: int) -> float:
    """Returns how many of the bytes that a chip receives each time must come from other islands.

    Of S bytes gathered among h islands of m chips, an island lacks (h − 1)/h, which come over the network of m chips.

    Args:
        collective: the collective.
        island: chips of an island, which are consecutive.
    """
    islands = collective.groups // island
    h = max(len(np.unique(group)) for group in islands)
    if h == 1:
        return 0.0
    if collective.kind == "collective-permute":
        return collective.bytes
    return whole(collective) * (h - 1) / h / (collective.groups.shape[1] / h)
