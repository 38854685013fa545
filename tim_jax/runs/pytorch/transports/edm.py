"""The transport EDM."""

import torch
from torch import Tensor

from tim_jax.runs.pytorch.run import RUN

T_MIN, T_MAX = 0.01, 80.0  # data, noise


def coefficients(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of EDM: x_t = (x + t ε)/s and F ≈ (t x/σ_d − σ_d ε)/s with s = √(t² + σ_d²)."""
    sigma_d = RUN["transport"]["sigma_d"]
    s = torch.sqrt(t**2 + sigma_d**2)
    return 1 / s, t / s, t / (sigma_d * s), -sigma_d / s


def c_noise(t: Tensor) -> Tensor:
    """What the network sees of a time."""
    return torch.log(t) / 4


def time_of_ratio(ratio: Tensor) -> Tensor:
    """The time at which σ/α is `ratio`."""
    return ratio
