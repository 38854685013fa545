"""Images and the patches that networks see of them."""

import jax


def patchify(x: jax.Array, p: int) -> jax.Array:
    """Cuts images (B, h, w, C) into patches (B, N, p, p, C), row by row."""
    B, h, w, C = x.shape
    return x.reshape(B, h // p, p, w // p, p, C).swapaxes(2, 3).reshape(B, -1, p, p, C)


def unpatchify(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Joins patches (B, N, p, p, C) to images of `shape` (B, h, w, C): the inverse of `patchify`."""
    B, h, w, C = shape
    p = y.shape[2]
    return y.reshape(B, h // p, w // p, p, p, C).swapaxes(2, 3).reshape(shape)
