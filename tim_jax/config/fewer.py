"""What a run does with fewer devices than it was planned for: the same global batches, in more microbatches.

A device then holds no more examples at a time than it did with all of them, so that what fitted its memory still fits.
"""

import dataclasses
import math

from ml_collections import ConfigDict

from tim_jax.training.mesh import AUTO, AXES
from tim_jax.training.optimizer import OptimizerSettings
from tim_jax.transitions.objective import Objective


def microbatches(batch: int, shards: int, full: int, unit: int = 1) -> int:
    """Returns how many microbatches a smaller mesh makes of each that the whole mesh makes, 0 where none will do.

    Args:
        batch: Size of a global batch.
        shards: Devices over which examples lie.
        full: The same of the whole mesh.
        unit: What a device's part must be a multiple of besides: microbatches of the whole mesh times groups.
    """
    if batch % (shards * unit):
        return 0
    least, most = -(-full // shards), batch // (shards * unit)
    return next((n for n in range(least, most + 1) if batch % (shards * unit * n) == 0), 0)


def shards_of(config: ConfigDict, devices: int) -> int:
    """Returns over how many of so many devices examples lie, 0 where the mesh cannot be made of them."""
    sizes = [config.mesh[axis] for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    free = -1 in sizes or config.mesh.fsdp == AUTO
    if devices % known or not free and devices != known:
        return 0
    return devices // int(config.mesh.tensor * config.mesh.sequence)


def with_microbatches(
    config: ConfigDict, optimizer: OptimizerSettings, objective: Objective, shards: int, planned: int
) -> OptimizerSettings:
    """Returns the settings of the optimizer with the microbatches of a mesh.

    Args:
        config: Of the run.
        optimizer: Its section.
        objective: Of the run.
        shards: Devices over which examples lie.
        planned: Devices that the run was planned for, or 0; with more than there are, `mesh.accumulation` is chosen.

    Raises:
        ValueError: If `mesh.accumulation` is negative.
    """
    more = config.mesh.accumulation
    if more < 0:
        raise ValueError(f"mesh.accumulation is {more}; it must be at least 1, or 0 to be chosen")
    if not more and planned and config.data.batch_size > 0:
        unit = optimizer.accumulation * objective.batch_multiple
        more = microbatches(config.data.batch_size, shards, shards_of(config, planned), unit)
    return dataclasses.replace(optimizer, accumulation=optimizer.accumulation * (more or 1))


def counts(config: ConfigDict, objective: Objective, everyone: int, each: int, least: int) -> list[int]:
    """Returns with how many processes a run can go on, the largest number first; `everyone` is one of them.

    Args:
        config: Of the run, complete.
        objective: Of the run, which may want batches of a size.
        everyone: Number of processes when none is gone.
        each: Devices of a process.
        least: The smallest number of processes.
    """
    full = shards_of(config, everyone * each)
    batch, unit = config.data.batch_size, config.optimizer.accumulation * objective.batch_multiple

    def works(count: int) -> bool:
        shards = shards_of(config, count * each)
        more = shards and microbatches(batch, shards, full, unit)
        if not more:
            return False
        try:
            objective.check_batch(batch // (config.optimizer.accumulation * more))
        except ValueError:
            return False
        return True

    return [everyone, *(count for count in range(everyone - 1, least - 1, -1) if works(count))]
