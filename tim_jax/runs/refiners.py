"""The refiner of `sampling.refiner`: the frozen network of a run of the objective velocity_refiner."""

import dataclasses

from tim_jax.config.run import Run
from tim_jax.runs.teachers import find_frozen, make_teacher
from tim_jax.transitions.objectives.table import OBJECTIVES


def with_refiner(run: Run) -> Run:
    """The run with the refiner that its sampling asks for, if it asks for one.

    Weights are read when samples are drawn, those that `sampling.ema` of the refiner's own configuration names.

    Raises:
        ValueError: naming the key, for a refiner that is not there or does not fit the run.
    """
    if not run.sampling.refines or run.refiner is not None:
        return run
    source = find_frozen(run.sampling.refiner, "sampling.refiner")
    name = source.config.objective.name
    if not OBJECTIVES[name](run.transport).prediction_input:
        raise ValueError(f"{source.where}; it must be a run of the objective velocity_refiner, and is one of {name}")
    return dataclasses.replace(run, refiner=make_teacher(run, source))
