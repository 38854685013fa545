"""Rewards by name: functions (images, condition) → rewards (B,) of images (B, h, w, C) in [-1, 1].

A reward is differentiable where it is trained on. The condition is that of the images: {"label": (B,)}, or what a
network gets of a text; `python -m tim_jax.prefer` gives {"prompt": texts}.

Those of OF_SCORES are a frozen classifier's judgement: functions of its scores in place of the images, which may be
latents then. Those of OF_TARGET compare its features with those of a target image, condition["target"] (B, d).
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.types import ClassScores, PyTree

Reward: TypeAlias = Callable[[jax.Array, PyTree], jax.Array]


def brightness(images: jax.Array, condition: PyTree) -> jax.Array:
    """The mean over all values of an image: of white strokes on black, how thick they are."""
    mean: jax.Array = images.mean(axis=(1, 2, 3))
    return mean


REWARDS: dict[str, Reward] = {"brightness": brightness}


def log_probability(scores: ClassScores, condition: Mapping[str, jax.Array]) -> jax.Array:
    """log p(y | x̂) of the label y."""
    return of_label(jax.nn.log_softmax(scores.logits), condition["label"])


def similarity(scores: ClassScores, condition: Mapping[str, jax.Array]) -> jax.Array:
    """The cosine of the features of x̂ and the embedding of its label, as CLIP's of an image and its caption."""
    return of_label(scores.cosines, condition["label"])


def image_similarity(scores: ClassScores, condition: Mapping[str, jax.Array]) -> jax.Array:
    """The cosine of the features of x̂ and those of the target image, of length 1: CLIP-I, by another network."""
    assert scores.features is not None, "a classifier that gives them"
    cosine: jax.Array = (scores.features * condition["target"]).sum(axis=-1)
    return cosine


def of_label(values: jax.Array, label: jax.Array) -> jax.Array:
    """The values (B,) of labels (B,) among those (B, K) of all classes; 0 for the null label, which is K."""
    classes = values.shape[1]
    found = jnp.take_along_axis(values, jnp.minimum(label, classes - 1)[:, None], axis=1)[:, 0]
    return jnp.where(label < classes, found, 0.0)


OF_SCORES = {"classifier": log_probability, "similarity": similarity}
OF_TARGET = {"image_similarity": image_similarity}
