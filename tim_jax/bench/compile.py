"""The time to trace and compile the step of a run, cold and from the persistent cache, by depth and buckets.

The trainer compiles as it does at the start of a run, the programs of several buckets in parallel. Seconds are those of
the clock; processor seconds are summed over all threads and depend little on what else the machine does.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from tim_jax.bench.step import CASES, Case, check_names, read_numbers, step_settings
from tim_jax.networks import TiM
from tim_jax.system import devices, timing
from tim_jax.system.progress import Bar
from tim_jax.training import sharding
from tim_jax.training.mesh import AXES, make_mesh
from tim_jax.training.trainer import Trainer
from tim_jax.types import Query

COLUMNS = (
    ("network", "{network}"),
    ("depth", "{depth}"),
    ("buckets", "{buckets}"),
    ("cache", "{cache}"),
    ("trace", "{trace_seconds:.1f} s"),
    ("compile", "{compile_seconds:.1f} s"),
    ("together", "{seconds:.1f} ± {spread:.1f} s"),
    ("processor", "{processor_seconds:.1f} s"),
    ("compiled", "{compiled}"),
    ("read", "{read}"),
)
XL = TiM(**cast(dict[str, Any], TiM.SIZES["XL"]), remat="full", dtype=jnp.bfloat16)
NETWORKS = CASES | {"XL/2": Case("XL/2", XL, (32, 32, 4), batch=8)}
HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@contextlib.contextmanager
def cache_in(folder: str) -> Iterator[collections.Counter]:
    """Within this context every compiled program is cached in `folder`; yields a count of JAX's events."""
    events: collections.Counter = collections.Counter()
    settings = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}

    def apply(settings):
        compilation_cache.reset_cache()
        for name, value in settings.items():
            jax.config.update(name, value)

    def count(event, **_):
        events[event] += 1

    apply(settings)
    jax.monitoring.register_event_listener(count)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(count)
        apply(before)


def make_trainer(case: Case, on: Sequence[jax.Device] | None = None) -> Trainer:
    """Returns the trainer of a fused step whose examples lie on these devices; by default on the first one."""
    settings = step_settings(case, "tim_fused")
    x, time = jnp.zeros((1, *case.latent)), jnp.zeros((1,))
    query = Query(x, time, time, {"label": jnp.zeros((1,), jnp.int32)})
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"data": -1}, on or jax.local_devices()[:1])
    return Trainer(mesh, lambda key: case.network.init(key, (query,))["params"], settings, settings)


def compile_buckets(case: Case, buckets: int) -> tuple[float, float, float]:
    """Returns seconds (to trace, to compile, of processors) for the steps of so many shapes of examples."""
    trainer = make_trainer(case)
    height, width, channels = case.latent

    def batch_of(i):
        shape = case.batch, height + i * case.network.patch_size, width, channels
        return sharding.abstract_batch(trainer.mesh, {"x": (shape, np.float32), "label": ((case.batch,), np.int32)})

    batches = [batch_of(i) for i in range(buckets)]
    busy, began = time.process_time(), time.perf_counter()
    for batch in batches:
        trainer.trace(batch)
    traced = time.perf_counter()
    trainer.compile(batches)  # which finds the traces
    return traced - began, time.perf_counter() - traced, time.process_time() - busy


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures two rows for each network, depth and number of buckets. Raises ValueError for wrong arguments."""
    check_names("networks", args.networks, NETWORKS)
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; it must be at least 1")
    depths, buckets_of = read_numbers("depths", args.depths), read_numbers("buckets", args.buckets)
    cases = list(itertools.product(args.networks.split(","), depths, buckets_of))
    devices.announce(sys.stderr)
    with tempfile.TemporaryDirectory() as folder, cache_in(folder):
        compile_buckets(CASES["small"], 1)  # pays for what only the first compilation of a process does
    results = collections.defaultdict(list)
    for _, (name, depth, buckets) in Bar(list(itertools.product(range(args.repeats), cases)), unit="case"):
        for cache, result in measure_case(name, depth, buckets).items():
            results[name, depth, buckets, cache].append(result)
    return [row(name, depth, buckets, cache, of) for (name, depth, buckets, cache), of in results.items()]


def measure_case(name: str, depth: int, buckets: int) -> dict[str, tuple]:
    """Returns {"cold", "cached": (seconds to trace, to compile, of processors, programs compiled, programs read)}."""
    network = NETWORKS[name].network
    network = network.clone(depth=depth, encoder_depth=min(depth, network.encoder_depth))
    case, found = dataclasses.replace(NETWORKS[name], network=network), {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("cold", "cached"):
            jax.clear_caches()
            with cache_in(folder) as events:
                found[cache] = (*compile_buckets(case, buckets), events[MISS], events[HIT])
    return found


def row(name: str, depth: int, buckets: int, cache: str, results: list[tuple]) -> dict[str, Any]:
    """Returns the row of the table for some repeats, with their medians."""
    trace, compile, busy, compiled, read = np.median(results, axis=0).tolist()
    together = timing.summary([result[0] + result[1] for result in results])
    return {
        "network": name,
        "depth": depth,
        "buckets": buckets,
        "cache": cache,
        "trace_seconds": trace,
        "compile_seconds": compile,
        "seconds": together.seconds,
        "spread": together.spread,
        "processor_seconds": busy,
        "compiled": int(compiled),
        "read": int(read),
    }
