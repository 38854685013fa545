"""The networks of DDT (arXiv 2504.05741), and of RAE (arXiv 2510.11690), DiT^DH."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tim_jax.runs.pytorch.layers import (
    LabelEmbedder,
    ModulatedBlock,
    ModulatedFinalLayer,
    PackedSwiGLU,
    PatchEmbedder,
    SelfAttention,
    TimeEmbedder,
    axis_angles,
    grid,
    layer_norm,
    rms_norm,
    sincos,
)
from tim_jax.runs.pytorch.single_time import SingleTime
from tim_jax.runs.pytorch.transformer import Context


class UnfoldEmbedder(nn.Module):
    """Patches of p × p as tokens, their values by channel, row and column: (B, C, h, w) → (B, N, D)."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.patch_size, self.proj = patch_size, nn.Linear(channels * patch_size**2, width)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        return self.proj(functional.unfold(x, p, stride=p).transpose(1, 2))


class PlainSwiGLU(nn.Module):
    """(silu(x W_1) * x W_3) W_2, without biases."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class DDT(SingleTime):
    """The output of DDT for (x_t, t, r, condition): an encoder, whose states modulate each token of a decoder."""

    def __init__(self, decoder_depth: int, decoder_width: int, decoder_heads: int, **shared: Any):
        super().__init__(**shared)
        D, self.E, heads = self.width, decoder_width or self.width, shared["heads"]
        self.decoder_K = self.E // (decoder_heads or heads)
        self.s_embedder, self.x_embedder = self.patches(D), self.patches(self.E)
        self.t_embedder = self.times(D)
        self.y_embedder = LabelEmbedder(shared["num_classes"], D)
        encoder = [self.block(D, heads) for _ in range(self.depth)]
        self.blocks = nn.ModuleList(
            [*encoder, *(self.block(self.E, decoder_heads or heads) for _ in range(decoder_depth))]
        )
        self.final_layer = self.final(self.E, self.patch_size**2 * self.channels)

    def patches(self, width: int) -> nn.Module:
        """The layers from patches to tokens."""
        return UnfoldEmbedder(self.channels, width, self.patch_size)

    def times(self, width: int) -> nn.Module:
        """The embedder of times."""
        return TimeEmbedder(width, 10.0)

    def block(self, width: int, heads: int) -> nn.Module:
        """A layer."""
        attn, mlp = SelfAttention(width, heads, True, bias=False), PlainSwiGLU(width, width * 4 * 2 // 3)
        return ModulatedBlock(width, rms_norm, attn, mlp, ())

    def final(self, width: int, features: int) -> nn.Module:
        """The last layer."""
        return ModulatedFinalLayer(width, features, layer_norm, ())

    def encoded(self, x: Tensor) -> Tensor:
        """The tokens of the encoder."""
        return self.s_embedder(x)

    def decoder_condition(self, z: Tensor) -> Tensor:
        """What modulates the decoder, of silu(times + states of the encoder)."""
        return z

    def joined(self, c: Tensor) -> Tensor:
        return functional.silu(c)

    def angles(self, h: int, w: int, like: Tensor) -> Tensor:
        return self.angles_of(h, w, self.K, like)

    def angles_of(self, h: int, w: int, K: int, like: Tensor) -> Tensor:
        """RoPE's angles for heads of width K: positions run from 0 to 16 on every grid, and axes take turns."""
        rows, columns = (16 * position / max(n - 1, 1) for position, n in zip(grid(h, w, like), (h, w)))
        return axis_angles((columns, rows), K).unflatten(-1, (2, -1)).transpose(1, 2).flatten(1)

    def trunk(self, x: Tensor, early: Context, late: Context, front: list[Tensor]) -> tuple[Tensor, Tensor]:
        s = torch.cat([*front, self.encoded(x)], dim=1)
        for number, block in enumerate(self.blocks[: self.depth]):
            seen = late if number >= self.depth - self.decoupled else early
            s = block(s, seen.c, seen.angle)
        s = s[:, sum(self.fronts.values()) :]
        c = self.decoder_condition(functional.silu(late.time + s))
        h, w = (n // self.patch_size for n in x.shape[2:])
        y, angle = self.x_embedder(x), self.angles_of(h, w, self.decoder_K, x)
        for block in self.blocks[self.depth :]:
            y = block(y, c, angle)
        return y, c

    def image(self, y: Tensor, h: int, w: int) -> Tensor:
        return self.sign * functional.fold(y.transpose(1, 2), (h, w), self.patch_size, stride=self.patch_size)


class RandomTimeEmbedder(nn.Module):
    """Sines, then cosines, of 2π W t with stored random W, Linear, SiLU, Linear: (B,) → (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(256), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t[:, None] * self.W
        return self.mlp(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))


class DiTDH(DDT):
    """The output of DiT^DH for (x_t, t, r, condition): a decoder of few blocks, wider than the encoder."""

    def __init__(self, qk_norm: bool, positions: str, positions_side: int, **shared: Any):
        self.qk_norm, self.positions, self.side = qk_norm, positions, positions_side
        super().__init__(**shared)
        if self.E != self.width:
            self.s_projector = nn.Linear(self.width, self.E)

    def patches(self, width: int) -> nn.Module:
        return PatchEmbedder(self.channels, width, self.patch_size)

    def times(self, width: int) -> nn.Module:
        return RandomTimeEmbedder(width)

    def block(self, width: int, heads: int) -> nn.Module:
        attn, mlp = SelfAttention(width, heads, self.qk_norm), PackedSwiGLU(width, width * 4 * 2 // 3)
        return ModulatedBlock(width, rms_norm, attn, mlp)

    def final(self, width: int, features: int) -> nn.Module:
        return ModulatedFinalLayer(width, features, rms_norm)

    def encoded(self, x: Tensor) -> Tensor:
        h, w = (n // self.patch_size for n in x.shape[2:])
        return sincos(self.s_embedder(x), h, w, self.positions, self.side)

    def decoder_condition(self, z: Tensor) -> Tensor:
        return self.s_projector(z) if self.E != self.width else z

    def angles_of(self, h: int, w: int, K: int, like: Tensor) -> Tensor:
        return axis_angles(grid(h, w, like), K)

    def image(self, y: Tensor, h: int, w: int) -> Tensor:
        return SingleTime.image(self, y, h, w)
