"""The network of Transition Models (TiM, arXiv 2509.04394): a diffusion transformer with both times, t and r."""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from tim_jax.networks.attention.modules import CrossAttention, SelfAttention
from tim_jax.networks.block import Block, Branch, FinalLayer
from tim_jax.networks.checks import check_at_least, check_choices
from tim_jax.networks.embeddings import INTERVALS, CaptionEmbedder, TimeEmbedder
from tim_jax.networks.layers import LayerNorm, SwiGLU, modulation, standardise, wide
from tim_jax.networks.rope import ORDERS, rope_table
from tim_jax.networks.transformer import Transformer
from tim_jax.types import Query

UNUSED = {
    ("model.use_text_mask",): ("model.condition is not 'text'", lambda c: c.model.condition != "text"),
    ("model.conditioning", "model.separate_interval_embedder"): (
        "model.decoupled_depth is above 0",
        lambda c: c.model.decoupled_depth > 0,
    ),
}


class TiM(Transformer):
    """TiM: the interval's embedding is a condition, and enters queries, keys and values."""

    # The bottleneck is a third of the width, rounded up to a multiple of 8; XS, for CPUs, is not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "XS": {"depth": 4, "width": 160, "heads": 5, "bottleneck": 56, "encoder_depth": 2},
        "S": {"depth": 12, "width": 384, "heads": 6, "bottleneck": 128, "encoder_depth": 4},
        "B": {"depth": 12, "width": 768, "heads": 12, "bottleneck": 256, "encoder_depth": 4},
        "L": {"depth": 24, "width": 1024, "heads": 16, "bottleneck": 344, "encoder_depth": 8},
        "XL": {"depth": 28, "width": 1152, "heads": 16, "bottleneck": 384, "encoder_depth": 8},
    }
    CONDITIONS: ClassVar[tuple[str, ...]] = ("class", "text")

    bottleneck: int = 256  # hidden width of each block's adaLN
    conditioning: str = "t-r"  # "t-r", "r", "t,r", "t,t-r", "r,t-r" or "t,r,t-r": what the interval embeds
    separate_interval_embedder: bool = True  # an embedder of its own for the interval, else that of t
    interval_aware: bool = True  # interval-aware attention: the interval's embedding enters q, k and v
    qk_norm: bool = True  # norm of queries and keys
    # "official": the published order. Weights that were trained in the other one reach the published code only where
    # all examples are squares; it cannot be chosen after training.
    rope_order: str = "row_major"
    # Attend to a caption's own tokens; False: to as many as the longest caption of the batch has, as published, for
    # published weights only. The masks of conditions say so, wherever these are made.
    use_text_mask: bool = True

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_at_least(self, 1, "bottleneck")
        check_choices(self, {"conditioning": INTERVALS, "rope_order": ORDERS})

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...]:
        return rope_table(h, w, self.width // self.heads, self.rope_order, wide(self.dtype))

    def interval_embedder(self, T: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        D = T
        if self.separate_interval_embedder:
            D = TimeEmbedder(self.width, "xavier", self.dtype, name="delta_embedder")
        return functools.partial(INTERVALS[self.conditioning], T, D)

    def text_embedder(self) -> Callable[[jax.Array], jax.Array]:
        embed = CaptionEmbedder(self.width, self.dtype, name="caption_embedder")
        # The norm before cross-attention has no parameters, so that all blocks share one.
        return lambda text: standardise(embed(text), 1e-6).astype(self.dtype)

    def block(self, groups: tuple[Query, ...]) -> nn.Module:
        return self.stacked(
            TiMBlock,
            groups,
            bottleneck=self.bottleneck,
            cross_attention=self.condition == "text",
            interval_aware=self.interval_aware,
            qk_norm=self.qk_norm,
        )

    def final_layer(self, name: str) -> nn.Module:
        return TiMFinalLayer(dtype=self.dtype, patch_size=self.patch_size, channels=self.channels, name=name)


class TiMBlock(Block):
    """Self-attention, (cross-attention,) SwiGLU, modulated through a SwiGLU of width `bottleneck`.

    Attributes:
        bottleneck: The hidden width of the modulation.
        cross_attention: Whether there is a branch with attention to captions.
        interval_aware: Whether the embedding of the interval enters q, k and v.
        qk_norm: Whether q and k are normalised.
    """

    bottleneck: int = 256
    cross_attention: bool = False
    interval_aware: bool = True
    qk_norm: bool = True

    def modulations(self, features: int) -> Callable[[jax.Array], jax.Array]:
        return modulation(self.bottleneck, features, self.dtype)

    def branches(self, width: int) -> tuple[Branch, ...]:
        norm = LayerNorm if self.qk_norm else None
        options = (self.heads, norm, self.dtype, self.attention)
        attn = SelfAttention(*options, self.tokens, self.interval_aware, name="attn")
        mlp = SwiGLU(width * 4 * 2 // 3, width, ("batch", "tokens"), dtype=self.dtype, name="mlp")
        first: Branch = lambda z, ctx, in_jvp: attn(z, ctx.rope, in_jvp, ctx.delta)  # noqa: E731
        last: Branch = lambda z, ctx, in_jvp: mlp(z)  # noqa: E731
        if not self.cross_attention:
            return first, last
        cross = CrossAttention(*options, name="cross")
        return first, lambda z, ctx, in_jvp: cross(z, ctx.text, ctx.mask, ctx.rope, in_jvp), last


class TiMFinalLayer(FinalLayer):
    """The final layer, modulated through a SwiGLU of half the width."""

    def modulations(self, features: int) -> Callable[[jax.Array], jax.Array]:
        return modulation(features // 4, features, self.dtype)
