"""The autoencoder of Stable Diffusion (Rombach et al., arXiv 2112.10752), published as AutoencoderKL.

That of LightningDiT, VA-VAE (arXiv 2501.01423), is one, too: 16 pixels to a latent of 32 channels, attention beside the
residual blocks of the coarsest level, and latents that are normalised channel by channel.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.codecs import configs
from tim_jax.codecs.layers import check_sides, doubled
from tim_jax.codecs.loading import Kind, exactly

LOG_VARIANCE = (-30.0, 20.0)  # what published code clips log variances to


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names. Scaled latents are (z − `shift`) · `scale`."""

    block_out_channels: tuple
    in_channels: int = 3
    out_channels: int = 3
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    # The levels, from the first to the last; those with attention after each residual block begin with "Attn".
    down_block_types: tuple | None = None
    up_block_types: tuple | None = None
    latents_mean: tuple | None = None  # of the channels of z
    latents_std: tuple | None = None

    def __post_init__(self):
        lengths = {"down_block_types": len(self.block_out_channels), "up_block_types": len(self.block_out_channels)}
        lengths |= dict.fromkeys(("latents_mean", "latents_std"), self.latent_channels)
        for key, length in lengths.items():
            if (values := getattr(self, key)) is not None and len(values) != length:
                raise ValueError(f"{key} is {values}; it must have {length} entries")
        if self.latents_mean is not None and self.shift_factor:
            raise ValueError(f"shift_factor is {self.shift_factor}; it must be null beside latents_mean")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels is {self.block_out_channels}; each must be a multiple of norm_num_groups, "
                f"{self.norm_num_groups}"
            )

    @property
    def shift(self):
        """What is taken from z (B, h, w, C): (1, 1, 1, C), or (1, 1, 1, 1) for all channels."""
        return np.array([[[self.latents_mean or (self.shift_factor or 0.0,)]]], np.float32)

    @property
    def scale(self):
        """What that is multiplied by, of such a shape."""
        return self.scaling_factor / np.array([[[self.latents_std or (1.0,)]]], np.float32)


ONLY: dict[str, list] = {
    "act_fn": ["silu"],
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
}


class AutoencoderKL(nn.Module):
    """An autoencoder between images (B, H, W, 3) in [-1, 1] and latents (B, H/f, W/f, C).

    Inputs and outputs are float32, whatever `dtype` it computes in.
    """

    config: Config
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """f, the pixels per latent along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def setup(self):
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        if c.use_quant_conv:
            self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1), dtype=self.dtype)
        if c.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1), dtype=self.dtype)

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred."""
        return (jnp.zeros((1, self.factor, self.factor, self.config.in_channels)),)

    def __call__(self, images):
        return self.decode(self.encode(images))

    def moments(self, images):
        """Encodes images (B, H, W, 3) to the distribution of z.

        Returns:
            (mean, log variance), both (B, h, w, C) and not scaled.

        Raises:
            ValueError: if a side of the images is no multiple of `factor`.
        """
        check_sides(images, self.factor)
        with exactly(self.dtype):
            z = self.encoder(images.astype(self.dtype))
            z = self.quant_conv(z) if self.config.use_quant_conv else z
        mean, logvar = jnp.split(z.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOG_VARIANCE)

    def encode(self, images, keys_B=None):
        """Encodes images to scaled latents: the mean, or a sample where there is a random key (B,) for each image."""
        return self.latents(*self.moments(images), keys_B)

    def latents(self, mean, logvar, keys_B=None):
        """Returns scaled latents of the moments of z: the mean, or a sample where there is a key for each image."""
        z = mean
        if keys_B is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys_B)
            z = mean + jnp.exp(0.5 * logvar) * noise
        return (z - self.config.shift) * self.config.scale

    def scaled(self, mean, logvar):
        """Returns the moments (mean, log variance) of scaled latents from those of z."""
        scale = self.config.scale
        return (mean - self.config.shift) * scale, logvar + 2 * np.log(np.abs(scale))

    def decode(self, latents):
        """Returns the images (B, H, W, 3) of scaled latents (B, H/f, W/f, C); they may leave [-1, 1] a little."""
        z = latents / self.config.scale + self.config.shift
        with exactly(self.dtype):
            z = z.astype(self.dtype)
            z = self.post_quant_conv(z) if self.config.use_post_quant_conv else z
            return self.decoder(z).astype(jnp.float32)


class Encoder(nn.Module):
    """Maps images (B, H, W, 3) to moments (B, H/f, W/f, 2 C): means, then log variances."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, widths = self.config, self.config.block_out_channels
        x = _conv(widths[0], self.dtype, name="conv_in")(x)
        for i, width in enumerate(widths):
            attends = _attends(c.down_block_types, i)
            x = Level(width, c.layers_per_block, attends, c.norm_num_groups, self.dtype, name=f"down_blocks.{i}")(x)
            if i < len(widths) - 1:
                # Published code pads below and to the right only.
                pad = ((0, 1), (0, 1))
                down = nn.Conv(width, (3, 3), 2, pad, dtype=self.dtype, name=f"down_blocks.{i}.downsamplers.0.conv")
                x = down(x)
        x = Middle(c, self.dtype, name="mid_block")(x)
        x = nn.silu(_norm(c.norm_num_groups, self.dtype, name="conv_norm_out")(x))
        return _conv(2 * c.latent_channels, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Maps z (B, h, w, C) to images (B, f h, f w, 3)."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, widths = self.config, self.config.block_out_channels[::-1]
        x = _conv(widths[0], self.dtype, name="conv_in")(x)
        x = Middle(c, self.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            attends = _attends(c.up_block_types, i)
            x = Level(width, c.layers_per_block + 1, attends, c.norm_num_groups, self.dtype, name=f"up_blocks.{i}")(x)
            if i < len(widths) - 1:
                x = _conv(width, self.dtype, name=f"up_blocks.{i}.upsamplers.0.conv")(doubled(x))
        x = nn.silu(_norm(c.norm_num_groups, self.dtype, name="conv_norm_out")(x))
        return _conv(c.out_channels, self.dtype, name="conv_out")(x)


class Level(nn.Module):
    """Residual blocks of one width, each of them followed by attention if `attends`."""

    width: int
    layers: int
    attends: bool
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for j in range(self.layers):
            x = Resnet(self.width, self.groups, self.dtype, name=f"resnets.{j}")(x)
            if self.attends:
                x = Attention(self.groups, self.dtype, name=f"attentions.{j}")(x)
        return x


class Middle(nn.Module):
    """Two residual blocks, and attention among all places between them."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        width, groups = x.shape[-1], self.config.norm_num_groups
        x = Resnet(width, groups, self.dtype, name="resnets.0")(x)
        if self.config.mid_block_add_attention:
            x = Attention(groups, self.dtype, name="attentions.0")(x)
        return Resnet(width, groups, self.dtype, name="resnets.1")(x)


class Resnet(nn.Module):
    """Two normalised convolutions, added to the input."""

    width: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = nn.silu(_norm(self.groups, self.dtype, name="norm1")(x))
        h = _conv(self.width, self.dtype, name="conv1")(h)
        h = nn.silu(_norm(self.groups, self.dtype, name="norm2")(h))
        h = _conv(self.width, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Attention among all places, with one head as wide as the features."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        B, h, w, D = x.shape
        dense = partial(nn.Dense, D, dtype=self.dtype)
        z = _norm(self.groups, self.dtype, name="group_norm")(x).reshape(B, h * w, 1, D)
        q, k, v = (dense(name=f"to_{n}")(z) for n in "qkv")
        y = jax.nn.dot_product_attention(q, k, v)
        return x + dense(name="to_out.0")(y).reshape(B, h, w, D)


def _attends(types, level):
    return bool(types) and types[level].startswith("Attn")


def _conv(width, dtype, name):
    return nn.Conv(width, (3, 3), padding=1, dtype=dtype, name=name)


def _norm(groups, dtype, name):
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


KIND = Kind(
    AutoencoderKL,
    lambda values, source: configs.make(Config, values, source, ONLY, ["sample_size", "force_upcast"]),
    # Older files, that of sd-vae-ft-ema among them, have other names for attention.
    [
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"\.proj_attn\.", ".to_out.0."),
    ],
)
