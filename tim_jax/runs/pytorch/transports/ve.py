"""The variance-exploding transport."""

import torch
from torch import Tensor

T_MIN, T_MAX = 0.02, 100.0  # data, noise


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of VE: x_t = x + t ε and F ≈ −ε."""
    return torch.ones_like(t), t, torch.zeros_like(t), -torch.ones_like(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time."""
    return torch.log(t / 2)


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`."""
    return ratio
