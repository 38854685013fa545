"""Compiles the real train step of a configuration for given devices, without running anything."""

import dataclasses
import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.config.batches import batch_spec
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.plan import memory
from tim_jax.plan.memory import Memory
from tim_jax.runs import teachers
from tim_jax.system import flops
from tim_jax.system.progress import Activity
from tim_jax.system.topologies import Topology
from tim_jax.training import sharding
from tim_jax.training.mesh import AUTO

# Triton finds tiles for a product by trying them on the GPU. Without a GPU some products have none, and the compiler
# fails; the products of the library need none.
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step.

    Attributes:
        mesh: of the devices.
        chosen: whether the size of its axis `fsdp` was chosen, not named.
        batch_size: examples in a batch.
        unit: what the size of another batch would have to be a multiple of.
        shapes: abstract tree of the parameters.
        memory: bytes on one chip.
        text: optimised HLO, None if the compiler refused the step because it does not fit.
        executed_flops: operations of matrix products on all chips.
        model_flops: the same without what the backward pass recomputes.
        seconds: that tracing and compilation took.
    """

    mesh: Mesh
    chosen: bool
    batch_size: int
    unit: int
    shapes: Any
    memory: Memory
    text: str | None
    executed_flops: int
    model_flops: int
    seconds: float

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(x.size for x in jax.tree.leaves(self.shapes))

    @property
    def unsharded(self) -> int:
        """Number of parameters of which every chip holds a whole copy."""
        return sum(x.size for x in jax.tree.leaves(self.shapes) if x.sharding.shard_shape(x.shape) == x.shape)


class Traced(NamedTuple):
    """A step that is traced but not compiled.

    Attributes:
        run: of the configuration.
        batch: abstract batch.
        program: the traced step.
    """

    run: Run
    batch: dict[str, jax.ShapeDtypeStruct]
    program: jax.stages.Traced

    @property
    def executed_flops(self) -> int:
        """Operations of matrix products on all chips."""
        return flops.count(self.program.jaxpr)

    @property
    def model_flops(self) -> int:
        """The same without what the backward pass recomputes."""
        return self.run.trainer.model_flops(self.batch, self.program)


def trace_step(
    config: ConfigDict,
    topology: Topology,
    batch_size: int | None = None,
    models: Mapping[str, teachers.TeacherSource] = {},
) -> Traced:
    """Traces the train step of a configuration; arguments and errors are those of `compile_step`."""
    run, batch = _run_and_batch(config, topology, batch_size, models)
    return Traced(run, batch, run.trainer.trace(batch))


def _run_and_batch(config, topology, batch_size, models) -> tuple[Run, dict[str, jax.ShapeDtypeStruct]]:
    run = teachers.with_models(build(config, topology.devices), models)
    shape = run.image_shape[:2]
    spec = batch_spec(run.config, batch_size or run.inputs.batch_size_of(shape), shape)
    return run, sharding.abstract_batch(run.mesh, spec)


def compile_step(
    config: ConfigDict,
    topology: Topology,
    batch_size: int | None = None,
    models: Mapping[str, teachers.TeacherSource] = {},
) -> Step:
    """Compiles the train step of a configuration for images of its own height and width.

    Args:
        config: the configuration.
        topology: the devices.
        batch_size: examples in a batch; by default those of the configuration.
        models: the models that the objective learns from, of which nothing but shapes is used.

    Raises:
        ValueError: for a configuration that does not fit the devices.
        RuntimeError: if the compiler fails.
    """
    run, batch = _run_and_batch(config, topology, batch_size, models)
    batch_size = batch["x"].shape[0]
    state, frozen, text = run.trainer.abstract, run.trainer.abstract_frozen, None
    began = time.monotonic()
    with Activity(f"compiling for {topology.name}, {batch_size} examples", after=0):
        traced = Traced(run, batch, run.trainer.trace(batch))
        try:
            compiled = traced.program.lower().compile(compiler_options=OPTIONS.get(topology.devices[0].platform))
            needed, text = memory.of_step(state, batch, compiled, frozen), compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            refused = memory.of_refusal(state, batch, str(error), frozen)
            if refused is None:
                raise RuntimeError(f"{topology.name}: the compiler failed: {str(error).splitlines()[0]}") from error
            needed = refused
    seconds = time.monotonic() - began
    # Every device has a whole number of examples with r = t, if the batch has that.
    whole = run.batch_multiple * Fraction(run.config.times.share_equal).limit_denominator(100).denominator
    return Step(
        mesh=run.mesh,
        chosen=run.config.mesh.fsdp == AUTO and run.mesh.shape["fsdp"] > 1,
        batch_size=batch_size,
        unit=whole if batch_size % whole == 0 else run.batch_multiple,
        shapes=state.params,
        memory=needed,
        text=text,
        executed_flops=traced.executed_flops,
        model_flops=traced.model_flops,
        seconds=seconds,
    )
