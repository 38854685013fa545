"""The network of JiT (arXiv 2511.13720), whose output is the image itself."""

from typing import Any

import torch
from torch import Tensor, nn

from tim_jax.runs.pytorch.lightningdit import LightningDiT
from tim_jax.runs.pytorch.transformer import Context


class BottleneckEmbedder(nn.Module):
    """Patches of p × p as tokens, through a few channels: (B, C, h, w) → (B, N, D)."""

    def __init__(self, channels: int, bottleneck: int, width: int, patch_size: int):
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch_size, patch_size, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)


class JiT(LightningDiT):
    """The output of JiT for (x_t, t, r, condition): LightningDiT whose later blocks have tokens of the class."""

    def __init__(self, patch_bottleneck: int, context_start: int, **shared: Any):
        self.bottleneck, self.start = patch_bottleneck, context_start
        super().__init__(**shared)

    def patches(self) -> nn.Module:
        return BottleneckEmbedder(self.channels, self.bottleneck, self.width, self.patch_size)

    def add_tokens(self, name: str, count: int) -> None:
        if name != "class_tokens":
            return super().add_tokens(name, count)
        self.in_context_posemb = nn.Parameter(torch.empty(1, count, self.width))

    def tokens(self, name: str) -> Tensor:
        return self.in_context_posemb[0] if name == "class_tokens" else super().tokens(name)

    def trunk(self, x: Tensor, early: Context, late: Context, front: list[Tensor]) -> tuple[Tensor, Tensor]:
        y, count = self.embed(x), sum(self.fronts.values())
        for number, block in enumerate(self.blocks):
            seen = late if number >= self.depth - self.decoupled else early
            if number == self.start:
                y = torch.cat([*front, y], dim=1)
            y = block(y, seen.c, seen.angle if number >= self.start else seen.angle[count:])
        return y[:, count:], late.c
