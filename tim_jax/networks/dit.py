"""DiT (arXiv 2212.09748), which is also the network of SiT (arXiv 2401.08740) and of REPA's SiT (arXiv 2410.06940).

    c = T(t) + class;   x + gate attention(norm(x) (1 + scale) + shift);   x + gate mlp(norm(x) (1 + scale) + shift)

They differ in what they learn: DiT the noise at the times of VP, SiT a velocity, REPA's SiT also the features of an
image encoder, from the states after block `encoder_depth`.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from tim_jax.networks import positions
from tim_jax.networks.attention.modules import SelfAttention
from tim_jax.networks.block import Block, Branch, FinalLayer
from tim_jax.networks.layers import MLP, wide
from tim_jax.networks.rope import rope_table
from tim_jax.networks.single_time import SingleTime
from tim_jax.types import Query

UNUSED = {
    ("model.positions_side",): (
        "model.positions is not 'interpolated'",
        lambda c: c.model.positions != "interpolated",
    )
}


class DiT(SingleTime):
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
    # How tokens know their places: "sincos", as published, for squares alone; "interpolated": the same embedding, its
    # places stretched over a square of positions_side patches; "rope": rotary in its place
    positions: str = "sincos"
    positions_side: int = 16  # patches along a side of the squares that the weights were trained on

    @nn.nowrap
    def check(self) -> None:
        super().check()
        positions.check(self)

    @nn.nowrap
    def check_grid(self, h: int, w: int) -> None:
        positions.check_grid(self, h, w)

    def position_embedding(self, h: int, w: int) -> jax.Array | None:
        return None if self.positions == "rope" else positions.sine_cosine(self, h, w)

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...] | None:
        if self.positions != "rope":
            return None
        return rope_table(h, w, self.width // self.heads, dtype=wide(self.dtype))

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
