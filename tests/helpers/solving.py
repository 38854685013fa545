"""Plans run once more, by numpy: from given noise, and for the exact moments of a Gaussian."""

import numpy as np


def solve(plan, F, x, noise=None):
    """All states of a plan. F maps a state and the number of the evaluation to a prediction; noise (n + 1, B, …)."""
    noise = np.zeros((len(plan.c), *x.shape)) if noise is None else noise
    states, predictions, path = [x + plan.c[0] * noise[0]], [], [x]
    for j in range(len(plan.t)):
        predictions.insert(0, F(states[0], j))
        known = range(min(plan.a.shape[1], len(states)))
        following = sum(plan.a[j, k] * states[k] + plan.b[j, k] * predictions[k] for k in known)
        states.insert(0, following + plan.c[j + 1] * noise[j + 1])
        path.append(states[0])
    return np.stack(path)


def moments(plan, host, start, mean, std):
    """Mean and standard deviation of the last state, for data N(mean, std²) and the exact prediction, no noise drawn.

    The prediction is affine in the state, so that the last K states follow a linear recurrence.
    """
    memory = plan.a.shape[1]
    alpha, sigma, alpha_hat, sigma_hat = _coefficients(plan, host)
    gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)  # x̂ = gain (x_t − α mean) + mean
    slope = alpha_hat * gain + sigma_hat * (1 - alpha * gain) / sigma
    offset = (alpha_hat - sigma_hat * alpha / sigma) * (1 - gain * alpha) * mean
    jumps = plan.s != plan.t  # where F is that of the flow map, which scales deviations from the mean
    t, r = plan.t[jumps], plan.s[jumps]
    ratio = np.hypot(host.alpha(r) * std, host.sigma(r)) / np.hypot(alpha[jumps] * std, sigma[jumps])
    A, B = host.coefficient_A(t, r), host.coefficient_B(t, r)
    slope[jumps] = (ratio - A) / B
    offset[jumps] = (host.alpha(r) - ratio * alpha[jumps]) * mean / B
    expected, covariance = np.zeros(memory), np.zeros((memory, memory))
    expected[0] = host.alpha(start) * mean
    covariance[0, 0] = (host.alpha(start) * std) ** 2 + host.sigma(start) ** 2 + plan.c[0] ** 2
    for j in range(len(plan.t)):
        step = np.eye(memory, k=-1)
        step[0] = plan.a[j]
        constant = 0.0
        for k in range(min(memory, j + 1)):
            step[0, k] += plan.b[j, k] * slope[j - k]
            constant += plan.b[j, k] * offset[j - k]
        expected = step @ expected
        expected[0] += constant
        covariance = step @ covariance @ step.T
        covariance[0, 0] += plan.c[j + 1] ** 2
    return expected[0], np.sqrt(covariance[0, 0])


def mixture(plan, host, mean, variance):
    """(state, number of the evaluation) → the exact F of a plan for ½N(mean, variance) + ½N(−mean, variance)."""
    alpha, sigma, alpha_hat, sigma_hat = _coefficients(plan, host)
    total = alpha**2 * variance + sigma**2

    def F(x, j):
        weight = np.tanh(alpha[j] * mean * x / total[j])
        data = (alpha[j] * variance * x + sigma[j] ** 2 * mean * weight) / total[j]
        return alpha_hat[j] * data + sigma_hat[j] * (x - alpha[j] * data) / sigma[j]

    return F


def _coefficients(plan, host):
    return [f(plan.t) for f in (host.alpha, host.sigma, host.alpha_hat, host.sigma_hat)]
