"""Collectives over all devices of all processes: their sums and permutations exactly, and their bandwidth.

Bytes are those that a device receives, of n devices with an array of S bytes each: (n − 1) S for a gather, S (n − 1)/n
for a scattered sum and an all-to-all, twice that for a sum, S for a permutation.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tim_jax.system import cluster
from tim_jax.training.mesh import slices_of
from tim_jax.verification import peaks
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import WRONG, LeftOut, Line, slow_unless

OF_PUBLISHED = 0.3  # share of the published bandwidth of links below which a collective is slow
AXIS = "all"
SHARD = PartitionSpec(AXIS)


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields a line for each kind of collective."""
    devices = jax.devices()
    if len(devices) == 1:
        yield LeftOut("all", "there is one device")
        return
    mesh, chip = Mesh(np.array(devices), (AXIS,)), peaks.published()
    over = "link" if slices_of(devices) == 1 else "network"  # as `Chip` has them
    least = OF_PUBLISHED * getattr(chip, over, 0.0)
    for name, (collective, received, right) in kinds(len(devices)).items():
        rate, good = measure(mesh, collective, received, right, setup.sizes.message)
        measured = f"{rate / 1e9:.4g} GB/s received by a device" + ("" if good else ", with wrong numbers")
        limit = f"at least {least / 1e9:.4g}" if least else ""
        figures = {"bandwidth": rate, "over": over, "devices": len(devices), "exact": good}
        yield Line(name, measured, limit, slow_unless(rate >= least) if good else WRONG, figures)


def kinds(n: int) -> dict[str, tuple[Callable, float, Callable]]:
    """Returns {name: (collective of a device's array, bytes received by those given, what is right)} for n devices.

    What is right is a function of the arrays of all devices (n, length), whole numbers, to what all of them have after
    that, one after another.
    """
    ring = [(i, (i + 1) % n) for i in range(n)]
    return {
        "all-reduce": (lambda x: jax.lax.psum(x, AXIS), 2 * (n - 1) / n, lambda x: np.tile(x.sum(0), n)),
        "all-gather": (lambda x: jax.lax.all_gather(x, AXIS, tiled=True), n - 1, lambda x: np.tile(x.ravel(), n)),
        "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, AXIS, tiled=True), (n - 1) / n, lambda x: x.sum(0)),
        "all-to-all": (
            lambda x: jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True),
            (n - 1) / n,
            lambda x: x.reshape(n, n, -1).swapaxes(0, 1).ravel(),
        ),
        "permutation": (lambda x: jax.lax.ppermute(x, AXIS, ring), 1.0, lambda x: np.roll(x, 1, 0).ravel()),
    }


def measure(mesh: Mesh, collective: Callable, received: float, right: Callable, message: int) -> tuple[float, bool]:
    """Returns (bytes per second that a device receives, whether the numbers are right).

    Args:
        mesh: The devices.
        collective: Of a device's array, inside `jax.shard_map`.
        received: Bytes that a device receives by those that it gives.
        right: See `kinds`.
        message: Bytes that a device gives.
    """
    n = mesh.size
    here = jax.jit(jax.shard_map(collective, mesh=mesh, in_specs=SHARD, out_specs=SHARD, check_vma=False))
    # Right numbers are looked at in small arrays, of which every process knows all.
    some = np.random.RandomState(0).randint(-999, 1000, (n, 4 * n)).astype(np.float32)
    want = right(some).astype(np.float32)
    found = here(put(mesh, some.ravel()))
    good = all(np.array_equal(np.asarray(shard.data), want[shard.index]) for shard in found.addressable_shards)
    length = max(message // 4 // n * n, n)
    made = jax.jit(lambda: jnp.zeros(n * length, jnp.float32), out_shardings=NamedSharding(mesh, SHARD))()
    seconds = peaks.fastest(lambda: here(made))
    wrong = np.array([not good], np.int64)
    return received * 4 * length / seconds, not cluster.summed(wrong)[0]


def put(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Returns an array that every process has whole, with its parts on the devices."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, SHARD), lambda index: array[index])
