"""The deep compression autoencoder DC-AE (Chen et al., arXiv 2410.10733), published as AutoencoderDC."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.codecs import configs
from tim_jax.codecs.layers import RMSNorm, check_sides, doubled
from tim_jax.codecs.loading import Kind, exactly

EPS = 1e-5  # of all norms
ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu}
PER_STAGE = (
    "encoder_block_types",
    "decoder_block_types",
    "encoder_layers_per_block",
    "decoder_layers_per_block",
    "encoder_qkv_multiscales",
    "decoder_qkv_multiscales",
    "decoder_norm_types",
    "decoder_act_fns",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names, stages from the finest to the coarsest. Latents are z · scaling_factor."""

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: str | tuple = "ResBlock"
    decoder_block_types: str | tuple = "ResBlock"
    encoder_block_out_channels: tuple = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: str | tuple = "rms_norm"
    decoder_act_fns: str | tuple = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0

    def __post_init__(self):
        stages = len(self.encoder_block_out_channels)
        if len(self.decoder_block_out_channels) != stages:
            raise ValueError(
                f"encoder_block_out_channels has {stages} stages; decoder_block_out_channels must have as many"
            )
        for name in PER_STAGE:
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,) * stages)
            elif len(value) != stages:
                raise ValueError(f"{name} is {value}; it must have an entry for each of {stages} stages")


BLOCKS, NORMS = ["ResBlock", "EfficientViTBlock"], ["rms_norm", "batch_norm"]
ONLY = {
    "encoder_block_types": BLOCKS,
    "decoder_block_types": BLOCKS,
    "decoder_norm_types": NORMS,
    "decoder_act_fns": list(ACTIVATIONS),
    "decoder_conv_act_fn": list(ACTIVATIONS),
    # Published files spell the first in either case.
    "downsample_block_type": ["pixel_unshuffle", "Conv", "conv"],
    "upsample_block_type": ["pixel_shuffle", "interpolate"],
}


class AutoencoderDC(nn.Module):
    """An autoencoder between images (B, H, W, 3) in [-1, 1] and latents (B, H/f, W/f, C).

    Inputs and outputs are float32, whatever `dtype` it computes in.
    """

    config: Config
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """f, the pixels per latent along each side."""
        return 2 ** (len(self.config.encoder_block_out_channels) - 1)

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred."""
        return (jnp.zeros((1, self.factor, self.factor, self.config.in_channels)),)

    def __call__(self, images):
        return self.decode(self.encode(images))

    def encode(self, images, keys_B=None):
        """Encodes images to scaled latents. Raises ValueError if a side of the images is no multiple of `factor`.

        There is nothing to sample; `keys_B` is ignored, and is there because other autoencoders take it.
        """
        check_sides(images, self.factor)
        with exactly(self.dtype):
            z = self.encoder(images.astype(self.dtype))
        return z.astype(jnp.float32) * self.config.scaling_factor

    def decode(self, latents):
        """Returns the images (B, H, W, 3) of scaled latents (B, H/f, W/f, C); they may leave [-1, 1] a little."""
        with exactly(self.dtype):
            return self.decoder((latents / self.config.scaling_factor).astype(self.dtype)).astype(jnp.float32)


class Encoder(nn.Module):
    """Maps images (B, H, W, 3) to latents (B, H/f, W/f, C) that are not scaled."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, dtype = self.config, self.dtype
        widths, layers = c.encoder_block_out_channels, c.encoder_layers_per_block
        unshuffle = c.downsample_block_type == "pixel_unshuffle"
        if layers[0]:
            x = _conv(widths[0], dtype, name="conv_in")(x)
        else:
            x = Down(widths[1], unshuffle, False, dtype, name="conv_in")(x)
        for i, width in enumerate(widths):
            for j in range(layers[i]):
                kind, scales = c.encoder_block_types[i], c.encoder_qkv_multiscales[i]
                name = f"down_blocks.{i}.{j}"
                x = _block(kind, width, c.attention_head_dim, scales, "rms_norm", "silu", dtype, name)(x)
            if layers[i] and i < len(widths) - 1:
                x = Down(widths[i + 1], unshuffle, True, dtype, name=f"down_blocks.{i}.{layers[i]}")(x)
        z = _conv(c.latent_channels, dtype, name="conv_out")(x)
        return z + _means(x, c.latent_channels) if c.encoder_out_shortcut else z


class Decoder(nn.Module):
    """Maps latents (B, h, w, C) that are not scaled to images (B, f h, f w, 3)."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, z):
        c, dtype = self.config, self.dtype
        widths, layers = c.decoder_block_out_channels, c.decoder_layers_per_block
        interpolate = c.upsample_block_type == "interpolate"
        x = _conv(widths[-1], dtype, name="conv_in")(z)
        if c.decoder_in_shortcut:
            x += z.repeat(widths[-1] // c.latent_channels, axis=-1)
        for i in reversed(range(len(widths))):
            first = int(i < len(widths) - 1)  # blocks come after the step up, where there is one
            if layers[i] and first:
                x = Up(widths[i], interpolate, True, dtype, name=f"up_blocks.{i}.0")(x)
            for j in range(layers[i]):
                kind, scales = c.decoder_block_types[i], c.decoder_qkv_multiscales[i]
                norm, act, name = c.decoder_norm_types[i], c.decoder_act_fns[i], f"up_blocks.{i}.{first + j}"
                x = _block(kind, widths[i], c.attention_head_dim, scales, norm, act, dtype, name)(x)
        x = ACTIVATIONS[c.decoder_conv_act_fn](_norm("rms_norm", dtype, name="norm_out")(x))
        if layers[0]:
            return _conv(c.in_channels, dtype, name="conv_out")(x)
        return Up(c.in_channels, interpolate, False, dtype, name="conv_out")(x)


class Down(nn.Module):
    """Halves the size: by "pixel_unshuffle" after a convolution, or by a convolution with stride 2, as published."""

    width: int
    unshuffle: bool
    shortcut: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        if self.unshuffle:
            y = _unshuffled(_conv(self.width // 4, self.dtype, name="conv")(x))
        else:
            y = nn.Conv(self.width, (3, 3), 2, padding=1, dtype=self.dtype, name="conv")(x)
        return y + _means(_unshuffled(x), self.width) if self.shortcut else y


class Up(nn.Module):
    """Doubles the size: by a convolution after nearest neighbours, or by one whose channels become places."""

    width: int
    interpolate: bool
    shortcut: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        if self.interpolate:
            y = _conv(self.width, self.dtype, name="conv")(doubled(x))
        else:
            y = _shuffled(_conv(4 * self.width, self.dtype, name="conv")(x))
        return y + _shuffled(x.repeat(4 * self.width // x.shape[-1], axis=-1)) if self.shortcut else y


class ResBlock(nn.Module):
    """Two convolutions and a norm, added to the input."""

    width: int
    norm: str
    act: str
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = ACTIVATIONS[self.act](_conv(self.width, self.dtype, name="conv1")(x))
        h = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="conv2")(h)
        return x + _norm(self.norm, self.dtype, name="norm")(h)


class EfficientViTBlock(nn.Module):
    """Linear attention, then a gated convolution (Cai et al., arXiv 2205.14756)."""

    head_dim: int
    scales: tuple[int, ...]
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = LinearAttention(self.head_dim, self.scales, self.norm, self.dtype, name="attn")(x)
        return GatedConv(self.dtype, name="conv_out")(x)


class LinearAttention(nn.Module):
    """ReLU attention, (v relu(k)ᵀ) relu(q) / (Σ relu(k)ᵀ relu(q)), also of q, k, v convolved with sizes `scales`."""

    head_dim: int
    scales: tuple[int, ...]
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x):
        B, h, w, D = x.shape
        width = D // self.head_dim * self.head_dim
        z = [nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"to_{n}")(x) for n in "qkv"]
        heads = [jnp.concatenate(z, axis=-1)]
        for i, size in enumerate(self.scales):
            convolved = Convolved(size, 3 * width // self.head_dim, self.dtype, name=f"to_qkv_multiscale.{i}")
            heads.append(convolved(heads[0]))
        # As published, a head is a run of 3 · head_dim of all these channels, wherever they came from.
        heads = jnp.concatenate(heads, axis=-1).reshape(B, h * w, -1, 3 * self.head_dim).astype(jnp.float32)
        q, k, v = jnp.split(heads, 3, axis=-1)
        q, k = nn.relu(q), nn.relu(k)
        y = jnp.einsum("bnhk,bhkd->bnhd", q, jnp.einsum("bnhk,bnhd->bhkd", k, v))
        total = jnp.einsum("bnhk,bhk->bnh", q, k.sum(1))
        y = (y / (total + 1e-15)[..., None]).reshape(B, h, w, -1).astype(self.dtype)
        y = nn.Dense(D, use_bias=False, dtype=self.dtype, name="to_out")(y)
        return x + _norm(self.norm, self.dtype, name="norm_out")(y)


class Convolved(nn.Module):
    """A convolution within each channel, then a product within each of `groups` groups of channels."""

    size: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        D, pad = x.shape[-1], self.size // 2
        inner = nn.Conv(
            D, (self.size,) * 2, padding=pad, feature_group_count=D, use_bias=False, dtype=self.dtype, name="proj_in"
        )
        outer = nn.Conv(D, (1, 1), feature_group_count=self.groups, use_bias=False, dtype=self.dtype, name="proj_out")
        return outer(inner(x))


class GatedConv(nn.Module):
    """A gated depthwise convolution between two pointwise ones, added to the input."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        y = nn.silu(nn.Conv(8 * D, (1, 1), dtype=self.dtype, name="conv_inverted")(x))
        y = nn.Conv(8 * D, (3, 3), padding=1, feature_group_count=8 * D, dtype=self.dtype, name="conv_depth")(y)
        y, gate = jnp.split(y, 2, axis=-1)
        y = nn.Conv(D, (1, 1), use_bias=False, dtype=self.dtype, name="conv_point")(y * nn.silu(gate))
        return x + _norm("rms_norm", self.dtype, name="norm")(y)


class BatchNorm(nn.Module):
    """Batch normalisation by the moments stored in training."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("running_mean", zeros, shape), self.param("running_var", ones, shape)
        scale, bias, mean, var = (p.astype(jnp.float32)[None, None, None] for p in (scale, bias, mean, var))
        return ((x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + EPS) * scale + bias).astype(self.dtype)


def _block(kind, width, head_dim, scales, norm, act, dtype, name):
    if kind == "ResBlock":
        return ResBlock(width, norm, act, dtype, name=name)
    return EfficientViTBlock(head_dim, scales, norm, dtype, name=name)


def _conv(width, dtype, name):
    return nn.Conv(width, (3, 3), padding=1, dtype=dtype, name=name)


def _norm(norm, dtype, name):
    return BatchNorm(dtype, name=name) if norm == "batch_norm" else RMSNorm(EPS, bias=True, dtype=dtype, name=name)


def _means(x, channels):
    """Returns the means over `channels` runs of neighbouring channels."""
    return x.reshape(*x.shape[:-1], channels, -1).mean(-1)


def _unshuffled(x):
    """Turns places of 2 × 2 squares into channels, (B, 2 h, 2 w, C) to (B, h, w, 4 C), those of a channel together."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4).reshape(B, H // 2, W // 2, 4 * C)


def _shuffled(x):
    """The inverse of `_unshuffled`."""
    B, h, w, C = x.shape
    return x.reshape(B, h, w, C // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(B, 2 * h, 2 * w, C // 4)


KIND = Kind(
    AutoencoderDC,
    lambda values, source: configs.make(Config, values, source, ONLY),
    [(r"\.num_batches_tracked$", None)],
)
