"""The network of DiT (arXiv 2212.09748), SiT (arXiv 2401.08740) and REPA (arXiv 2410.06940)."""

from typing import Any

from torch import Tensor, nn

from tim_jax.runs.pytorch.layers import (
    LabelEmbedder,
    ModulatedBlock,
    ModulatedFinalLayer,
    OwnTimeEmbedder,
    PatchEmbedder,
    SelfAttention,
    TimeEmbedder,
    layer_norm,
    sincos,
)
from tim_jax.runs.pytorch.transformer import Transformer


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DiT(Transformer):
    """The output of DiT for (x_t, t, r, condition)."""

    def __init__(self, learn_sigma: bool, **shared: Any):
        super().__init__(**shared)
        C = self.channels * (2 if learn_sigma else 1)  # the second half, of variances, is dropped
        self.x_embedder, self.t_embedder = self.patches(), TimeEmbedder(self.width)
        self.y_embedder = LabelEmbedder(shared["num_classes"], self.width)
        self.interval_embedder = OwnTimeEmbedder(self.width)
        self.blocks = nn.ModuleList(self.block(shared["heads"]) for _ in range(self.depth))
        self.final_layer = self.final(self.patch_size**2 * C)

    def patches(self) -> nn.Module:
        """The layers from patches to tokens."""
        return PatchEmbedder(self.channels, self.width, self.patch_size)

    def block(self, heads: int) -> nn.Module:
        """A layer."""
        return ModulatedBlock(self.width, layer_norm, SelfAttention(self.width, heads), Mlp(self.width, 4 * self.width))

    def final(self, features: int) -> nn.Module:
        """The last layer."""
        return ModulatedFinalLayer(self.width, features, layer_norm)

    def embed(self, x: Tensor) -> Tensor:
        h, w = (n // self.patch_size for n in x.shape[2:])
        return self.x_embedder(x) + sincos(h, w, self.width, None, x)

    def image(self, y: Tensor, h: int, w: int) -> Tensor:
        return super().image(y, h, w)[:, : self.channels]

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        return self.interval_embedder(t - r)
