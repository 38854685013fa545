"""The Inception network of FID (Szegedy et al. 2015; the weights of 2015-12-05 that Heusel et al. 2017 published).

It differs from other Inception-v3 networks: average pooling leaves padding out, the last block pools by maximum, there
are 1008 classes, and images are resized as TensorFlow 1 did. Layers have the published names (Mixed_5b.branch1x1, …),
so that `from_published` changes nothing but layouts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299  # of the images that the network sees
CLASSES = 1008
SPATIAL = 7  # channels of sFID's features, at 17 × 17 places (Nash et al. 2021; 1x1 branch of the TensorFlow mixed_6)
EXACT = jax.lax.Precision.HIGHEST  # accelerators would round to 10 bits otherwise, and features differ by percents


class Layer(NamedTuple):
    """A convolution with its batch normalisation; a stride of 2 goes without padding, as published."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Convolution(nn.Module):
    """A convolution, normalisation by stored statistics, and ReLU."""

    layer: Layer

    @nn.compact
    def __call__(self, x):
        _, width, kernel, stride, padding = self.layer
        how = {"strides": stride, "padding": "VALID" if stride > 1 else padding, "precision": EXACT}
        x = nn.Conv(width, kernel, use_bias=False, name="conv", **how)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def average(x):
    """Pools 3 × 3 neighbours by their average; padding does not count."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def largest(x):
    """Pools 3 × 3 neighbours by their maximum."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halved(x):
    """Pools 3 × 3 neighbours by their maximum at every second place."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class Block(nn.Module):
    """Branches whose outputs are concatenated: Layers and poolings in turn, or tuples of Layers side by side."""

    branches: tuple[tuple[Layer | Callable | tuple[Layer, ...], ...], ...]

    @nn.compact
    def __call__(self, x):
        def apply(part, x):
            if isinstance(part, Layer):
                return Convolution(part, name=part.name)(x)
            if isinstance(part, tuple):
                return jnp.concatenate([apply(each, x) for each in part], axis=-1)
            return part(x)

        outputs = []
        for branch in self.branches:
            y = x
            for part in branch:
                y = apply(part, y)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


def block_a(pooled):
    """Returns the branches of a block at 35 × 35 places; `pooled` is the width of the last."""
    return (
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
        (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))),
        (average, Layer("branch_pool", pooled)),
    )


BLOCK_B = (
    (Layer("branch3x3", 384, (3, 3), 2),),
    (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)),
    (halved,),
)


def block_c(width):
    """Returns the branches of a block at 17 × 17 places; `width` is that of its inner layers."""
    return (
        (Layer("branch1x1", 192),),
        (Layer("branch7x7_1", width), Layer("branch7x7_2", width, (1, 7)), Layer("branch7x7_3", 192, (7, 1))),
        (
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, (7, 1)),
            Layer("branch7x7dbl_3", width, (1, 7)),
            Layer("branch7x7dbl_4", width, (7, 1)),
            Layer("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average, Layer("branch_pool", 192)),
    )


BLOCK_D = (
    (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)),
    (
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, (1, 7)),
        Layer("branch7x7x3_3", 192, (7, 1)),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    ),
    (halved,),
)


def block_e(pool):
    """Returns the branches of a block at 8 × 8 places; `pool` is the pooling of the last."""
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1)))),
        (
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, (3, 3)),
            (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Layer("branch_pool", 192)),
    )


STEM = (
    Layer("Conv2d_1a_3x3", 32, (3, 3), 2),
    Layer("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    halved,
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    halved,
)

BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": block_e(average),
    "Mixed_7c": block_e(largest),
}


class Inception(nn.Module):
    """The network, a function of images (n, h, w, 3) in [0, 255], whole numbers of any type.

    It returns a dict of float32 arrays:

        features: (n, 2048) the last averages (pool3), for FID, precision and recall.
        spatial: (n, 2023) seven channels at 17 × 17 places in the order row, column, channel, for sFID.
        logits: (n, 1008) without the bias, as the Inception score takes them.
    """

    @nn.compact
    def __call__(self, images):
        x = (resize(images.astype(jnp.float32)) - 128) / 128
        for part in STEM:
            x = Convolution(part, name=part.name)(x) if isinstance(part, Layer) else part(x)
        spatial = None
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
            if name == "Mixed_6d":
                spatial = x[..., :SPATIAL].reshape(len(x), -1)
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, precision=EXACT, name="fc")(features)
        return {"features": features, "spatial": spatial, "logits": logits}


def resize(images):
    """Resizes images (n, h, w, C) to (n, 299, 299, C) bilinearly, as TensorFlow 1 does.

    Place i comes from i · h/299, without half pixels, and nothing is smoothed where images become smaller.
    """
    rows, columns = (_interpolation(size) for size in images.shape[1:3])
    return jnp.einsum("ih,nhwc,jw->nijc", rows, images, columns, precision=EXACT)


def _interpolation(size: int) -> np.ndarray:
    """Returns (299, size) float32, the weights of a line's places in the resized line."""
    at = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    below = np.floor(at).astype(int)
    share = at - below
    weights = np.zeros((SIDE, size), np.float32)
    np.add.at(weights, (np.arange(SIDE), below), 1 - share)
    np.add.at(weights, (np.arange(SIDE), np.minimum(below + 1, size - 1)), share)
    return weights


# Published name of a layer's array → (collection, name in Flax).
ARRAYS = {
    "conv.weight": ("params", "conv/kernel"),
    "bn.weight": ("params", "bn/scale"),
    "bn.bias": ("params", "bn/bias"),
    "bn.running_mean": ("batch_stats", "bn/mean"),
    "bn.running_var": ("batch_stats", "bn/var"),
    "fc.weight": ("params", "fc/kernel"),
}
UNUSED = ("fc.bias", "num_batches_tracked")  # suffixes of published names that no output needs


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns {published name: published shape} of all arrays that the outputs need."""
    blank = jax.eval_shape(Inception().init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.uint8))
    found = {}
    for collection, tree in blank.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            keys = [part.key for part in path]
            (name,) = (ours for ours, place in ARRAYS.items() if place == (collection, "/".join(keys[-2:])))
            prefix = keys[:-2]
            shape = leaf.shape if leaf.ndim == 1 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
            found[".".join([*prefix, name])] = shape
    return found


def from_published(weights: dict[str, np.ndarray]) -> Any:
    """Converts published weights to the variables of `Inception`.

    Args:
        weights: {published name: array in PyTorch's layout}.

    Raises:
        ValueError: in one line, if arrays are missing or of another shape, or if there are others.
    """
    expected = shapes()
    given = {name: value for name, value in weights.items() if not name.endswith(UNUSED)}
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is not known" for name in given if name not in expected]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, must be {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise ValueError(f"not the Inception network of FID: {', '.join(wrong[:2])}{more}")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name in expected:
        end = next(end for end in ARRAYS if name.endswith(end))
        collection, place = ARRAYS[end]
        *parents, leaf = [*name.removesuffix(end).rstrip(".").split("."), *place.split("/")]
        node = variables[collection]
        for key in filter(None, parents):
            node = node.setdefault(key, {})
        value = np.asarray(given[name], np.float32)
        node[leaf] = value if value.ndim == 1 else np.moveaxis(value, (0, 1), (-1, -2))
    return variables
