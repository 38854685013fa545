"""A frozen module with its weights on a mesh."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from tim_jax import codecs
from tim_jax.codecs import stand_in
from tim_jax.codecs.settings import CodecSettings
from tim_jax.training import sharding


class FrozenModule(flax.struct.PyTreeNode):
    """A module with its weights on a mesh."""

    params: Any
    module: nn.Module = flax.struct.field(pytree_node=False)

    def __call__(self, *args: Any, method: str = "__call__") -> Any:
        return self.module.apply({"params": self.params}, *args, method=method)


@functools.cache
def open_module(settings: CodecSettings, part: str, mesh: Mesh) -> FrozenModule:
    """ "autoencoder", "text_encoder" or "image_encoder", ready for work: read once by a process, whoever asks for it.

    Raises ValueError with one line.
    """
    module, params = settings.load(part)
    if getattr(settings, part) == stand_in.NAME and jax.process_index() == 0:
        print("codecs.text_encoder is a stand-in with random weights: it knows nothing of language", file=sys.stderr)
    whole = sharding.replicated(mesh)
    place = lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: np.asarray(x)[index])  # noqa: E731
    return FrozenModule(jax.tree.map(place, params), module)


def by_tiles(tile: int, f: Callable, x: jax.Array) -> jax.Array:
    """f(x), of large images by tiles that overlap by a quarter. tile: their side in places of x, 0 for none."""
    return codecs.tiled(f, x, tile, tile // 4) if tile else f(x)


def in_tiles(settings: CodecSettings, part: FrozenModule, method: str, x: jax.Array) -> jax.Array:
    """An autoencoder's "encode" or "decode" of x, by tiles of `codecs.tile` pixels."""
    tile = settings.tile // part.module.factor if method == "decode" else settings.tile
    return by_tiles(tile, lambda x: part(x, method=method), x)
