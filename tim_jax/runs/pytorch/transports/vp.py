"""The variance-preserving transport of DDPM and DiT."""

import torch
from torch import Tensor

T_MIN, T_MAX = 1e-5, 1.0  # data, noise
BETA_MIN, BETA_MAX, STEPS = 0.1, 20.0, 1000


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of VP: x_t = α x + √(1 − α²) ε with α = exp(−½∫β), β growing linearly, and F ≈ ε."""
    integral = 0.5 * (BETA_MAX - BETA_MIN) * t**2 + BETA_MIN * t
    alpha, sigma = torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))
    return alpha, sigma, torch.zeros_like(t), torch.ones_like(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time: the index of the discrete process."""
    return (STEPS - 1) * t


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`: ∫β = ln(1 + ratio²), solved for t."""
    log_term = torch.log1p(ratio**2)
    return 2 * log_term / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * log_term))
