"""The network of Transition Models (TiM, arXiv 2509.04394)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tim_jax.runs.pytorch.layers import (
    LabelEmbedder,
    PatchEmbedder,
    TimeEmbedder,
    attend,
    axis_angles,
    heads_of,
    modulate,
    rotate,
)
from tim_jax.runs.pytorch.transformer import Context, Transformer

# The embedding of the interval, of the embedders T of times and D of intervals.
INTERVALS = {
    "t-r": lambda T, D, t, r: D(t - r),
    "r": lambda T, D, t, r: D(r),
    "t,r": lambda T, D, t, r: T(t) + D(r),
    "t,t-r": lambda T, D, t, r: T(t) + D(t - r),
    "r,t-r": lambda T, D, t, r: T(r) + D(t - r),
    "t,r,t-r": lambda T, D, t, r: T(t) + T(r) + D(t - r),
}

# Token n of h × w patches → the positions that turn the first and the second half of a head's values. Weights of
# networks of squares are stored with the two halves exchanged.
ORDERS = {
    "row_major": lambda n, h, w: (n // w, n % w),
    "exchanged": lambda n, h, w: (n % w, n // w),
    "official": lambda n, h, w: (n % h, n // h),
}


def norm(x: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def head_norm(width: int, qk_norm: bool) -> nn.Module:
    """The norm of queries or keys."""
    return nn.LayerNorm(width) if qk_norm else nn.Identity()


class SwiGLU(nn.Module):
    """(silu(x W_g) * x W_x) W_2, with biases."""

    def __init__(self, width: int, hidden: int, features: int):
        super().__init__()
        self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.silu(self.fc1_g(x)) * self.fc1_x(x))


class CaptionEmbedder(nn.Module):
    """Features of prompts (B, M, T) → (B, M, D)."""

    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(text_width), SwiGLU(text_width, 4 * width, width)

    def forward(self, text: Tensor) -> Tensor:
        return norm(self.mlp(self.norm(text)))


class Attention(nn.Module):
    """Attention among patches; the embedding of the interval enters q, k and v, and RoPE turns q and k."""

    def __init__(self, width: int, heads: int, qk_norm: bool, interval_aware: bool):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.qkv_d = nn.Linear(width, 3 * width, bias=False) if interval_aware else None
        self.q_norm, self.k_norm = (head_norm(width // heads, qk_norm) for _ in range(2))

    def forward(self, x: Tensor, seen: Context) -> Tensor:
        qkv = self.qkv(x) if self.qkv_d is None else self.qkv(x) + self.qkv_d(seen.delta)
        q, k, v = heads_of(qkv, 3, self.heads)
        return self.proj(attend(rotate(self.q_norm(q), seen.angle), rotate(self.k_norm(k), seen.angle), v))


class CrossAttention(nn.Module):
    """Attention from patches to a prompt, with RoPE on q alone."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads, self.q, self.kv = heads, nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = (head_norm(width // heads, qk_norm) for _ in range(2))

    def forward(self, x: Tensor, seen: Context) -> Tensor:
        (q,), (k, v) = heads_of(self.q(x), 1, self.heads), heads_of(self.kv(seen.text), 2, self.heads)
        return self.proj(attend(rotate(self.q_norm(q), seen.angle), self.k_norm(k), v, seen.mask[:, None, None]))


class Block(nn.Module):
    """Branches x + gate * f(norm(x) (1 + scale) + shift), f being attention (to patches, to the prompt) and SwiGLU."""

    def __init__(self, width: int, heads: int, bottleneck: int, qk_norm: bool, interval_aware: bool, text: bool):
        super().__init__()
        self.attn = Attention(width, heads, qk_norm, interval_aware)
        if text:
            self.cross_attn = CrossAttention(width, heads, qk_norm)
        self.mlp = SwiGLU(width, width * 4 * 2 // 3, width)
        self.adaLN_modulation = SwiGLU(width, bottleneck, (9 if text else 6) * width)

    def forward(self, x: Tensor, seen: Context) -> Tensor:
        across = [] if seen.text is None else [lambda z: self.cross_attn(z, seen)]
        branches: list[Any] = [lambda z: self.attn(z, seen), *across, self.mlp]
        chunks = self.adaLN_modulation(seen.c).chunk(3 * len(branches), dim=-1)
        for branch, shift, scale, gate in zip(branches, chunks[0::3], chunks[1::3], chunks[2::3]):
            x = x + gate * branch(modulate(norm(x), shift, scale))
        return x


class FinalLayer(nn.Module):
    """A modulated norm, and a linear map to patches."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.adaLN_modulation, self.linear = SwiGLU(width, width // 2, 2 * width), nn.Linear(width, features)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulate(norm(x), *self.adaLN_modulation(c).chunk(2, dim=-1)))


class TiM(Transformer):
    """F(x_t, t, r, condition); the arguments are those of RUN["network"]."""

    def __init__(self, bottleneck: int, condition: str, text_width: int, conditioning: str,
                 separate_interval_embedder: bool, interval_aware: bool, qk_norm: bool, rope_order: str,
                 use_text_mask: bool, **shared: Any):  # fmt: skip
        super().__init__(**shared | ({"class_tokens": 0} if condition == "text" else {}))
        width, heads, text = self.width, shared["heads"], condition == "text"
        self.conditioning, self.rope_order, self.own_mask = conditioning, rope_order, use_text_mask
        self.x_embedder, self.t_embedder = PatchEmbedder(self.channels, width, self.patch_size), TimeEmbedder(width)
        if separate_interval_embedder and not self.decoupled:
            self.delta_embedder = TimeEmbedder(width)
        self.y_embedder = CaptionEmbedder(text_width, width) if text else LabelEmbedder(shared["num_classes"], width)
        block = (width, heads, bottleneck, qk_norm, interval_aware, text)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(self.depth))
        self.final_layer = FinalLayer(width, self.patch_size**2 * self.channels)

    def angles(self, h: int, w: int, like: Tensor) -> Tensor:
        first, second = ORDERS[self.rope_order](torch.arange(h * w, device=like.device), h, w)
        return axis_angles((first.to(like), second.to(like)), self.K)

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        D = getattr(self, "delta_embedder", self.t_embedder)
        return INTERVALS[self.conditioning](self.t_embedder, D, t, r)

    def layer(self, block: nn.Module, y: Tensor, seen: Context) -> Tensor:
        return block(y, seen)

    def texts(self, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mask = condition["mask"].bool()
        if not self.own_mask:  # all attend to as many tokens as the longest prompt has
            mask = mask.any(dim=0, keepdim=True).expand_as(mask)
        return self.y_embedder(condition["text"]), mask
