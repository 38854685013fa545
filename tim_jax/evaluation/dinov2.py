"""DINOv2 as FD-DINOv2 uses it (Stein et al. 2023, arXiv 2306.04675): the class token of images of 224 × 224 pixels.

There the network is ViT-L/14; others of DINOv2 are read as well, and named in fingerprints. Position embeddings are
interpolated as DINOv2's own code does, with an offset of 0.1.
"""

import dataclasses
import hashlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tim_jax import codecs
from tim_jax.codecs.dino import MEAN, STD, Dino

FOLDER = "dinov2-large"  # as huggingface.co/facebook/dinov2-large has it
SIDE = 224
OFFSET = 0.1  # of `Config.interpolate_offset`
SIZES = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1536: "ViT-g"}  # by width


def load(path: str) -> tuple[Dino, Any, str]:
    """Loads (module, parameters, name with a digest) of a published folder. Raises ValueError with one line."""
    loaded, params = codecs.load(path, codecs.IMAGE_ENCODERS)
    module = cast(Dino, loaded)
    config, found = module.config, hashlib.sha256()
    for _, array in sorted(flatten_dict(params).items()):
        found.update(np.ascontiguousarray(array).tobytes())
    size = SIZES.get(config.hidden_size, f"width {config.hidden_size}")
    registers = f" with {config.num_register_tokens} registers" if config.num_register_tokens else ""
    name = f"dinov2 {size}/{config.patch_size}{registers} {found.hexdigest()[:16]}"
    return module.clone(config=dataclasses.replace(config, interpolate_offset=OFFSET)), params, name


def class_tokens(module: Dino, params: Any, levels: jax.Array) -> jax.Array:
    """Returns the class tokens (n, D) float32 of images (n, h, w, 3) with levels 0 … 255."""
    mean, deviation = (jnp.asarray(value)[None, None, None] for value in (MEAN, STD))
    tokens: Any = module.apply({"params": params}, (resize(levels) / 255 - mean) / deviation)
    return tokens[:, 0].astype(jnp.float32)


def resize(levels: jax.Array) -> jax.Array:
    """Resizes images (n, h, w, C) with levels 0 … 255 to (n, SIDE, SIDE, C), bicubic and antialiased, as Pillow does.

    There are 8 bits after the first pass, along rows, and after the second. (The newest Pillow begins with columns
    where an image is higher than wide and is made smaller.)
    """
    for axis in (2, 1):
        shape = levels.shape[:axis] + (SIDE,) + levels.shape[axis + 1 :]
        if shape != levels.shape:
            levels = jnp.clip(jnp.rint(jax.image.resize(levels, shape, "cubic")), 0, 255)
    return levels
