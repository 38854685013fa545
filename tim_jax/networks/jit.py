"""JiT, just image transformers (Li and He, arXiv 2511.13720): pixels in large patches, and the output is the image.

    z = (x_t W_1) W_2 + positions, W_1 to a few dimensions;   c = time(t) + class
    the first blocks: those of LightningDiT, on the tokens of the image
    the others: the same, with tokens of the class in front, z = [class + positions', z]
    x̂ = (RMSNorm(z) (1 + scale) + shift) W, of the image's tokens

It goes with `transport.prediction = "x"`, which makes F of x̂ for any t and r.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from tim_jax.networks.checks import check_at_least
from tim_jax.networks.dit import DiT
from tim_jax.networks.layers import Linear
from tim_jax.networks.lightningdit import LightningDiT
from tim_jax.networks.transformer import Contexts, States, Streams, image, join
from tim_jax.types import Query


class JiT(LightningDiT):
    """JiT: published for images of 256 × 256 with patches of 16, and of 512 × 512 with patches of 32."""

    # XS, for CPUs, and S are not published.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        name: DiT.SIZES.get(name, own)
        | {"encoder_depth": start, "context_start": start, "patch_bottleneck": bottleneck, "class_tokens": tokens}
        for name, own, start, bottleneck, tokens in (
            ("XS", {}, 2, 32, 4),
            ("S", {}, 4, 128, 32),
            ("B", {}, 4, 128, 32),
            ("L", {}, 8, 128, 32),
            ("H", {"depth": 32, "width": 1280, "heads": 16}, 10, 256, 32),
        )
    }

    patch_bottleneck: int = 128  # the width through which patches are embedded
    context_start: int = 4  # blocks before the tokens of conditions join those of the image

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_at_least(self, 1, "patch_bottleneck", "context_start")
        if self.context_start >= self.depth:
            raise ValueError(
                f"model.context_start is {self.context_start}; it must be less than model.depth, {self.depth}"
            )
        if self.slices > 1:
            raise ValueError(
                f"model.slices is {self.slices}; it must be 1 for a network whose blocks see different tokens"
            )

    def patch_embedder(self) -> Callable[[jax.Array], jax.Array]:
        pixels, narrow = (None, None, None), (self.patch_bottleneck,)
        reduce = Linear(narrow, (*pixels, None), use_bias=False, dtype=self.dtype, name="patch_in")
        expand = Linear((self.width,), (None, "embed"), dtype=self.dtype, name="patch")
        return lambda patches: expand(reduce(patches))

    def trunk(
        self, groups: tuple[Query, ...], streams: Streams, contexts: Contexts, wanted: tuple[int, ...]
    ) -> tuple[Streams, Contexts, States]:
        # All blocks are one stack of parameters: the first run without the tokens of conditions, the others with them.
        block, start = self.block(groups), 0 if self.is_initializing() else self.context_start
        states: States = {}
        if start:
            alone = tuple(context.alone() for context in contexts)
            states = dict.fromkeys((n for n in wanted if n <= start), streams)
            streams, states = self.layers(block, streams, alone, states, self.depth, 0, start)
        streams = join(streams, contexts)
        late = dict.fromkeys((n for n in wanted if n > start), streams)
        streams, late = self.layers(block, streams, contexts, late, self.depth, start, self.depth - start)
        states |= {n: image(xs, contexts) for n, xs in late.items()}
        return image(streams, contexts), tuple(context.seen(True) for context in contexts), states
