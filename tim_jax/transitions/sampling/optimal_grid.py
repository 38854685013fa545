"""A step grid found on a trained model's own errors, by a dynamic programme.

Candidates are times τ_0 > … > τ_n. A jump from τ_i to τ_j costs c_{ij}: the distance by which one step from a state
x_{τ_i} of a path of many small steps misses that path's x_{τ_j}, in units of the standard deviation of x_{τ_j}. For a
Gaussian, whose flow map scales all deviations alike, the miss has that size at the end of the path as well, so that
costs may be added. The cheapest sequence of k steps from τ_0 to τ_n is the grid for k steps.
"""

from collections.abc import Callable

import numpy as np

from tim_jax.transitions.sampling.plans import host_transport, ratios
from tim_jax.transitions.transports import Transport


def candidate_times(transport: Transport, count: int) -> np.ndarray:
    """Returns `count` times from T_max to T_min, at equal steps of the noise level arctan(σ/α)."""
    first, last = np.arctan(ratios(transport, np.array([transport.T_max, transport.T_min])))
    times = host_transport(transport).time_of_ratio(np.tan(np.linspace(first, last, count)))
    times[0], times[-1] = transport.T_max, transport.T_min
    return times


def jump_costs(path: np.ndarray, step: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Returns the costs c (n + 1, n + 1), infinite where a jump would not go down.

    Args:
        path: (n + 1, N, …), the states of N ≥ 2 paths at each candidate time.
        step: Maps (i, j) to the states (N, …) that one step from path[i] to candidate j gives.
    """
    path = path.astype(np.float64)
    deviation = [np.sqrt(np.mean((states - states.mean(0)) ** 2)) for states in path]
    cost = np.full((len(path), len(path)), np.inf)
    for i in range(len(path) - 1):
        for j in range(i + 1, len(path)):
            cost[i, j] = np.sqrt(np.mean((step(i, j) - path[j]) ** 2)) / deviation[j]
    return cost


def cheapest(cost: np.ndarray, steps: int, factor: float = 1.0) -> tuple[np.ndarray, float]:
    """Finds the cheapest sequence of a given number of steps.

    Args:
        cost: (n + 1, n + 1), infinite where there is no jump.
        steps: The number of steps, 1 … n.
        factor: What the cost of each step weighs relative to the one before it (GITS, arXiv 2405.11326): above 1 where
            late errors count more than the sum says.

    Returns:
        The indices (steps + 1,) from the first to the last candidate, and the total cost.

    Raises:
        ValueError: The number of steps is out of range.
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"steps is {steps}; between {last + 1} candidate times there are 1 … {last}")
    total = np.where(np.arange(last + 1) == 0, 0.0, np.inf)  # the cost to each candidate, so far by no steps
    came_from = []
    for step in range(steps):
        through = total[:, None] + factor**step * cost
        came_from.append(through.argmin(0))
        total = through.min(0)
    indices = [last]
    for before in reversed(came_from):
        indices.append(int(before[indices[-1]]))
    return np.array(indices[::-1]), float(total[last])
