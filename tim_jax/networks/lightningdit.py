"""LightningDiT (Yao et al., arXiv 2501.01423): a DiT of RMSNorm, SwiGLU and rotary positions beside the fixed ones.

z = x_t W + positions;   c = time(t) + class
z += gate · attention(RMSNorm(z) (1 + scale) + shift),   rotated queries and keys
z += gate · SwiGLU(RMSNorm(z) (1 + scale) + shift),      shift, scale, gate = silu(c) W'
F = (RMSNorm(z) (1 + scale) + shift) W
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from tim_jax.networks.attention.modules import SelfAttention
from tim_jax.networks.block import Block, Branch, FinalLayer
from tim_jax.networks.dit import DiT
from tim_jax.networks.layers import PackedSwiGLU, RMSNorm
from tim_jax.types import Query


class LightningBlock(Block):
    """Self-attention and SwiGLU.

    Attributes:
        qk_norm: Whether q and k are normalised.
    """

    qk_norm: bool = False

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        return RMSNorm("embed", name=name)

    def branches(self, width: int) -> tuple[Branch, ...]:
        norm = RMSNorm if self.qk_norm else None
        attn = SelfAttention(self.heads, norm, self.dtype, self.attention, self.tokens, name="attn")
        mlp = PackedSwiGLU(width * 4 * 2 // 3, self.dtype, name="mlp")
        return lambda z, ctx, in_jvp: attn(z, ctx.rope, in_jvp), lambda z, ctx, in_jvp: mlp(z)


class LightningFinalLayer(FinalLayer):
    """The final layer, with RMSNorm."""

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        return RMSNorm("embed", name=name)


class LightningDiT(DiT):
    """LightningDiT: published for latents of VA-VAE, 16 × 16 × 32 of an image of 256 × 256, with patches of 1."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = DiT.SIZES | {
        "1p0B": {"depth": 24, "width": 1536, "heads": 24, "encoder_depth": 8},
        "1p6B": {"depth": 28, "width": 1792, "heads": 28, "encoder_depth": 8},
    }
    FINAL: ClassVar[type[FinalLayer]] = LightningFinalLayer

    qk_norm: bool = True  # RMS norm of queries and keys; the published weights have none
    shift: bool = True  # whether modulations shift, beside their scales and gates

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...]:
        return self.table(h, w, self.width // self.heads)

    def block(self, groups: tuple[Query, ...]) -> nn.Module:
        return self.stacked(LightningBlock, groups, qk_norm=self.qk_norm, shift=self.shift)
