"""Features: what images are compared by, pure functions of weights and images (n, h, w, C) in [-1, 1]."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.codecs import tensors
from tim_jax.evaluation import dinov2 as dino
from tim_jax.evaluation import inception as network
from tim_jax.system import paths
from tim_jax.system.hub import SCHEME

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
    return network.Inception().apply(variables, _levels(images))


def _levels(images):
    """Levels 0 … 255 of three channels, as samples are written to files: all other evaluations see images of 8 bits."""
    levels = jnp.rint(jnp.clip(images, -1, 1) * 127.5 + 127.5)
    return jnp.broadcast_to(levels, (*levels.shape[:-1], 3))


def dinov2(weights: str) -> Features:
    """Returns DINOv2's class tokens as features, and the same of length 1 as "embedding"; see `dinov2.py`.

    Args:
        weights: a published folder with config.json and safetensors, or hf://owner/repository.

    Raises:
        ValueError: in one line, if the folder is missing, damaged or another network's.
    """
    if not str(weights).startswith(SCHEME) and not paths.given(weights, "evaluation.dinov2").exists():
        raise ValueError(
            f"evaluation.dinov2 is {str(weights)!r}; it must be a folder, and there is none: put config.json and "
            f"model.safetensors of huggingface.co/facebook/{dino.FOLDER} there, or name the folder"
        )
    try:
        module, variables, identity = dino.load(str(weights))
    except ValueError as error:
        raise ValueError(f"evaluation.dinov2 is {weights!r}; it must be a published DINOv2: {error}") from None
    preprocessing = f"8 bits, bicubic to {dino.SIDE} as in Pillow"
    apply = functools.partial(_dinov2, module)
    return Features("dinov2", ("features", "embedding"), preprocessing, identity, variables, apply)


def _dinov2(module, variables, images):
    tokens = dino.class_tokens(module, variables, _levels(images))
    lengths = jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    return {"features": tokens, "embedding": tokens / jnp.maximum(lengths, jnp.finfo(tokens.dtype).tiny)}


# Where weights lie below loader.directory, if evaluation.NAME does not say where.
PLACES = {"inception": WEIGHTS, "dinov2": dino.FOLDER}
