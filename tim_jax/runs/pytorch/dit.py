"""The network of DiT (arXiv 2212.09748), SiT (arXiv 2401.08740) and REPA (arXiv 2410.06940)."""

from typing import Any

from torch import Tensor, nn

from tim_jax.runs.pytorch.layers import (
    LabelEmbedder,
    ModulatedBlock,
    ModulatedFinalLayer,
    PatchEmbedder,
    SelfAttention,
    TimeEmbedder,
    axis_angles,
    grid,
    layer_norm,
    sincos,
)
from tim_jax.runs.pytorch.single_time import SingleTime


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DiT(SingleTime):
    """The output of DiT for (x_t, t, r, condition)."""

    def __init__(self, learn_sigma: bool, positions: str, positions_side: int, **shared: Any):
        super().__init__(**shared)
        self.positions, self.side = positions, positions_side
        C = self.channels * (2 if learn_sigma else 1)  # the second half, of variances, is left out
        self.x_embedder, self.t_embedder = self.patches(), TimeEmbedder(self.width)
        self.y_embedder = LabelEmbedder(shared["num_classes"], self.width)
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
        return sincos(self.x_embedder(x), h, w, self.positions, self.side)

    def angles(self, h: int, w: int, like: Tensor) -> Tensor | None:
        return axis_angles(grid(h, w, like), self.K) if self.positions == "rope" else None
