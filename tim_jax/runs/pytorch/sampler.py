"""The any-step sampler."""

from typing import Any

import torch
from torch import Tensor, nn

from tim_jax.runs.pytorch.run import RUN
from tim_jax.runs.pytorch.transformer import Condition
from tim_jax.runs.pytorch.transports.ot_fm import T_MAX, T_MIN, c_noise, coefficients, time_of_ratio


def scalar(t: float) -> Tensor:
    """A time in float64, in which all coefficients are computed."""
    return torch.tensor(t, dtype=torch.float64)


def mixing(t: Tensor) -> tuple[Tensor, ...]:
    """α, σ, α̂, σ̂ of the run, whose noise has a standard deviation of its own."""
    alpha, sigma, alpha_hat, sigma_hat = coefficients(t)
    std = RUN["transport"]["noise_std"]
    return alpha, std * sigma, alpha_hat, std * sigma_hat


def schedule(steps: int) -> list[float]:
    """The times of a run of so many steps, falling from T_MAX to T_MIN, as the training run samples."""
    grid, u = RUN["sampling"]["grid"], 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    if grid == "optimal":
        known = RUN["sampling"]["optimal_times"]
        if steps not in known:
            raise ValueError(f"steps is {steps}; it must be one of {sorted(known)}, for which a grid has been found")
        return list(known[steps])
    if grid == "shifted":
        u = RUN["sampling"]["shift"] * u / (1 + (RUN["sampling"]["shift"] - 1) * u)
    times = T_MIN + (T_MAX - T_MIN) * u
    if grid == "edm":  # equal steps in (σ/α)^(1/7), from at most 80 to at least 0.002
        (alpha, sigma, _, _), (end, last, _, _) = mixing(scalar(T_MAX)), mixing(scalar(T_MIN))
        highest = min(float(sigma / alpha), 80.0)
        lowest = max(float(last / end), min(0.002, highest))
        root = lowest ** (1 / 7) + u * (highest ** (1 / 7) - lowest ** (1 / 7))
        times = time_of_ratio(root**7 / RUN["transport"]["noise_std"])
    return [T_MAX, *times[1:-1].tolist(), T_MIN]


def jump(x: Tensor, F: Tensor, t: float, r: float) -> Tensor:
    """x_r = A x_t + B F: the data and the noise that a prediction F at x_t stands for, mixed as at time r."""
    (alpha, sigma, alpha_hat, sigma_hat), (alpha_r, sigma_r, _, _) = mixing(scalar(t)), mixing(scalar(r))
    C = sigma_hat * alpha - alpha_hat * sigma
    A, B = (alpha_r * sigma_hat - sigma_r * alpha_hat) / C, (sigma_r * alpha - alpha_r * sigma) / C
    return A.item() * x + B.item() * F


def F_of_output(x: Tensor, output: Tensor, t: float) -> Tensor:
    """The F that the output of the network stands for: itself, the data, the noise or the velocity dx_t/dt."""
    kind, clip = RUN["transport"]["prediction"], RUN["transport"]["prediction_clip"]
    alpha, sigma, alpha_hat, sigma_hat = mixing(scalar(t))
    C = sigma_hat * alpha - alpha_hat * sigma
    if kind == "F":
        return output
    if kind == "x":
        skip, out = sigma_hat / sigma.clamp(min=clip), -C / sigma.clamp(min=clip)
    elif kind == "noise":
        skip, out = alpha_hat / alpha.clamp(min=clip), C / alpha.clamp(min=clip)
    else:
        _, (alpha_dot, sigma_dot, _, _) = torch.func.jvp(mixing, (scalar(t),), (scalar(1.0),))
        W = sigma_dot * alpha - alpha_dot * sigma
        skip, out = (sigma_dot * alpha_hat - alpha_dot * sigma_hat) / W, C / W
    return skip.item() * x + out.item() * output


def learns_whole_F(t: float) -> bool:
    """Whether no clip acts at a time, below which F is learned too short."""
    alpha, sigma, _, _ = mixing(scalar(t))
    divisor = {"x": sigma, "noise": alpha}.get(RUN["transport"]["prediction"])
    return divisor is None or float(divisor) >= RUN["transport"]["prediction_clip"]


def null_of(condition: Condition) -> Tensor:
    """The labels (B,) that stand for no class."""
    if not isinstance(condition, Tensor):
        raise ValueError("null is None; guidance of a network of texts needs the features of the empty prompt")
    return torch.full_like(condition, RUN["network"]["num_classes"])


class Sampler:
    """Samples of a network in any number of steps, as the run that trained it draws them.

    Args:
        network: (x, c_noise(t), c_noise(r), condition) → output, like x.
        condition: labels (B,), or the features of prompts, {"text": (B, M, T), "mask": (B, M)}.
        null: what stands for no condition, in the same form; labels have their own.
        guidance: the scale; 1 for none.
    """

    def __init__(self, network: nn.Module, condition: Condition, null: Condition | None, guidance: float):
        self.network, self.condition, self.scale = network, condition, guidance
        sampling = RUN["sampling"]
        self.low, self.high = sampling["guidance_low"] * T_MAX, sampling["guidance_high"] * T_MAX
        if sampling["guidance_input"]:  # the network takes scale and interval itself
            self.inputs: tuple[Any, ...] = ((guidance, max(self.low, T_MIN), max(self.high, T_MIN)),)
            self.scale = 1.0
        else:
            self.inputs = ()
        self.null = null_of(condition) if self.scale != 1 and null is None else null

    def F(self, x: Tensor, t: float, r: float) -> Tensor:
        """F(x_t, t, r), guided where guidance acts: F_∅ + s (F_c − F_∅)."""
        tolerance = 1e-9 * T_MAX * (-1 if RUN["sampling"]["exclusive_ends"] else 1)
        times = [c_noise(scalar(time)).to(x).expand(len(x)) for time in (t, r)]
        F = F_of_output(x, self.network(x, *times, self.condition, *self.inputs), t)
        if self.scale == 1 or not self.low - tolerance <= t <= self.high + tolerance:
            return F
        F_null = F_of_output(x, self.network(x, *times, self.null, *self.inputs), t)
        guided = F_null + self.scale * (F - F_null)
        if channels := RUN["sampling"]["guidance_channels"]:  # which alone are guided, the first so many
            guided[:, channels:] = F[:, channels:]
        return guided

    def flow_map(self, x: Tensor, t: float, r: float) -> Tensor:
        """A jump by F(x_t, t, r)."""
        return jump(x, self.F(x, t, r), t, r)

    def euler(self, x: Tensor, t: float, r: float) -> Tensor:
        """A jump by the velocity F(x_t, t, t)."""
        return jump(x, self.F(x, t, t), t, r)

    def heun(self, x: Tensor, t: float, r: float) -> Tensor:
        """Euler's step, and half of what the jump back from its end misses; where F is short at the end, Euler's."""
        y = self.euler(x, t, r)
        return y if r == T_MIN and not learns_whole_F(r) else y + (x - self.euler(y, r, t)) / 2

    def consistency(self, x: Tensor, t: float, r: float) -> Tensor:
        """A jump to the data, and fresh noise up to time r."""
        data = jump(x, self.F(x, t, T_MIN), t, T_MIN)
        (alpha, sigma, _, _), (alpha_r, sigma_r, _, _) = mixing(scalar(T_MIN)), mixing(scalar(r))
        keep = alpha_r / alpha
        fresh = (sigma_r**2 - (keep * sigma) ** 2).clamp(min=0).sqrt()
        return keep.item() * data + fresh.item() * torch.randn_like(x)


@torch.no_grad()
def sample(
    network: nn.Module,
    noise: Tensor,
    condition: Condition,
    steps: int = 4,
    guidance: float | None = None,
    null: Condition | None = None,
) -> Tensor:
    """Draws samples (B, C, h, w): images in [−1, 1], or the latents of the autoencoder that the card names.

    Args:
        network: of `load`.
        noise: standard normal (B, C, h, w), on the device of the network.
        condition: labels (B,); or of prompts that have been encoded beforehand, or by the caller, their features and
            the mask of their tokens, {"text": (B, M, T), "mask": (B, M) bool}.
        steps: at least 1.
        guidance: the scale, 1 for none; by default that of the run.
        null: what stands for no condition: of texts, the features of the empty prompt. Labels have their own.
    """
    guidance = RUN["sampling"]["guidance"] if guidance is None else guidance
    run, times = Sampler(network, condition, null, guidance), schedule(steps)
    step = getattr(run, RUN["sampling"]["sampler"])
    x = mixing(scalar(T_MAX))[1].item() * noise
    for t, r in zip(times, times[1:]):
        x = step(x, t, r)
    return x
