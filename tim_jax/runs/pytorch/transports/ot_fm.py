"""The transport OT-FM."""

import torch
from torch import Tensor

T_MIN, T_MAX = 0.0, 1.0  # data, noise


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of OT-FM: x_t = (1 − t) x + t ε and F ≈ ε − x."""
    return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time."""
    return t


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`."""
    return torch.sigmoid(torch.log(ratio))
