"""Layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchEmbedder(nn.Module):
    """Patches of p × p as tokens, row by row: (B, C, h, w) → (B, N, D)."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatch(y: Tensor, h: int, w: int, p: int) -> Tensor:
    """Joins tokens (B, N, p p C) to images (B, C, h, w)."""
    y = y.reshape(len(y), h // p, w // p, p, p, -1)
    return torch.einsum("bhwijc->bchiwj", y).reshape(len(y), -1, h, w)


def sinusoids(t: Tensor, base: float = 10000.0, width: int = 256) -> Tensor:
    """Cosines, then sines, of t · base^(−2i/width): (B,) → (B, width)."""
    angle = t[:, None] * base ** (-torch.arange(width // 2, dtype=t.dtype, device=t.device) / (width // 2))
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class TimeEmbedder(nn.Module):
    """Sinusoids, Linear, SiLU, Linear: (B,) → (B, D)."""

    def __init__(self, width: int, base: float = 10000.0):
        super().__init__()
        self.base, self.mlp = base, nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoids(t, self.base))


class OwnTimeEmbedder(nn.ModuleDict):
    """The same where the published network has no such embedder."""

    def __init__(self, width: int, base: float = 10000.0):
        super().__init__({"in": nn.Linear(256, width), "out": nn.Linear(width, width)})
        self.base = base
        for parameter in self["out"].parameters():  # which a file lacks where training has left it so
            nn.init.zeros_(parameter)

    def forward(self, t: Tensor) -> Tensor:
        return self["out"](functional.silu(self["in"](sinusoids(t, self.base))))


class LabelEmbedder(nn.Module):
    """A vector for each class, and a last one for none: (B,) → (B, D)."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


def modulate(x: Tensor, shift: Tensor | float, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift


def heads_of(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Splits (B, N, parts · H · K) into so many arrays (B, H, N, K)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ/√K) v of (B, H, N, K), its heads side by side: (B, N, D)."""
    return functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """RoPE: turns each pair of neighbouring values of x (B, H, N, K) by its angle (N, K/2)."""
    a, b, cos, sin = x[..., 0::2], x[..., 1::2], torch.cos(angle), torch.sin(angle)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def grid(h: int, w: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the columns (N,) of h × w patches."""
    n = torch.arange(h * w, device=like.device)
    return (n // w).to(like), (n % w).to(like)


def axis_angles(positions: tuple[Tensor, Tensor], K: int) -> Tensor:
    """RoPE's angles (N, K/2): position · 10000^(−4i/K), half of the pairs for either of two positions (N,)."""
    first = positions[0]
    frequency = 10000.0 ** (-torch.arange(0, K // 2, 2, dtype=first.dtype, device=first.device) / (K // 2))
    return torch.cat([p[:, None] * frequency for p in positions], dim=-1)


def sincos(x: Tensor, h: int, w: int, positions: str, side: int) -> Tensor:
    """Adds to h × w patches (B, N, D) where they are: sines, then cosines, of the column, and of the row.

    The grid of "interpolated" positions is stretched over a square of so many patches along a side. With "rope" nothing
    is added.
    """
    if positions == "rope":
        return x
    quarter, lines = x.shape[-1] // 4, []
    for n in (w, h):
        place = torch.arange(n, dtype=torch.float64)
        if positions == "interpolated":
            place = (place + 0.5) * side / n - 0.5
        angle = place[:, None] * 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        lines.append(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))
    columns, rows = lines
    parts = [columns[None].expand(h, -1, -1), rows[:, None].expand(-1, w, -1)]
    return x + torch.cat(parts, dim=-1).flatten(0, 1).float().to(x)  # of float32, as published


def layer_norm(width: int) -> nn.Module:
    """Layer norm without parameters."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def rms_norm(width: int) -> nn.Module:
    """x / √(mean of x² + 10⁻⁶), times a weight."""
    return nn.RMSNorm(width, eps=1e-6)


class SelfAttention(nn.Module):
    """Attention among tokens; q and k are normalised, if at all, then turned by RoPE, if there are angles."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False, bias: bool = True):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width, bias), nn.Linear(width, width)
        self.q_norm, self.k_norm = (rms_norm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angle: Tensor | None) -> Tensor:
        q, k, v = heads_of(self.qkv(x), 3, self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(attend(q, k, v) if angle is None else attend(rotate(q, angle), rotate(k, angle), v))


class PackedSwiGLU(nn.Module):
    """(silu(a) * b) W_3, a and b being the halves of x W_12."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * up)


class ModulatedBlock(nn.Module):
    """x + gate * f(norm(x) (1 + scale) + shift), f being attention, then the MLP; `shift` says whether there is one."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], attn: nn.Module, mlp: nn.Module,
                 before: Sequence[nn.Module] = (nn.SiLU(),), shift: bool = True):  # fmt: skip
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(width), attn, norm(width), mlp
        self.adaLN_modulation = nn.Sequential(*before, nn.Linear(width, (6 if shift else 4) * width))
        self.shift = shift

    def forward(self, x: Tensor, c: Tensor, angle: Tensor | None) -> Tensor:
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        else:
            scale1, gate1, scale2, gate2 = self.adaLN_modulation(c).chunk(4, dim=-1)
            shift1 = shift2 = 0.0
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), angle)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class ModulatedFinalLayer(nn.Module):
    """A modulated norm, and a linear map to patches."""

    def __init__(self, width: int, features: int, norm: Callable[[int], nn.Module],
                 before: Sequence[nn.Module] = (nn.SiLU(),)):  # fmt: skip
        super().__init__()
        self.norm_final, self.linear = norm(width), nn.Linear(width, features)
        self.adaLN_modulation = nn.Sequential(*before, nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, dim=-1)))
