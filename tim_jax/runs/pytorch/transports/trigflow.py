"""The transport TrigFlow."""

import torch
from torch import Tensor

T_MIN, T_MAX = 0.0, 1.57  # data, noise


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of TrigFlow: x_t = cos t x + sin t ε and F ≈ cos t ε − sin t x."""
    return torch.cos(t), torch.sin(t), -torch.sin(t), torch.cos(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time."""
    return t


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`."""
    return torch.arctan(ratio)
