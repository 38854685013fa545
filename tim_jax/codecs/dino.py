"""DINOv2 (Oquab et al., arXiv 2304.07193), with or without registers (arXiv 2309.16588), as an image encoder."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.codecs import configs
from tim_jax.codecs.layers import check_sides, self_attention
from tim_jax.codecs.loading import Kind, exactly

# Mean and standard deviation of ImageNet's colours, of values in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REGISTERS = 4  # where there are any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names, and whether position embeddings are interpolated with antialiasing."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int = 14
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    num_register_tokens: int = 0
    antialias: bool = False
    interpolate_offset: float = (
        0.0  # added to the size that position embeddings are brought to: 0.1 in DINOv2's own code
    )

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )


ONLY: dict[str, list] = {"hidden_act": ["gelu"], "use_swiglu_ffn": [False], "num_channels": [3]}
# How training began, and what other uses of the same files need.
IGNORED = [
    "apply_layernorm",
    "layerscale_value",
    "out_features",
    "out_indices",
    "reshape_hidden_states",
    "stage_names",
    "use_mask_token",
]


def read_config(values: Mapping[str, Any], source: str) -> Config:
    """Makes the Config of a config.json. Raises ValueError with one line."""
    registers = values.get("model_type") == "dinov2_with_registers"
    values = {"num_register_tokens": REGISTERS if registers else 0, **values, "antialias": registers}
    return configs.make(Config, values, source, ONLY, IGNORED)


class Dino(nn.Module):
    """Maps normalised images (B, H, W, 3) to tokens (B, 1 + registers + N, D): class, registers, patches row by row.

    Attributes:
        config: its sizes.
        dtype: of weights and computation.
        affine: whether the last norm has scale and bias.
    """

    config: Config
    dtype: Any = jnp.float32
    affine: bool = True

    @property
    def width(self) -> int:
        """D, the width of a feature."""
        return self.config.hidden_size

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred."""
        return (jnp.zeros((1, self.config.patch_size, self.config.patch_size, 3)),)

    @nn.compact
    def __call__(self, images):
        """Raises ValueError if a side of the images is no multiple of `patch_size`."""
        c, D = self.config, self.config.hidden_size
        check_sides(images, c.patch_size)
        token = partial(self.param, init_fn=nn.initializers.zeros)
        norm = partial(nn.LayerNorm, c.layer_norm_eps, dtype=self.dtype, use_fast_variance=False)
        size = (c.patch_size, c.patch_size)
        with exactly(self.dtype):
            patches = nn.Conv(D, size, size, dtype=self.dtype, name="embeddings.patch_embeddings.projection")
            x = patches(images.astype(self.dtype))
            B, h, w, _ = x.shape
            own = c.image_size // c.patch_size
            places = token("embeddings.position_embeddings", shape=(1, 1 + own * own, D)).astype(jnp.float32)
            table, first = places[:, 1:].reshape(own, own, D), places[:, :1]
            places = resized(table, h, w, c.antialias, c.interpolate_offset)
            x = (x + places[None].astype(self.dtype)).reshape(B, h * w, D)
            start = [token("embeddings.cls_token", shape=(1, 1, D)).astype(jnp.float32) + first]
            if c.num_register_tokens:
                start.append(token("embeddings.register_tokens", shape=(1, c.num_register_tokens, D)))
            start = [jnp.broadcast_to(part.astype(self.dtype), (B, *part.shape[1:])) for part in start]
            x = jnp.concatenate([*start, x], axis=1)
            for i in range(c.num_hidden_layers):
                x = Block(c, norm, self.dtype, name=f"encoder.layer.{i}")(x)
            return norm(use_scale=self.affine, use_bias=self.affine, name="layernorm")(x)

    def features(self, images, grid: tuple[int, int]):
        """Computes a feature for each place of a grid.

        Args:
            images: (B, H, W, 3) in [-1, 1]. They are resized so that a patch stands for a place of the grid.
            grid: (h, w), as a rule that of the tokens of the network which is aligned to the features.

        Returns:
            (B, h w, D) float32.
        """
        size = [side * self.config.patch_size for side in grid]
        x = jax.image.resize(images, (images.shape[0], *size, 3), "cubic")
        mean, std = (jnp.asarray(value)[None, None, None] for value in (MEAN, STD))
        x = (0.5 * x + 0.5 - mean) / std
        return self(x)[:, 1 + self.config.num_register_tokens :].astype(jnp.float32)


class Block(nn.Module):
    """Attention and an MLP, each scaled channel by channel and added to the input."""

    config: Config
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, D = self.config, x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)

        def scaled(y, name):
            return y * self.param(name, nn.initializers.ones, (D,)).astype(self.dtype)[None, None]

        z = self.norm(name="norm1")(x)
        x += scaled(self_attention(z, c.num_attention_heads, dense, c.qkv_bias), "layer_scale1.lambda1")
        y = nn.gelu(dense(int(D * c.mlp_ratio), name="mlp.fc1")(self.norm(name="norm2")(x)), approximate=False)
        return x + scaled(dense(D, name="mlp.fc2")(y), "layer_scale2.lambda1")


def resized(table_hwD, h: int, w: int, antialias: bool, offset: float = 0.0):
    """Resizes a table of position embeddings by bicubic interpolation, as the published code does.

    Args:
        table_hwD: the table.
        h: rows of the result.
        w: columns of the result.
        antialias: with it, the cubic is that of jax.image (a = −1/2), without it that of PyTorch (a = −3/4).
        offset: added to h and w where places are computed, unless the table has that size; without antialiasing only.

    Returns:
        (h, w, D).
    """
    if antialias:
        return jax.image.resize(table_hwD, (h, w, table_hwD.shape[-1]), "cubic")
    offset = 0.0 if table_hwD.shape[:2] == (h, w) else offset
    rows, columns = bicubic(table_hwD.shape[0], h, offset), bicubic(table_hwD.shape[1], w, offset)
    return jnp.einsum("yh,xw,hwd->yxd", rows, columns, table_hwD)


def bicubic(n: int, m: int, offset: float = 0.0, a: float = -0.75) -> np.ndarray:
    """Returns (m, n) weights that interpolate n samples at m places: pixel centres at halves, edges repeated.

    With an offset places lie as if there were m + offset of them.
    """
    place = (np.arange(m) + 0.5) * n / (m + offset) - 0.5
    left = np.floor(place).astype(int)
    weights = np.zeros((m, n), np.float32)
    for tap in range(-1, 3):
        d = np.abs(place - left - tap)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
        np.add.at(weights, (np.arange(m), np.clip(left + tap, 0, n - 1)), np.where(d <= 1, near, far))
    return weights


# Files written before the fifth version of transformers have other names for attention.
OLDER_ATTENTION = [
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
]
KIND = Kind(
    Dino,
    read_config,
    [(r"^dinov2(_with_registers)?\.", ""), (r"^embeddings\.mask_token$", None), *OLDER_ATTENTION],
)
