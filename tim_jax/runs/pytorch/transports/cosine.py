"""The cosine transport."""

import math

import torch
from torch import Tensor

T_MIN, T_MAX = 0.0, 1.0  # data, noise


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of the cosine transport: x_t = cos(πt/2) x + sin(πt/2) ε and F ≈ ε − x."""
    alpha, sigma = torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)
    return alpha, sigma, -torch.ones_like(t), torch.ones_like(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time."""
    return t


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`."""
    return torch.arctan(ratio) * 2 / math.pi
