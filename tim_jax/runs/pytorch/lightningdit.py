"""The network of LightningDiT (arXiv 2501.01423)."""

from typing import Any

from torch import Tensor, nn

from tim_jax.runs.pytorch.dit import DiT
from tim_jax.runs.pytorch.layers import (
    ModulatedBlock,
    ModulatedFinalLayer,
    PackedSwiGLU,
    SelfAttention,
    axis_angles,
    grid,
    rms_norm,
)


class LightningDiT(DiT):
    """The output of LightningDiT for (x_t, t, r, condition): RMSNorm, SwiGLU and RoPE in place of DiT's."""

    def __init__(self, qk_norm: bool, shift: bool, **shared: Any):
        self.options = {"qk_norm": qk_norm, "shift": shift}
        super().__init__(**shared)

    def block(self, heads: int) -> nn.Module:
        D, (qk_norm, shift) = self.width, self.options.values()
        attn, mlp = SelfAttention(D, heads, qk_norm), PackedSwiGLU(D, D * 4 * 2 // 3)
        return ModulatedBlock(D, rms_norm, attn, mlp, shift=shift)

    def final(self, features: int) -> nn.Module:
        return ModulatedFinalLayer(self.width, features, rms_norm)

    def angles(self, h: int, w: int, like: Tensor) -> Tensor:
        return axis_angles(grid(h, w, like), self.K)
