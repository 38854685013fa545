"""Rewards by name: functions (images, condition) → rewards (B,) of images (B, h, w, C) in [-1, 1].

A reward is differentiable where it is trained on. The condition is that of the images: {"label": (B,)}, or what a
network gets of a text; `python -m tim_jax.prefer` gives {"prompt": texts}.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax

from tim_jax.types import PyTree

Reward: TypeAlias = Callable[[jax.Array, PyTree], jax.Array]


def brightness(images: jax.Array, condition: PyTree) -> jax.Array:
    """The mean over all values of an image: of white strokes on black, how thick they are."""
    mean: jax.Array = images.mean(axis=(1, 2, 3))
    return mean


REWARDS: dict[str, Reward] = {"brightness": brightness}
