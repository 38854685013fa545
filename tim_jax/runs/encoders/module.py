"""A pretrained module, frozen, with its weights on a mesh."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tim_jax import codecs
from tim_jax.codecs import stand_in
from tim_jax.codecs.settings import CodecSettings
from tim_jax.training import sharding

Name = Literal["autoencoder", "text_encoder", "image_encoder"]  # keys of `codecs`


class FrozenModule(flax.struct.PyTreeNode):
    """A module with its weights on a mesh, which can be handed to compiled functions."""

    params: Any
    module: nn.Module = flax.struct.field(pytree_node=False)

    def __call__(self, *args: Any, method: str = "__call__") -> Any:
        """What a method of the module makes of the arguments, with these weights."""
        return self.module.apply({"params": self.params}, *args, method=method)


@functools.cache
def open_module(settings: CodecSettings, name: Name, mesh: Mesh) -> FrozenModule:
    """The module that `codecs` names, read once by a process, whoever asks for it.

    Args:
        settings: the section `codecs`.
        name: its key.
        mesh: whose every device gets all weights.

    Raises:
        ValueError: one line, for weights that are not there or are damaged.
    """
    module, params = settings.load(name)
    if getattr(settings, name) == stand_in.NAME and jax.process_index() == 0:
        logging.warning("codecs.text_encoder is a stand-in with random weights: it knows nothing of language")
    whole = sharding.replicated(mesh)
    place = lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: np.asarray(x)[index])  # noqa: E731
    return FrozenModule(jax.tree.map(place, params), module)


def by_tiles(tile: int, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x), for large images by tiles that overlap by a quarter.

    Args:
        tile: the side of a tile in positions of x; 0 for no tiles.
        f: works on (B, h, w, C).
        x: (B, h, w, C).
    """
    return codecs.tiled(f, x, tile, tile // 4) if tile else f(x)


def in_tiles(settings: CodecSettings, autoencoder: FrozenModule, method: str, x: jax.Array) -> jax.Array:
    """What an autoencoder's "encode" or "decode" makes of x (B, h, w, C), by tiles of `codecs.tile` pixels."""
    tile = settings.tile // autoencoder.module.factor if method == "decode" else settings.tile
    return by_tiles(tile, lambda x: autoencoder(x, method=method), x)
