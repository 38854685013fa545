"""FlowTurbo, arXiv 2409.18128: steps of three kinds in a row, of which each takes a slope from the one before.

With d at the start of a step and e at its predicted end y = x_t + (r − t) d, every step ends at

    x_r = x_t + (r − t) (d + e)/2

H, Heun's: d and e are evaluated. P, the pseudo-corrector: d is the e of the step before, if that was P, too; e is
evaluated. R, the refiner: a small network makes d of the slope that is handed on, and e of d. P hands on e, others d.
"""

import re

import numpy as np

from tim_jax.transitions.sampling.plans import SamplingPlan, linear, velocity
from tim_jax.transitions.transports import Transport

NETWORK = -1  # in `SamplingPlan.refined`: an evaluation of the network itself
PATTERN = re.compile(r"([HPR])(\d*)")


def check_pattern(pattern: str) -> None:
    """Raises ValueError, naming the key, for what is no pattern of steps."""
    parts = PATTERN.findall(pattern)
    if not parts or "".join(map("".join, parts)) != pattern or any(count == "0" for _, count in parts):
        raise ValueError(
            f"sampling.pattern is {pattern!r}; it must be letters H, P, R with numbers of steps, such as 'H1P5R'"
        )
    if parts[0][0] == "R":
        raise ValueError(f"sampling.pattern is {pattern!r}; it must begin with H or P, since R refines a slope")
    if parts[-1][1] or not all(count for _, count in parts[:-1]):
        raise ValueError(
            f"sampling.pattern is {pattern!r}; it must have a number of steps for every letter but the last, which has "
            "all that are left"
        )


def kinds(pattern: str, steps: int) -> str:
    """Returns the letter of each step: H1P5R for eight steps is HPPPPPRR; fewer steps are the first of them."""
    return "".join(letter * int(count or steps) for letter, count in PATTERN.findall(pattern))[:steps]


def continues(of_steps: str, i: int) -> bool:
    """Whether step i has the slope of the one before, and evaluates the network once."""
    return of_steps[max(i - 1, 0) : i + 1] == "PP"


def flowturbo(transport: Transport, times: np.ndarray, pattern: str) -> SamplingPlan:
    """The steps of a pattern (see `check_pattern`); second order without R."""
    steps = len(times) - 1
    of_state, of_F = velocity(transport, times)
    basis = np.eye(2 * (2 * steps + 1)).reshape(2, 2 * steps + 1, 2, -1)  # of states and predictions, (2, evaluations)
    rows: list[np.ndarray] = []  # the state at each evaluation but the first, and the last state
    at: list[int] = []  # the time of each evaluation
    refined: list[int] = []

    def evaluate(point: np.ndarray, time: int, handed: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """The state as one of its own, its slope, and the number of the evaluation."""
        j = len(at)
        rows.append(point)
        at.append(time)
        refined.append(NETWORK if handed is None else j - 1 - handed)
        state, prediction = basis[0, j], basis[1, j]
        return state, of_state[time] * state + of_F[time] * prediction, j

    x, d, handed = basis[0, 0], basis[0, 0], None
    of_steps = kinds(pattern, steps)
    for i, kind in enumerate(of_steps):
        h = times[i + 1] - times[i]
        if not continues(of_steps, i):
            x, d, handed = evaluate(x, i, handed if kind == "R" else None)
        y, e, last = evaluate(x + h * d, i + 1, handed if kind == "R" else None)
        x = y + h / 2 * (e - d)
        if kind == "P":
            d, handed = e, last
    a, b = (np.zeros((len(at), len(at))) for _ in range(2))
    for j, row in enumerate([*rows[1:], x]):
        for k in range(j + 1):
            a[j, k], b[j, k] = row[:, j - k]
    memory = 1 + max(np.nonzero((a != 0).any(0) | (b != 0).any(0))[0].max(), *refined)
    plan = linear(times[at], times[at], a[:, :memory].T, b[:, :memory].T)
    return plan._replace(refined=np.array(refined) if max(refined) > NETWORK else None)


def ends(pattern: str, steps: int) -> np.ndarray:
    """Returns the number (steps + 1,) of the last evaluation at each time, and how many there are."""
    of_steps = kinds(pattern, steps)
    starts = [not continues(of_steps, i) for i in range(steps)]
    before = np.cumsum([0, *(1 + start for start in starts)])
    return np.append([n - (not start) for n, start in zip(before[:-1], starts)], before[-1])
