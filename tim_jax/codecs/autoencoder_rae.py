"""Representation autoencoders, RAE (Zheng et al., arXiv 2510.11690), published as AutoencoderRAE.

Latents are the tokens of a frozen image encoder, each channel normalised by statistics of the training set; a vision
transformer decodes them (that of masked autoencoders, He et al., arXiv 2111.06377, without a mask).
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.codecs import configs, dino
from tim_jax.codecs.layers import check_sides, self_attention
from tim_jax.codecs.loading import Kind, exactly

EPS = 1e-12  # of the decoder's norms
STD_EPS = 1e-5  # added to stored deviations
HEAD = 64  # the width of a head in every encoder that is published
ENCODER = "dinov2"  # the encoder that is there here, with registers and without scale and bias in its last norm


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names, and two that published encoders share. Sizes are in pixels."""

    encoder_type: str | None = ENCODER
    encoder_hidden_size: int = 768
    encoder_patch_size: int = 14
    encoder_num_hidden_layers: int = 12
    encoder_num_attention_heads: int | None = None  # None: heads of width HEAD
    encoder_image_size: int = 518  # that the encoder's position embeddings are for
    encoder_input_size: int = 224
    encoder_norm_mean: tuple | None = None  # of colours in [0, 1]; None: those of ImageNet
    encoder_norm_std: tuple | None = None
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    patch_size: int = 16  # of the decoder
    latents_mean: tuple | None = None  # (C,), (C, 1, 1) or (C, h, w)
    latents_std: tuple | None = None
    scaling_factor: float = 1.0

    def __post_init__(self):
        if self.encoder_input_size % self.encoder_patch_size:
            raise ValueError(
                f"encoder_input_size is {self.encoder_input_size}; it must be a multiple of encoder_patch_size, "
                f"{self.encoder_patch_size}"
            )
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}; it must be a multiple of "
                f"decoder_num_attention_heads, {self.decoder_num_attention_heads}"
            )
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            if value is not None and (channels := len(_places_last(value))) not in (1, self.latent_channels):
                raise ValueError(
                    f"{name} is of {channels} channels; it must be of encoder_hidden_size, {self.latent_channels}"
                )

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.encoder_hidden_size

    @property
    def grid(self) -> int:
        """The side, in latents, that the decoder's position embeddings are for."""
        return self.encoder_input_size // self.encoder_patch_size


ONLY: dict[str, list] = {
    "encoder_type": [None, ENCODER, "siglip2", "mae"],
    "num_channels": [3],
    "reshape_to_2d": [True],
}
IGNORED = ["encoder_name_or_path", "image_size", "noise_tau", "use_encoder_loss"]  # of training, or follow from others


class AutoencoderRAE(nn.Module):
    """An autoencoder between images (B, H, W, 3) in [-1, 1] and normalised latents (B, H/f, W/f, C).

    Inputs and outputs are float32 where `dtype`, in which it computes, is bfloat16. With another encoder than ENCODER
    it decodes only. Images of other sizes than the published one, which published code refuses, have interpolated
    position embeddings and statistics.
    """

    config: Config
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """f, the pixels per latent along each side."""
        return self.config.patch_size

    @property
    def encodes(self) -> bool:
        """Whether the encoder is there."""
        return self.config.encoder_type == ENCODER

    def setup(self):
        c = self.config
        self.decoder = Decoder(c, self.dtype)
        if self.encodes:
            settings = dino.Config(
                c.encoder_hidden_size,
                c.encoder_num_hidden_layers,
                c.encoder_num_attention_heads or max(c.encoder_hidden_size // HEAD, 1),
                c.encoder_image_size,
                c.encoder_patch_size,
                num_register_tokens=dino.REGISTERS,
                antialias=True,
            )
            self.encoder = dino.Dino(settings, self.dtype, affine=False)

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred: images, or latents if nothing encodes."""
        return (
            jnp.zeros((1, self.factor, self.factor, 3) if self.encodes else (1, 1, 1, self.config.latent_channels)),
        )

    def __call__(self, x):
        return self.decode(self.encode(x) if self.encodes else x)

    def encode(self, images, keys_B=None):
        """Encodes images to normalised latents. There is nothing to sample; `keys_B` is ignored.

        An encoder's patch is of another size than the decoder's: images are resized by bicubic interpolation.

        Raises:
            ValueError: if a side of the images is no multiple of `factor`, or nothing encodes.
        """
        c = self.config
        if not self.encodes:
            raise ValueError(f"encoder_type is {c.encoder_type!r}; it must be {ENCODER!r} to encode: this decodes only")
        check_sides(images, self.factor)
        h, w = (side // self.factor for side in images.shape[1:3])
        with exactly(self.dtype):
            rows, columns = (
                dino.bicubic(side, places * c.encoder_patch_size)
                for side, places in zip(images.shape[1:3], (h, w), strict=True)
            )
            x = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, images)
            mean, std = self._colours(x)
            tokens = self.encoder((0.5 * x + 0.5 - mean) / std)[:, 1 + dino.REGISTERS :]
        z = self._wide(tokens.reshape(len(images), h, w, c.latent_channels))
        mean, std = self._statistics(z)
        return (z - mean) / std * c.scaling_factor

    def decode(self, latents):
        """Returns the images (B, H, W, 3) of normalised latents (B, H/f, W/f, C); they may leave [-1, 1] a little."""
        mean, std = self._statistics(latents)
        z = latents / self.config.scaling_factor * std + mean
        with exactly(self.dtype):
            x = self._wide(self.decoder(z.astype(self.dtype)))
        mean, std = self._colours(x)
        return 2 * (x * std + mean) - 1

    def _wide(self, x):
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _colours(self, x):
        given = (self.config.encoder_norm_mean or dino.MEAN, self.config.encoder_norm_std or dino.STD)
        return (jnp.asarray(value, x.dtype)[None, None, None] for value in given)

    def _statistics(self, z):
        """Returns mean and deviation (1, h, w, C) of latents z (B, h, w, C) before they are normalised."""
        for given, default, eps in ((self.config.latents_mean, 0.0, 0.0), (self.config.latents_std, 1.0, STD_EPS)):
            value = jnp.asarray(np.moveaxis(_places_last((default,) if given is None else given), 0, -1), z.dtype)
            shape = tuple(n if n == 1 else m for n, m in zip(value.shape[:2], z.shape[1:3], strict=True))
            yield jax.image.resize(value, (*shape, value.shape[-1]), "linear", antialias=False)[None] + eps


class Decoder(nn.Module):
    """Maps tokens (B, h, w, C) to images (B, p h, p w, 3) whose colours are normalised."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, z):
        c, (B, h, w, _), D, p = self.config, z.shape, self.config.decoder_hidden_size, self.config.patch_size
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, EPS, dtype=self.dtype, use_fast_variance=False)
        places = self.param("decoder_pos_embed", nn.initializers.zeros, (1, 1 + c.grid**2, D))
        first = self.param("trainable_cls_token", nn.initializers.zeros, (1, 1, D)) + places[:, :1]
        places = dino.resized(places[0, 1:].reshape(c.grid, c.grid, D), h, w, antialias=False)[None]
        x = (dense(D, name="decoder_embed")(z) + places.astype(self.dtype)).reshape(B, h * w, D)
        x = jnp.concatenate([jnp.broadcast_to(first.astype(self.dtype), (B, 1, D)), x], axis=1)
        for i in range(c.decoder_num_hidden_layers):
            x = Layer(c, dense, norm, name=f"decoder_layers.{i}")(x)
        x = dense(p * p * 3, name="decoder_pred")(norm(name="decoder_norm")(x))[:, 1:]
        return x.reshape(B, h, w, p, p, 3).swapaxes(2, 3).reshape(B, h * p, w * p, 3)


class Layer(nn.Module):
    """Attention and an MLP, each of the normalised input and added to it."""

    config: Config
    dense: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        c, D = self.config, x.shape[-1]
        x += self_attention(self.norm(name="layernorm_before")(x), c.decoder_num_attention_heads, self.dense)
        y = self.dense(c.decoder_intermediate_size, name="intermediate.dense")(self.norm(name="layernorm_after")(x))
        return x + self.dense(D, name="output.dense")(nn.gelu(y, approximate=False))


def _places_last(value) -> np.ndarray:
    """Returns statistics (C,), (C, h, w) or (1, C, h, w) as an array (C, h, w)."""
    array = np.asarray(value)
    return array.reshape(array.shape[-3:] if array.ndim >= 3 else (-1, 1, 1))


def _renames(config: Config) -> list[tuple[str, str | None]]:
    return [
        # Copies of what config.json says.
        (r"^(_latents_(mean|std)|encoder_(mean|std))$", None),
        *([] if config.encoder_type == ENCODER else [(r"^encoder\.", None)]),
        (r"^encoder\.model\.", "encoder."),
        (r"^encoder\.embeddings\.mask_token$", None),
        (r"^(decoder_|trainable_cls_token)", r"decoder.\1"),  # the authors' files hold the decoder alone
        (r"\.attention\.to_([qkv])\.", r".attention.\1_proj."),
        (r"\.attention\.to_out\.0\.", ".attention.o_proj."),
        *dino.OLDER_ATTENTION,
    ]


def _config(values: Mapping[str, Any], source: str) -> Config:
    return configs.make(Config, values, source, ONLY, IGNORED)


KIND = Kind(AutoencoderRAE, _config, _renames)
