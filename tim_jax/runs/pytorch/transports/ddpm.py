"""DDPM's discrete process, which DiT has, at all times between."""

import torch
from torch import Tensor

T_MIN, T_MAX = 1e-5, 1.0  # data, noise
# −ln ᾱ of the process with β from 1e-4 to 0.02 in 1000 steps, as a polynomial in t, the highest power first.
DDPM = (8.09806302e-06, 6.58714345e-04, 6.61458186e-02, 9.96085683e00, 9.00440774e-02, 0.0)


def integral(t: Tensor) -> Tensor:
    """−ln ᾱ at a time."""
    value = torch.zeros_like(t)
    for coefficient in DDPM:
        value = value * t + coefficient
    return value


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of DDPM: x_t = √ᾱ x + √(1 − ᾱ) ε and F ≈ ε."""
    alpha, sigma = torch.exp(-0.5 * integral(t)), torch.sqrt(-torch.expm1(-integral(t)))
    return alpha, sigma, torch.zeros_like(t), torch.ones_like(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time: the index of the step."""
    return 1000 * t - 1


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`: ln(1 + ratio²) = −ln ᾱ, by its two lowest powers, then by Newton's method."""
    log_term = torch.log1p(ratio**2)
    t = 2 * log_term / (DDPM[-2] + torch.sqrt(DDPM[-2] ** 2 + 4 * DDPM[-3] * log_term))
    for _ in range(3):
        value, slope = torch.func.jvp(integral, (t,), (torch.ones_like(t),))
        t = t - (value - log_term) / slope
    return t
