"""How fast a step can be at best: what compute, memory and interconnect each allow."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tim_jax.plan.collectives import Collective
from tim_jax.plan.compile import Step
from tim_jax.system.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that a step takes at least, were nothing else in its way.

    compute: matrix products at the peak of bfloat16. memory: state read and written, teachers and batch read,
    temporaries and gathered arrays written and read once each. interconnect: every byte at full speed, over links
    within an island and over the network between islands.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """Seconds of a step if the three overlap wholly."""
        return max(dataclasses.astuple(self))

    @property
    def name(self) -> str:
        """Which of them binds."""
        return max(dataclasses.asdict(self), key=dataclasses.asdict(self).get)


def bounds(step: Step, topology: Topology, collectives: Sequence[Collective]) -> Bounds:
    chip, memory = topology.chip, step.memory
    gathers = [(whole(c), c.count) for c in collectives if c.kind == "all-gather"]
    temporaries = max(0.0, memory.activations - sum(size for size, _ in gathers))
    traffic = 2 * (memory.parameters + memory.emas + memory.optimizer + temporaries) + memory.teachers + memory.batch
    traffic += 2 * sum(size * count for size, count in gathers)
    over_network = sum(network_bytes(c, topology.island) * c.count for c in collectives)
    over_links = sum(c.bytes * c.count for c in collectives) - over_network
    return Bounds(
        compute=step.executed_flops / len(topology.devices) / chip.flops,
        memory=traffic / chip.memory_bandwidth,
        interconnect=max(over_links / chip.link, over_network / chip.network),
    )


def whole(collective: Collective) -> float:
    """Bytes of the array that a collective among n chips gathers or scatters, of which a chip receives (n − 1)/n."""
    n = collective.groups.shape[1]
    return collective.bytes * n / (n - 1)


def network_bytes(collective: Collective, island: int) -> float:
    """Bytes per chip, of those that it receives each time, that must come from other islands.

    h islands with m chips each: of S bytes an island needs the (h − 1)/h that it does not have, over m chips' network.
    """
    islands = collective.groups // island
    h = max(len(np.unique(group)) for group in islands)
    if h == 1:
        return 0.0
    if collective.kind == "collective-permute":
        return collective.bytes
    return whole(collective) * (h - 1) / h / (collective.groups.shape[1] / h)
