"""A small convolutional classifier, in the form of CLIP (arXiv 2103.00020): images and classes share an embedding."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.types import ClassScores

WIDEST = 256  # channels of a level
DEEPEST = 6


class Classifier(nn.Module):
    """Maps images (B, h, w, C), or latents, of any size to `ClassScores`.

    logits = s cos(φ(x), w_k). φ is the mean over places after levels of convolution and normalisation, between which
    positions are halved; w_k are embeddings of the K classes, and s is learned.
    """

    classes: int  # K
    depth: int  # levels
    width: int = 32  # channels of the first level, twice as many in each after it, up to WIDEST
    embedding: int = 64  # width of φ

    @nn.compact
    def __call__(self, x: jax.Array) -> ClassScores:
        for level in range(self.depth):
            if level and min(x.shape[1:3]) >= 2:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = nn.Conv(min(self.width << level, WIDEST), (3, 3), name=f"convolution_{level}")(x)
            x = nn.gelu(nn.LayerNorm(name=f"norm_{level}")(x))
        features = of_length_1(nn.Dense(self.embedding, name="projection")(x.mean((1, 2))))
        classes = self.param("classes", nn.initializers.normal(1.0), (self.classes, self.embedding))
        cosines = features @ of_length_1(classes).T
        log_scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), ())
        return ClassScores(cosines, jnp.exp(log_scale) * cosines, features)


def of_length_1(x: jax.Array) -> jax.Array:
    """Returns vectors (…, d) divided by their lengths."""
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def suited(classes: int, side: int) -> Classifier:
    """Returns a classifier for images whose smaller side is `side`: down to two positions a side, if DEEPEST allows."""
    return Classifier(classes, min(max(side.bit_length() - 1, 1), DEEPEST))


def of_parameters(params: Mapping[str, Any]) -> Classifier:
    """Returns the classifier that has these parameters. Raises KeyError or ValueError if none has."""
    depth = sum(name.startswith("convolution_") for name in params)
    classes, embedding = params["classes"].shape
    *_, width = params["convolution_0"]["kernel"].shape
    return Classifier(classes, depth, width, embedding)
