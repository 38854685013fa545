"""UniPC, arXiv 2302.04867: a multistep predictor whose end is corrected by the evaluation that takes place there.

The plan holds predicted states alone: with x_i^c the corrected state, D the weights of the predictor and C those of the
corrector, y_{i+1} = k x_i^c + D·x̂ and x_i^c = y_i + (C − D)·x̂ of the step before.
"""

import math

import numpy as np

from tim_jax.transitions.sampling.exponential import LOWER_LAST, jump
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, of_data
from tim_jax.transitions.transports import Transport

VARIANTS = ("bh2", "bh1")


def unipc(transport: Transport, times: np.ndarray, order: int, unipc_variant: str = "bh2") -> SamplingPlan:
    """UniPC-p in x̂, with B(h) = −h (bh1) or e^{−h} − 1 (bh2). Order p + 1 with the corrector.

    B cancels where all weights are solved for. It acts where there is one of them, which is ½: in predictors of two
    terms and correctors of one. Steps at infinite ln λ, and those of more than twice the length of the one before,
    use no earlier predictions.
    """
    host = host_transport(transport)
    keep, weight, h = jump(host, times[:-1], times[1:])
    alpha, steps = host.alpha(times[1:]), len(h)
    weights = np.zeros((steps, order + 1))
    correction = np.zeros(order + 1)  # of the state at hand, by the last predictions; there is none at first
    for i in range(steps):
        used = min(order, i + 1, steps - i if steps < LOWER_LAST else order)
        points = -np.cumsum(h[i - used + 1 : i][::-1]) / h[i]  # of earlier predictions, in units of the step
        if not (np.isfinite(points).all() and np.isfinite(h[i])) or i > 0 and h[i] > 2 * h[i - 1]:
            points = points[:0]  # as in `exponential.multistep`
        predictor = np.zeros(order + 1)
        predictor[0] = weight[i]
        predictor[: len(points) + 1] += alpha[i] * _differences(points, h[i], unipc_variant)
        weights[i] = keep[i] * correction + predictor
        correction = np.zeros(order + 1)
        if np.isfinite(h[i]):
            # The latest prediction first, which is the one at the step's end.
            corrector = alpha[i] * _differences(np.append(points, 1.0), h[i], unipc_variant)
            correction[0] = corrector[-1]
            correction[1 : len(points) + 2] = corrector[:-1]
            correction[1] += weight[i]
            correction[1:] -= predictor[:-1]
    return of_data(transport, times[:-1], keep, weights)


def _differences(points: np.ndarray, h: float, variant: str) -> np.ndarray:
    """Returns −B(h) Σ_k ρ_k D_k/r_k as weights of x̂ at the step's beginning, and at the points r_k."""
    count = len(points)
    if count == 0:
        return np.zeros(1)
    B = -h if variant == "bh1" else math.expm1(-h)
    q = math.expm1(-h) / -h - 1
    b = []
    for i in range(1, count + 1):
        b.append(math.factorial(i) * q / B)
        q = q / -h - 1 / math.factorial(i + 1)
    R = points ** np.arange(count)[:, None]
    rho = np.full(1, 0.5) if count == 1 else np.linalg.solve(R, np.array(b))
    of_points = -B * rho / points
    return np.concatenate([[-of_points.sum()], of_points])
