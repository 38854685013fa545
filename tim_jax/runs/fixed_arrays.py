"""Arrays that published files carry beside parameters, since they follow from the shapes: tables of positions.

They are computed in float64 and rounded once, as the published ones are, which they equal bit by bit.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tim_jax.networks import Transformer
from tim_jax.networks.positions import sincos_table
from tim_jax.networks.rope import rope_table
from tim_jax.runs.published import only_squares

Make = Callable[[int, int, int], dict[str, np.ndarray]]  # of the width of states or of heads, on h × w patches


def embedding(name: str) -> Make:
    """The fixed position embedding (1, N, D)."""
    return lambda width, h, w: {name: np.asarray(sincos_table(h, w, width), np.float32)[None]}


def rotations(name: str) -> Make:
    """The cosines and sines (N, K) of RoPE, those of each pair twice."""

    def make(head_width: int, h: int, w: int) -> dict[str, np.ndarray]:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            tables = rope_table(h, w, head_width, dtype=jnp.float64)
        named = zip(("freqs_cos", "freqs_sin"), tables, strict=True)
        return {f"{name}.{part}": np.repeat(np.asarray(table), 2, axis=-1).astype(np.float32) for part, table in named}

    return make


# By network: what makes them, each of the network's own width.
FIXED: Mapping[str, tuple[tuple[Make, Callable[[Transformer], int]], ...]] = {
    "dit": ((embedding("pos_embed"), lambda net: net.width),),
    "sit": ((embedding("pos_embed"), lambda net: net.width),),
}


def of(config: ConfigDict, network: Transformer) -> dict[str, np.ndarray]:
    """{official name: array} of a network on squares; {} of others, whose published code has none for rectangles."""
    if not only_squares(config):
        return {}
    grid = (config.data.height // network.patch_size, config.data.width // network.patch_size)
    found: dict[str, np.ndarray] = {}
    for make, width in FIXED.get(config.model.network, ()):
        found |= make(width(network), *grid)
    return found
