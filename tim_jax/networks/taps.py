"""Taps: states of a network after some of its blocks, which others read, such as the heads of a discriminator."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp


def keep(
    states: dict[int, tuple[jax.Array, ...]], streams: tuple[jax.Array, ...], block: jax.Array
) -> dict[int, tuple[jax.Array, ...]]:
    """Returns what a scan over the layers carries of the states after some blocks, one for each group of examples.

    Args:
        states: What it carried before, by the number of the block.
        streams: The states after the block that the scan is at.
        block: Its number, counted from 1.
    """
    return {n: tuple(jnp.where(block == n, x, y) for x, y in zip(streams, ys)) for n, ys in states.items()}


def check_taps(key: str, blocks: tuple[int, ...], network: Any) -> None:
    """Raises ValueError, naming the key, unless a network can be called with taps=blocks."""
    if not blocks:
        return
    if "taps" not in inspect.signature(network.__call__).parameters:
        name = type(network).__name__
        raise ValueError(f"{key} is {blocks}; it must be () for {name}, whose __call__ has no argument taps")
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] > network.depth:
        raise ValueError(f"{key} is {blocks}; it must be ascending numbers of blocks in 1 … {network.depth}")
    if network.slices > 1:
        raise ValueError(
            f"{key} is {blocks}; it must be () where model.slices is {network.slices}, as blocks are skipped"
        )
