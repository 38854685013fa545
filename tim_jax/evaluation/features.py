"""Features: what images are compared by, pure functions of weights and images (n, h, w, C) in [-1, 1]."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.codecs import tensors
from tim_jax.evaluation import inception as network
from tim_jax.system import paths

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # as the releases of github.com/mseitzer/pytorch-fid have it


@dataclasses.dataclass(frozen=True)
class Features:
    """A way to turn images into vectors.

    Attributes:
        name: its name in FEATURES.
        outputs: names of the vectors that it makes of an image.
        preprocessing: what is done to images before, here or by who gives them, for fingerprints.
        identity: of the network and its weights, for fingerprints.
        variables: the weights, passed to `apply`.
        apply: maps (variables, images (n, h, w, C) float32) to {output: (n, d) float32} for every name in outputs.
    """

    name: str
    outputs: tuple[str, ...]
    preprocessing: str
    identity: str
    variables: Any
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


def pixels(weights: str = "") -> Features:
    """Returns the pixels themselves as features, for small images; there are no weights."""
    return Features("pixels", ("features",), "8 bits", "pixels", {}, _flat)


def _flat(_, images):
    return {"features": images.reshape(len(images), -1)}


def inception(weights: str) -> Features:
    """Returns the features of the published Inception network of FID.

    Args:
        weights: the file of the weights, with arrays under their published names (see `tensors.read`).

    Raises:
        ValueError: in one line, if the file is missing, damaged or another network's.
    """
    if not paths.given(weights, "evaluation.inception").exists():
        raise ValueError(
            f"evaluation.inception is {str(weights)!r}; it must be a file, and there is none: put {WEIGHTS} there, "
            "from the "
            "releases of github.com/mseitzer/pytorch-fid (or the same arrays as safetensors or npz), or name the file"
        )
    try:
        arrays = tensors.read(weights)
        variables = network.from_published(arrays)
    except ValueError as error:
        raise ValueError(f"evaluation.inception is {weights!r}; it must be the published weights: {error}") from None
    digest = hashlib.sha256()
    for name in sorted(network.shapes()):
        digest.update(arrays[name].tobytes())
    outputs, preprocessing = ("features", "spatial", "logits"), "8 bits, bilinear to 299 as in TensorFlow 1"
    return Features("inception", outputs, preprocessing, f"inception {digest.hexdigest()[:16]}", variables, _inception)


def _inception(variables, images):
    # As samples are written to files: every other evaluation sees images of 8 bits.
    levels = jnp.rint(jnp.clip(images, -1, 1) * 127.5 + 127.5)
    return network.Inception().apply(variables, jnp.broadcast_to(levels, (*levels.shape[:-1], 3)))
