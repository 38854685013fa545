"""Decoupled diffusion transformers: an encoder finds what an image is of, and a decoder, given that, the velocity.

                encoder                                        decoder
    x_t ── patches ── depth blocks ── s ── z = silu(τ + s) ──┐
                         ↑                                   ↓ modulates each token
                c = silu(τ + class)      x_t ── patches ── decoder_depth blocks ── final layer ── F

where τ embeds the time t, and the interval t − r. `DDT` is that of arXiv 2504.05741. `DiTDH` is DiT^DH of RAE (arXiv
2510.11690), whose decoder is shallow, and at least as wide as latents have channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from tim_jax.networks.attention import sequence
from tim_jax.networks.attention.modules import SelfAttention
from tim_jax.networks.block import STREAM, Block, Branch, Context, FinalLayer
from tim_jax.networks.checks import check_at_least, check_heads_of
from tim_jax.networks.dit import DiT
from tim_jax.networks.embeddings import FourierEmbedder, TimeEmbedder
from tim_jax.networks.layers import Linear, RMSNorm, SwiGLU, wide
from tim_jax.networks.lightningdit import LightningBlock, LightningFinalLayer
from tim_jax.networks.positions import Positioned
from tim_jax.networks.rope import spread_rope_table
from tim_jax.networks.single_time import SingleTime
from tim_jax.networks.transformer import Contexts, States, Streams
from tim_jax.types import Query


class DDT(SingleTime):
    """DDT: RMS norms, SwiGLU, RoPE at positions relative to the image, conditions that have their SiLU once."""

    # XS, for CPUs, and S are not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "XS": {"depth": 3, "decoder_depth": 1, "width": 160, "heads": 5, "encoder_depth": 2},
        "S": {"depth": 8, "decoder_depth": 4, "width": 384, "heads": 6, "encoder_depth": 4},
        "B": {"depth": 8, "decoder_depth": 4, "width": 768, "heads": 12, "encoder_depth": 4},
        "L": {"depth": 20, "decoder_depth": 4, "width": 1024, "heads": 16, "encoder_depth": 8},
        "XL": {"depth": 22, "decoder_depth": 6, "width": 1152, "heads": 16, "encoder_depth": 8},
    }
    STACKS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    # Blocks of a decoder, after the `depth` of the encoder; states are tapped and aligned in the encoder alone.
    decoder_depth: int = 4
    decoder_width: int = 0  # of the decoder; 0: that of `size`, or `width`
    decoder_heads: int = 0  # of the decoder; 0: those of `size`, or `heads`

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_at_least(self, 1, "decoder_depth")
        check_at_least(self, 0, "decoder_width", "decoder_heads")
        check_heads_of(*self.decoder[::-1], "decoder_")
        if self.slices > 1:
            raise ValueError(f"model.slices is {self.slices}; it must be 1 for a network of an encoder and a decoder")

    @property
    def blocks(self) -> int:
        return self.depth + self.decoder_depth

    @property
    def decoder(self) -> tuple[int, int]:
        """The width of the decoder, and its number of attention heads."""
        return self.decoder_width or self.width, self.decoder_heads or self.heads

    def published_time_embedder(self) -> nn.Module:
        return TimeEmbedder(self.width, "normal", self.dtype, base=10, name="t_embedder")

    @nn.nowrap
    def joined(self, time: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
        return nn.silu(super().joined(time, others))

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...]:
        return self.table(h, w, self.width // self.heads)

    @nn.nowrap
    def table(self, h: int, w: int, head_width: int) -> tuple[jax.Array, ...]:
        """Returns the RoPE table of a grid of patches for heads of that width."""
        return spread_rope_table(h, w, head_width, dtype=wide(self.dtype))

    def block(self, groups: tuple[Query, ...]) -> nn.Module:
        return self.layer("encoder", groups, heads=self.heads)

    def layer(self, name: str, groups: tuple[Query, ...], **fields: Any) -> nn.Module:
        """Returns a layer of "encoder" or "decoder", as `stacked` makes it."""
        return self.stacked(DDTBlock, groups, name, **fields)

    def final_layer(self, name: str) -> nn.Module:
        return DDTFinalLayer(dtype=self.dtype, patch_size=self.patch_size, channels=self.channels, name=name)

    def trunk(
        self, groups: tuple[Query, ...], streams: Streams, contexts: Contexts, wanted: tuple[int, ...]
    ) -> tuple[Streams, Contexts, States]:
        encoded, _, states = super().trunk(groups, streams, contexts, wanted)
        width, heads = self.decoder
        embed = Linear((width,), (None, None, None, "embed"), dtype=self.dtype, name="decoder_patch")
        project: Callable[[jax.Array], jax.Array] = lambda z: z  # noqa: E731
        if width != self.width:
            project = Linear((width,), ("mlp", "embed"), dtype=self.dtype, name="decoder_condition")

        def decoding(ctx: Context, s: jax.Array, q: Query) -> Context:
            def given(time: jax.Array) -> jax.Array:
                z = nn.silu(time[:, None] + s).astype(self.dtype)
                return nn.with_logical_constraint(project(z), STREAM)

            rope = (sequence.part(table, self.tokens) for table in self.table(*self.grid(q), width // heads))
            end = ctx.end and (given(ctx.end[2]), *ctx.end[1:])
            return ctx.alone()._replace(c=given(ctx.time), end=end, rope=tuple(rope))

        contexts = tuple(map(decoding, contexts, encoded, groups))
        streams = tuple(nn.with_logical_constraint(embed(self.cut(q.x_t)), STREAM) for q in groups)
        decoder = self.layer("decoder", groups, heads=heads)
        streams, _ = self.layers(decoder, streams, contexts, {}, self.decoder_depth, before=self.depth)
        return streams, tuple(context.seen(True) for context in contexts), states


class DDTBlock(Block):
    """Self-attention and SwiGLU, whose products have no biases but for attention's last."""

    def modulations(self, features: int) -> Callable[[jax.Array], jax.Array]:
        return Linear((features,), ("embed", "mlp"), "zeros", dtype=self.dtype, name="modulation")

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        return RMSNorm("embed", name=name)

    def branches(self, width: int) -> tuple[Branch, ...]:
        options = (self.heads, RMSNorm, self.dtype, self.attention, self.tokens)
        attn = SelfAttention(*options, qkv_bias=False, name="attn")
        mlp = SwiGLU(width * 4 * 2 // 3, width, ("batch", "tokens"), use_bias=False, dtype=self.dtype, name="mlp")
        return lambda z, ctx, in_jvp: attn(z, ctx.rope, in_jvp), lambda z, ctx, in_jvp: mlp(z)


class DDTFinalLayer(FinalLayer):
    """The final layer, whose condition has had its SiLU."""

    modulations = DDTBlock.modulations


DECODER = {"decoder_depth": 2, "decoder_width": 2048, "decoder_heads": 16}  # of every DiT^DH


class DiTDH(Positioned, DDT):
    """DiT^DH: blocks of LightningDiT, places as it has them, times by random frequencies."""

    # The encoders are as wide and deep as DiT's; XS, for CPUs, is not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "XS": DDT.SIZES["XS"] | {"decoder_width": 192, "decoder_heads": 6},
        **{name: size | DECODER for name, size in DiT.SIZES.items() if name != "XS"},
    }

    FROZEN: ClassVar[tuple[str, ...]] = ("t_embedder/frequencies",)

    qk_norm: bool = False  # RMS norm of queries and keys

    def published_time_embedder(self) -> nn.Module:
        return FourierEmbedder(self.width, "normal", self.dtype, name="t_embedder")

    def layer(self, name: str, groups: tuple[Query, ...], **fields: Any) -> nn.Module:
        return self.stacked(LightningBlock, groups, name, qk_norm=self.qk_norm, **fields)

    def final_layer(self, name: str) -> nn.Module:
        return LightningFinalLayer(dtype=self.dtype, patch_size=self.patch_size, channels=self.channels, name=name)
