"""The real train step of a configuration, compiled for given devices without running anything."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.config.batches import batch_spec
from tim_jax.config.build import build
from tim_jax.plan import memory
from tim_jax.plan.memory import Memory
from tim_jax.runs import teachers
from tim_jax.system import flops
from tim_jax.system.topologies import Topology
from tim_jax.training import sharding

# Triton's tiles for a product are found by trying them on the GPU; without one, some products have none, and the
# compiler fails. The library's products need none.
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step.

    shapes: of the parameters, an abstract tree. text: its HLO, None if the compiler refused for want of memory.
    executed_flops, model_flops: of matrix products on all chips, with and without what the backward pass recomputes.
    seconds: to compile. unit: what the rows of another batch would have to be a multiple of.
    """

    mesh: Mesh
    rows: int
    unit: int
    shapes: Any
    memory: Memory
    text: str | None
    executed_flops: int
    model_flops: int
    seconds: float

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(x.size for x in jax.tree.leaves(self.shapes))

    @property
    def unsharded(self) -> int:
        """How many parameters every chip holds whole."""
        return sum(x.size for x in jax.tree.leaves(self.shapes) if x.sharding.shard_shape(x.shape) == x.shape)


def compile_step(
    config: ConfigDict, topology: Topology, rows: int | None = None, models: Mapping[str, teachers.Found] = {}
) -> Step:
    """The train step of `config` for rows of its own height and width, as many as it says of these, or `rows`.

    models: those that the objective learns from, of which nothing but shapes is looked at. Raises ValueError for a
    configuration that does not fit the devices, RuntimeError if the compiler fails.
    """
    run = teachers.asking(build(config, topology.devices), models)
    shape = run.image_shape[:2]
    rows = rows or run.inputs.batch_size_of(shape)
    batch = sharding.abstract_batch(run.mesh, batch_spec(run.config, rows, shape))
    state, frozen, began = run.trainer.abstract, run.trainer.abstract_frozen, time.monotonic()
    with progress(f"compiling for {topology.name}, {rows} rows"):
        traced = run.trainer.trace(batch)
        try:
            compiled = traced.lower().compile(compiler_options=OPTIONS.get(topology.devices[0].platform))
            needed, text = memory.of_step(state, batch, compiled, frozen), compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            needed, text = memory.of_refusal(state, batch, str(error), frozen), None
            if needed is None:
                raise RuntimeError(f"{topology.name}: the compiler failed: {str(error).splitlines()[0]}") from error
    seconds = time.monotonic() - began
    # Whole numbers of rows with r = t on every device, as long as the batch has them.
    whole = run.batch_multiple * Fraction(run.config.times.share_equal).limit_denominator(100).denominator
    return Step(
        mesh=run.mesh,
        rows=rows,
        unit=whole if rows % whole == 0 else run.batch_multiple,
        shapes=state.params,
        memory=needed,
        text=text,
        executed_flops=flops.count(traced.jaxpr),
        model_flops=run.trainer.model_flops(batch, traced),
        seconds=seconds,
    )


@contextlib.contextmanager
def progress(what: str, stream=None):
    """Says what is going on and for how long: in place on a terminal, else every half minute."""
    stream = stream or sys.stderr
    began, done = time.monotonic(), threading.Event()
    start, end, every = ("\r", "", 1) if stream.isatty() else ("", "\n", 30)

    def tell():
        print(f"{start}{what} … {time.monotonic() - began:.0f} s", end=end, file=stream, flush=True)

    def run():
        tell()
        while not done.wait(every):
            tell()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print(f"{start}{what} … {time.monotonic() - began:.0f} s", file=stream, flush=True)
