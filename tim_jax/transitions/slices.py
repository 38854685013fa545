"""Slices of a network's depth, each of which denoises an interval of noise levels (DiffusionBlocks, arXiv 2506.14202).

With n slices the depth falls into n parts of as many layers. Slice k learns where t lies in the k-th of n intervals of
equal probability mass, the first one next to data, in the steps k, k + n, …; embeddings and last layer, which all
slices share, learn in all. A step computes the layers of one slice alone, and so does a step of sampling.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.times import QUANTILES, Times
from tim_jax.transitions.transports import Transport

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective


def ends(transport: Transport, times: Times, slices: int) -> tuple[float, ...]:
    """Returns the c_noise of the times (slices − 1,) between the intervals, ascending."""
    if slices < 2:  # a wrong number is refused with the network
        return ()
    with jax.ensure_compile_time_eval():
        between = transport.c_noise(times.quantile(transport, jnp.arange(1, slices) / slices))
    return tuple(np.asarray(between).tolist())


def check(objective: "Objective", draws_times: bool) -> None:
    """Raises ValueError where a step would call slices at times that are not theirs.

    Args:
        objective: Its `slices` is above 1.
        draws_times: Whether its times are those of `times` alone.
    """
    times, moving, slices = objective.times, objective.times.share_equal < 1, objective.slices
    for key, value, right in (
        ("objective.consistency", objective.consistency if moving else "eulerian", "eulerian"),
        ("objective.derivative", objective.derivative if moving else "jvp", "jvp"),
        ("objective.alignment_weight", objective.alignment_weight, 0.0),
        ("times.intervals", times.intervals, "independent"),
        ("times.shift_reference", times.shift_reference, 0.0),
    ):
        if value != right:
            raise ValueError(f"{key} is {value!r}; it must be {right!r} where model.slices is {slices}")
    if times.distribution not in ("default", *QUANTILES):
        raise ValueError(
            f"times.distribution is {times.distribution!r}; it must be one of {', '.join(QUANTILES)} where "
            f"model.slices is {slices}"
        )
    if not draws_times or objective.auxiliary or objective.prediction_input:
        raise ValueError(
            f"objective.name is {objective.name!r}; it must be one whose times are those of `times` alone where "
            f"model.slices is {slices}"
        )
