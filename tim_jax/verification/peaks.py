"""What a device of this machine can do at most, measured: the yardstick of what comes after."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.system.chips import Chip, chip_of
from tim_jax.verification.setup import Sizes

TURNS = 8  # of the loop in one program, so that the time to start it does not count
TRIES = 3


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The fastest that a device was seen to be.

    Attributes:
        flops: Operations per second of a matrix product in bfloat16.
        float32_flops: The same in float32, at the precision that training uses.
        memory_bandwidth: Bytes per second, read and written.
    """

    flops: float
    float32_flops: float
    memory_bandwidth: float


@functools.cache
def of_first_device(sizes: Sizes) -> Peaks:
    """Returns the peaks of this process's first device, measured once."""
    device = jax.local_devices()[0]
    return Peaks(
        product_rate(device, sizes.product, jnp.bfloat16),
        product_rate(device, sizes.product, jnp.float32),
        copy_rate(device, sizes.stream),
    )


def product_rate(device: jax.Device, size: int, dtype: Any) -> float:
    """Returns operations per second of products of (size, size) matrices: 2 size³ for each."""
    mean = jnp.full((size, size), 1 / size, dtype, device=device)  # the product with it keeps the size of numbers
    ones = jnp.ones((size, size), dtype, device=device)
    turns = jax.jit(lambda x, mean: jax.lax.fori_loop(0, TURNS, lambda _, x: x @ mean, x))
    return 2 * size**3 * TURNS / fastest(lambda: turns(ones, mean))


def copy_rate(device: jax.Device, size: int) -> float:
    """Returns bytes per second, read and written, of a pass over an array of `size` bytes."""
    x = jnp.zeros(size // 4, jnp.float32, device=device)
    turns = jax.jit(lambda x: jax.lax.fori_loop(0, TURNS, lambda i, x: x + i, x))
    return 2 * size * TURNS / fastest(lambda: turns(x))


def fastest(call: Callable[[], Any]) -> float:
    """Returns the least seconds that a call takes, after one that does not count."""
    seconds = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.min(seconds[1:]))


def published() -> Chip | None:
    """Returns the published figures of this process's first device, or None where they are not known."""
    return chip_of(jax.local_devices()[0].device_kind)


def memory_of(device: jax.Device) -> tuple[int, int] | None:
    """Returns the bytes (that programs have used at most until now, that they may use), or None if not told."""
    stats = device.memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        return None
    return int(stats["peak_bytes_in_use"]), int(stats.get("bytes_limit", 0))
