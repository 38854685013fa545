"""Arrays that published files carry beside parameters, since they follow from the shapes: tables of positions.

They are computed in float64 and rounded once, as the published ones are, which they equal bit by bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tim_jax.networks import Transformer
from tim_jax.networks.rope import rope_table
from tim_jax.runs.published import only_squares

Fixed = Callable[[Transformer, int, int], dict[str, np.ndarray]]  # of a network on h × w patches, by official name


def embedding(net: Any, h: int, w: int) -> dict[str, np.ndarray]:
    """The position embedding (1, N, D)."""
    return {"pos_embed": np.asarray(net.sine_cosine(h, w), np.float32)[None]}


def rotations(name: str, head_width: Callable[[Transformer], int]) -> Fixed:
    """The cosines and sines (N, K) of RoPE, those of each pair twice."""

    def make(net: Transformer, h: int, w: int) -> dict[str, np.ndarray]:
        cpu = jax.default_device(jax.local_devices(backend="cpu")[0])
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), cpu:
            tables = rope_table(h, w, head_width(net), dtype=jnp.float64)
        named = zip(("freqs_cos", "freqs_sin"), tables, strict=True)
        return {f"{name}.{part}": np.repeat(np.asarray(table), 2, axis=-1).astype(np.float32) for part, table in named}

    return make


def of_heads(net: Transformer) -> int:
    """The width of a head."""
    return net.width // net.heads


def of_decoder(net: Any) -> int:
    """The width of a head of the decoder."""
    width, heads = net.decoder
    return width // heads


FIXED: Mapping[str, tuple[Fixed, ...]] = {
    "dit": (embedding,),
    "sit": (embedding,),
    "lightningdit": (embedding, rotations("feat_rope", of_heads)),
    "jit": (embedding,),
    "ditdh": (embedding, rotations("enc_feat_rope", of_heads), rotations("dec_feat_rope", of_decoder)),
}  # of networks, by name


def of(config: ConfigDict, network: Transformer) -> dict[str, np.ndarray]:
    """{official name: array} of a network on squares; {} of others, whose published code has none for rectangles."""
    if not only_squares(config) or getattr(network, "positions", "sincos") != "sincos":
        return {}
    grid = (config.data.height // network.patch_size, config.data.width // network.patch_size)
    found: dict[str, np.ndarray] = {}
    for make in FIXED.get(config.model.network, ()):
        found |= make(network, *grid)
    return found
