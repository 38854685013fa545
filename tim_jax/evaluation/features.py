"""Features: what images are compared by. A plug is a pure function of weights and images (n, h, w, C) in [-1, 1]."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from tim_jax.codecs import tensors
from tim_jax.evaluation import inception as network

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # as the releases of github.com/mseitzer/pytorch-fid have it


@dataclasses.dataclass(frozen=True)
class Features:
    """apply: (variables, images (n, h, w, C) float32) -> {output: (n, d) float32}, for every name in outputs.

    preprocessing: what is done to images before. identity: of the network and its weights. Both are for fingerprints.
    """

    name: str
    outputs: tuple[str, ...]
    preprocessing: str
    identity: str
    variables: Any
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


def pixels(weights: str = "") -> Features:
    """The pixels themselves, for small images. There are no weights."""
    return Features("pixels", ("features",), "none", "pixels", {}, _flat)


def _flat(_, images):
    return {"features": images.reshape(len(images), -1)}


def inception(weights: str) -> Features:
    """The published Inception network of FID. weights: its file, with arrays under the published names.

    Raises ValueError, in one line, if the file is missing, damaged or another network's.
    """
    if not epath.Path(weights).expanduser().exists():
        raise ValueError(
            f"evaluation.inception: there is no file {weights}; put {WEIGHTS} there, from the releases of "
            "github.com/mseitzer/pytorch-fid (or the same arrays as safetensors or npz), or name the file"
        )
    try:
        arrays = tensors.read(weights)
        variables = network.from_published(arrays)
    except ValueError as error:
        raise ValueError(f"evaluation.inception is {weights!r}: {error}") from None
    digest = hashlib.sha256()
    for name in sorted(network.shapes()):
        digest.update(arrays[name].tobytes())
    outputs, preprocessing = ("features", "spatial", "logits"), "8 bits, bilinear to 299 as in TensorFlow 1"
    return Features("inception", outputs, preprocessing, f"inception {digest.hexdigest()[:16]}", variables, _inception)


def _inception(variables, images):
    # As samples are written to files: every other evaluation sees images of 8 bits.
    levels = jnp.rint(jnp.clip(images, -1, 1) * 127.5 + 127.5)
    return network.Inception().apply(variables, jnp.broadcast_to(levels, (*levels.shape[:-1], 3)))
