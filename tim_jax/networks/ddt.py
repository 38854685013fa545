"""Decoupled diffusion transformers: an encoder finds what an image is of, and a decoder, given that, the velocity.

                 encoder                                      decoder
    x_t ─ patches ─ depth blocks ─ s ── z = silu(τ + s) ──┐
                     ↑ c = silu(τ + class)                ↓ z modulates each token
                     τ of t (and r)         x_t ─ patches ─ decoder_depth blocks ─ final layer ─ F

`DDT` is that of DDT (Wang et al., arXiv 2504.05741), `DiTDH` is DiT^DH of RAE (Zheng et al., arXiv 2510.11690), whose
decoder is shallow and as wide as the latents need it.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention import sequence
from tim_jax.networks.attention.modules import SelfAttention
from tim_jax.networks.block import STREAM, Block, Branch, Context, FinalLayer
from tim_jax.networks.checks import check_at_least, check_heads_of
from tim_jax.networks.embeddings import FourierEmbedder, TimeEmbedder
from tim_jax.networks.layers import Linear, RMSNorm, SwiGLU, wide
from tim_jax.networks.rope import spread_rope_table
from tim_jax.networks.transformer import Contexts, States, Streams, Transformer
from tim_jax.types import Query


class DDT(Transformer):
    """DDT: RMSNorm, SwiGLU, RoPE on positions relative to the grid, SiLU of conditions once, before all blocks."""

    # XS, for CPUs, is not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "XS": {"depth": 3, "decoder_depth": 1, "width": 160, "heads": 5, "encoder_depth": 2},
        "B": {"depth": 8, "decoder_depth": 4, "width": 768, "heads": 12, "encoder_depth": 4},
        "L": {"depth": 20, "decoder_depth": 4, "width": 1024, "heads": 16, "encoder_depth": 8},
        "XL": {"depth": 22, "decoder_depth": 6, "width": 1152, "heads": 16, "encoder_depth": 8},
    }
    STACKS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    decoder_depth: int = 4  # blocks of the decoder, after the `depth` of the encoder, which can be tapped and aligned
    decoder_width: int = 0  # of the decoder; 0: `width`
    decoder_heads: int = 0  # of the decoder; 0: `heads`

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_at_least(self, 1, "decoder_depth")
        check_at_least(self, 0, "decoder_width", "decoder_heads")
        check_heads_of(self.heads_of_decoder, self.width_of_decoder, "decoder_")
        if self.slices > 1:
            raise ValueError(f"model.slices is {self.slices}; it must be 1 for an encoder and a decoder")

    @property
    def blocks(self) -> int:
        return self.depth + self.decoder_depth

    @property
    def width_of_decoder(self) -> int:
        """The decoder's width."""
        return self.decoder_width or self.width

    @property
    def heads_of_decoder(self) -> int:
        """The decoder's attention heads."""
        return self.decoder_heads or self.heads

    def time_embedder(self) -> Callable[[jax.Array], jax.Array]:
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
        """Returns a layer of the encoder or of the decoder."""
        return self.stacked(DDTBlock, groups, name, **fields)

    def final(self, name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return DDTFinalLayer(dtype=self.dtype, patch_size=self.patch_size, channels=self.channels, name=name)

    def trunk(
        self, groups: tuple[Query, ...], streams: Streams, contexts: Contexts, wanted: tuple[int, ...]
    ) -> tuple[Streams, Contexts, States]:
        encoded, _, states = super().trunk(groups, streams, contexts, wanted)
        width, heads = self.width_of_decoder, self.heads_of_decoder
        embed = Linear((width,), (None, None, None, "embed"), dtype=self.dtype, name="decoder_patch")
        project: Callable[[jax.Array], jax.Array] = lambda z: z  # noqa: E731
        if width != self.width:
            project = Linear((width,), ("mlp", "embed"), dtype=self.dtype, name="decoder_condition")

        def decoding(ctx: Context, s: jax.Array, q: Query) -> Context:
            def given(time: jax.Array) -> jax.Array:
                z = project(nn.silu(time[:, None] + s).astype(self.dtype))
                return nn.with_logical_constraint(z, STREAM)

            h, w = self.grid(q)
            parts = (sequence.part(x, self.tokens) for x in (*self.table(h, w, width // heads), jnp.arange(h * w)))
            *rope, numbers = parts
            ctx = ctx._replace(c=given(ctx.time), rope=tuple(rope), numbers=numbers, front=None)
            if ctx.end is None:
                return ctx
            _, delta, time = ctx.end
            return ctx._replace(end=(given(time), delta, time))

        contexts = tuple(map(decoding, contexts, encoded, groups))
        streams = tuple(nn.with_logical_constraint(embed(self.cut(q.x_t)), STREAM) for q in groups)
        decoder = self.layer("decoder", groups, heads=heads)
        streams, _ = self.layers(decoder, streams, contexts, {}, self.decoder_depth, before=self.depth)
        return streams, tuple(context.seen(True) for context in contexts), states


class DDTBlock(Block):
    """Self-attention and SwiGLU, without biases but for attention's output; conditions have had their SiLU."""

    def modulations(self, features: int) -> Callable[[jax.Array], jax.Array]:
        return Linear((features,), ("embed", "mlp"), "zeros", dtype=self.dtype, name="modulation")

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        return RMSNorm("embed", name=name)

    def branches(self, width: int) -> tuple[Branch, ...]:
        attn = SelfAttention(
            self.heads, RMSNorm, self.dtype, self.attention, self.tokens, qkv_bias=False, name="attn"
        )
        mlp = SwiGLU(width * 4 * 2 // 3, width, ("batch", "tokens"), use_bias=False, dtype=self.dtype, name="mlp")
        return lambda z, ctx, in_jvp: attn(z, ctx.rope, in_jvp), lambda z, ctx, in_jvp: mlp(z)


class DDTFinalLayer(FinalLayer):
    """The final layer; conditions have had their SiLU."""

    modulations = DDTBlock.modulations
