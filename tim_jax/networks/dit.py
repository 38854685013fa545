"""DiT (arXiv 2212.09748), which is also the network of SiT (arXiv 2401.08740) and of REPA's SiT (arXiv 2410.06940).

    c = T(t) + class;   x + gate attention(norm(x) (1 + scale) + shift);   x + gate mlp(norm(x) (1 + scale) + shift)

They differ in what they learn: DiT the noise at the times of VP, SiT a velocity, REPA's SiT also the features of an
image encoder, from the states after block `encoder_depth`.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from tim_jax.networks.attention.modules import SelfAttention
from tim_jax.networks.block import Block, Branch, FinalLayer
from tim_jax.networks.layers import MLP
from tim_jax.networks.positions import Positioned
from tim_jax.types import Query


class DiT(Positioned):
    """DiT and SiT: layer norm without parameters, GELU, a fixed embedding of places."""

    # XS, for CPUs, is not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "XS": {"depth": 4, "width": 160, "heads": 5, "encoder_depth": 2},
        "S": {"depth": 12, "width": 384, "heads": 6, "encoder_depth": 4},
        "B": {"depth": 12, "width": 768, "heads": 12, "encoder_depth": 4},
        "L": {"depth": 24, "width": 1024, "heads": 16, "encoder_depth": 8},
        "XL": {"depth": 28, "width": 1152, "heads": 16, "encoder_depth": 8},
    }

    FINAL: ClassVar[type[FinalLayer]] = FinalLayer  # the kind of its final layer

    learn_sigma: bool = False  # the final layer has as many channels more, for a variance, which is left out

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...] | None:
        return self.table(h, w, self.width // self.heads) if self.positions == "rope" else None

    def block(self, groups: tuple[Query, ...]) -> nn.Module:
        return self.stacked(DiTBlock, groups)

    def final_layer(self, name: str) -> nn.Module:
        channels = self.channels * (1 + self.learn_sigma)
        return self.FINAL(dtype=self.dtype, patch_size=self.patch_size, channels=channels, name=name)


class DiTBlock(Block):
    """Self-attention, and an MLP of four times the width."""

    def branches(self, width: int) -> tuple[Branch, ...]:
        attn = SelfAttention(self.heads, None, self.dtype, self.attention, self.tokens, name="attn")
        mlp = MLP(4 * width, self.dtype, name="mlp")
        return lambda z, ctx, in_jvp: attn(z, ctx.rope, in_jvp), lambda z, ctx, in_jvp: mlp(z)
