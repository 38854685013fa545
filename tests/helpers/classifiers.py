"""Files of classifiers that nobody has trained."""

import functools

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from tim_jax.networks.classifier import suited


@functools.partial(jax.jit, static_argnums=(0, 1))
def parameters(classes, channels, seed):
    params = suited(classes, 8).init(jax.random.key(seed), np.zeros((1, 8, 8, channels)))["params"]
    return flatten_dict(params, sep="/")


def classifier_file(folder, classes=10, channels=1, seed=0):
    """Writes a classifier of 8×8 images, as python -m tim_jax.classify does; its path."""
    arrays = {name: np.asarray(array) for name, array in parameters(classes, channels, seed).items()}
    path = folder / f"{classes}_{channels}_{seed}.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path
