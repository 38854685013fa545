"""Step grids: the times of a sampler's steps, from a start, T_max as a rule, down to T_min.

A grid is a function of the transport, the start, fractions u (steps + 1,) from 1 to 0 and a shift, and one line in
GRIDS. The grid `optimal` is found on a trained model (see `optimal_grid.py`).
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tim_jax.transitions.sampling.plans import host_transport, ratios
from tim_jax.transitions.transports import Transport

Grid: TypeAlias = Callable[[Transport, float, np.ndarray, float], np.ndarray]

EDM_RATIOS = (0.002, 80.0)  # of noise to signal, where EDM's grid ends and begins
EDM_RHO = 7


def uniform(transport: Transport, start: float, u: np.ndarray, shift: float) -> np.ndarray:
    """Equal steps in time."""
    return transport.T_min + (start - transport.T_min) * u


def shifted(transport: Transport, start: float, u: np.ndarray, shift: float) -> np.ndarray:
    """Equal steps in u, then u → s u/(1 + (s − 1) u): the steps near noise are shorter for a shift s above 1."""
    return uniform(transport, start, shift * u / (1 + (shift - 1) * u), shift)


def edm(transport: Transport, start: float, u: np.ndarray, shift: float) -> np.ndarray:
    """Equal steps in (σ/α)^{1/7}, from at most 80 to at least 0.002 (arXiv 2206.00364, eq. 5)."""
    highest, lowest = ratios(transport, np.array([start, transport.T_min]))
    highest, lowest = min(highest, EDM_RATIOS[1]), max(lowest, min(EDM_RATIOS[0], highest))
    root = lowest ** (1 / EDM_RHO) + u * (highest ** (1 / EDM_RHO) - lowest ** (1 / EDM_RHO))
    return host_transport(transport).time_of_ratio(root**EDM_RHO)


GRIDS: dict[str, Grid] = {"uniform": uniform, "edm": edm, "shifted": shifted}


def make_grid(
    name: str, transport: Transport, steps: int, start: float | None = None, shift: float = 1.0
) -> np.ndarray:
    """Returns the times (steps + 1,) float64 of a grid, with exact ends.

    Args:
        name: A name in GRIDS.
        transport: The transport.
        steps: The number of steps, at least 1.
        start: The first time, in (T_min, T_max]; T_max by default. The last time is T_min.
        shift: The shift s > 0 of "shifted".

    Raises:
        ValueError: The number of steps or the start is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    start = transport.T_max if start is None else start
    if not transport.T_min < start <= transport.T_max:
        raise ValueError(
            f"start is {start}; times of {transport.name} lie in {transport.T_min:g} … {transport.T_max:g}"
        )
    times = GRIDS[name](transport, start, 1 - np.arange(steps + 1) / steps, shift)
    times[0], times[-1] = start, transport.T_min
    return times
