"""What the networks share."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from tim_jax.runs.pytorch.layers import OwnTimeEmbedder, unpatch

Condition: TypeAlias = Tensor | Mapping[str, Tensor]  # labels (B,), or {"text": (B, M, T), "mask": (B, M)}


class Context(NamedTuple):
    """What the blocks see.

    Times and condition c (B, 1, D), the embeddings of the times and of the interval alone, RoPE's angles, and the
    prompt with its mask; None where a network has no such thing.
    """

    c: Tensor
    time: Tensor
    delta: Tensor
    angle: Any
    text: Any
    mask: Any


class Transformer(nn.Module):
    """A transformer F(x_t, t, r, condition): tokens of patches, blocks that conditions modulate, and patches again.

    A network has these modules, under their published names.
    """

    x_embedder: nn.Module
    t_embedder: nn.Module
    y_embedder: nn.Module
    blocks: nn.ModuleList
    final_layer: nn.Module

    def __init__(self, width: int, heads: int, depth: int, patch_size: int, channels: int, num_classes: int,
                 decoupled_depth: int = 0, class_tokens: int = 0, guidance_tokens: int = 0,
                 guidance_input: bool = False):  # fmt: skip
        super().__init__()
        self.width, self.K, self.patch_size, self.channels = width, width // heads, patch_size, channels
        self.depth, self.decoupled = depth, decoupled_depth
        # Tokens in front of those of the image, which carry conditions beside the modulation.
        self.fronts = {"class_tokens": class_tokens}
        if guidance_input:
            self.guidance_embedder = nn.ModuleDict({k: OwnTimeEmbedder(width) for k in ("scale", "low", "high")})
            self.fronts |= {"scale_tokens": guidance_tokens, "interval_tokens": guidance_tokens}
        self.add_fronts()

    def add_fronts(self, **counts: int) -> None:
        """Adds tokens in front, so many of each name."""
        self.fronts = {name: count for name, count in (self.fronts | counts).items() if count}
        for name, count in self.fronts.items():
            self.add_tokens(name, count)

    def add_tokens(self, name: str, count: int) -> None:
        """Adds the parameters of tokens in front."""
        self.add_module(name, nn.ParameterDict({"tokens": torch.empty(count, self.width)}))

    def tokens(self, name: str) -> Tensor:
        """The parameters (count, D) of tokens in front."""
        return self.get_submodule(name)["tokens"]

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of images (B, C, h, w)."""
        return self.x_embedder(x)

    def angles(self, h: int, w: int, like: Tensor) -> Tensor | None:
        """RoPE's angles (N, K/2) of h × w patches; None for a network without RoPE."""
        return None

    def time(self, t: Tensor) -> Tensor:
        """The embedding (B, D) of a time."""
        return self.t_embedder(t)

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        """The embedding (B, D) of the interval."""
        raise NotImplementedError

    def joined(self, c: Tensor) -> Tensor:
        """The condition that modulates, of the sum of all embeddings."""
        return c

    def trunk(self, x: Tensor, early: Context, late: Context, front: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The tokens of the image after all blocks, and what modulates the final layer."""
        y = torch.cat([*front, self.embed(x)], dim=1)
        for number, block in enumerate(self.blocks):
            y = self.layer(block, y, late if number >= self.depth - self.decoupled else early)
        return y[:, sum(self.fronts.values()) :], late.c

    def image(self, y: Tensor, h: int, w: int) -> Tensor:
        """The output (B, C, h, w) of tokens (B, N, p p C)."""
        return unpatch(y, h, w, self.patch_size)

    def layer(self, block: nn.Module, y: Tensor, seen: Context) -> Tensor:
        """One block."""
        return block(y, seen.c, seen.angle)

    def texts(self, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Prompts (B, M, D) and their masks, of networks that know prompts."""
        raise NotImplementedError

    def contexts(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition, guidance: Any) -> tuple[Any, ...]:
        """What the first blocks see, what the last ones and the final layer see, and the tokens in front."""
        more, text, mask = self.guided(guidance, x), None, None
        if isinstance(condition, Tensor):
            more["class_tokens"] = self.y_embedder(condition)
        else:
            text, mask = self.texts(condition)
        others = sum(more.values())
        T = self.time
        if self.decoupled:  # the last blocks see r alone, and those before them t alone
            early, late = ((T(time), T(time)) for time in (t, r))
        else:
            more["delta_tokens"] = delta = self.interval(t, r)
            early = late = (T(t) if "delta_tokens" in self.fronts else T(t) + delta, delta)
        front = [self.tokens(name) + more[name][:, None] for name in self.fronts]
        h, w = (n // self.patch_size for n in x.shape[2:])
        angle = self.angles(h, w, x)
        if angle is not None:  # tokens of conditions are not turned
            angle = functional.pad(angle, (0, 0, sum(self.fronts.values()), 0))
        seen = [
            Context(self.joined(time + others)[:, None], time[:, None], delta[:, None], angle, text, mask)
            for time, delta in (early, late)
        ]
        return *seen, front

    def guided(self, guidance: Any, like: Tensor) -> dict[str, Tensor]:
        """The embeddings of guidance as an input: of its scale, and of the interval of times in which it holds."""
        if guidance is None:
            return {}
        scale, low, high = torch.tensor(guidance).to(like)
        inputs = {"scale": torch.log(scale), "low": low, "high": high}
        made = {name: self.guidance_embedder[name](value.expand(len(like))) for name, value in inputs.items()}
        return {"scale_tokens": made["scale"], "interval_tokens": made["low"] + made["high"]}

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition, guidance: Any = None) -> Tensor:
        """The output (B, C, h, w).

        Args:
            x: states (B, C, h, w).
            t, r: c_noise of the two times, (B,).
            condition: labels (B,), or {"text": (B, M, T), "mask": (B, M)}.
            guidance: of networks that have it as an input, the scale and the times between which it holds.
        """
        early, late, front = self.contexts(x, t, r, condition, guidance)
        y, c = self.trunk(x, early, late, front)
        return self.image(self.final_layer(y, c), *x.shape[2:])
