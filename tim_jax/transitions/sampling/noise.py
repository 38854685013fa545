"""Noise of samples, keyed by (seed, image index), so that an image does not depend on its batch."""

import jax
import numpy as np

from tim_jax.transitions.noise import draw_noise

FIRST = 2**31 - 1  # tells fresh noise in the first state from the first state's own, 0, and from that of later states

DRAWS = 2**30  # noise of drawn predictions is numbered from here on
RENOISED = 2**29  # and that of states that are noised anew from here on


def image_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Returns random keys (B,), one per image index (B,) of a seed."""
    keys: jax.Array = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)
    return keys


def start_noise(keys: jax.Array, shape: tuple[int, ...], augmented_dimensions: int = 0) -> jax.Array:
    """Returns noise (B, …) of a given image shape, each from its image's own key (B,).

    It is standard normal, or follows the law of a transport with `augmented_dimensions`, see `transitions/noise.py`.
    """

    def of_image(key: jax.Array) -> jax.Array:
        return draw_noise(augmented_dimensions, jax.random.fold_in(key, 0), (1, *shape))[0]

    noise: jax.Array = jax.vmap(of_image)(keys)
    return noise


def noise_of_seed(seed: jax.Array, indices: jax.Array, shape: tuple[int, ...], augmented_dimensions: int) -> jax.Array:
    """Returns the noise (B, *shape) of the images `indices` (B,) of a seed; see `start_noise`."""
    return start_noise(image_keys(seed, indices), shape, augmented_dimensions)


def fresh_noise(keys: jax.Array, which: jax.Array | int, like: jax.Array) -> jax.Array:
    """Returns standard normal ξ (B, …) of a state, each from its image's key (B,) and the state's number."""

    def of_image(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, which), like.shape[1:], like.dtype)

    noise: jax.Array = jax.vmap(of_image)(keys)
    return noise


def slerp(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Interpolates between two noises: spherically in direction, linearly in length.

    Where x and y point in (nearly) the same or opposite directions, the interpolation is linear.

    Args:
        x, y: The ends (…), one image each.
        u: Positions (n,) from 0, at x, to 1, at y.

    Returns:
        The points (n, …).
    """
    norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
    u = u.reshape(-1, *[1] * x.ndim)
    angle = np.arccos(np.clip(np.sum(x * y, dtype=np.float64) / (norm_x * norm_y), -1, 1))
    points: np.ndarray
    if min(angle, np.pi - angle) < 1e-6:
        points = (1 - u) * x + u * y
    else:
        direction = (np.sin((1 - u) * angle) * x / norm_x + np.sin(u * angle) * y / norm_y) / np.sin(angle)
        points = ((1 - u) * norm_x + u * norm_y) * direction
    return points
