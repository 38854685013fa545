"""Train steps of flow matching, of TiM with the exact derivative and with a finite difference: speed and memory.

A step's operations are those of the model's matrix products, without what is computed again. They are compared with the
peak of a matrix product in bfloat16 that was measured in the same run. Beside what was measured stands what the planner
says of the step: bytes, and seconds at least.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from tim_jax.bench.step import SEED, Case, frozen_params, made_up_batch, make_state, step_settings, trace_step
from tim_jax.plan import memory
from tim_jax.plan.bounds import Bounds, bounds
from tim_jax.plan.memory import Memory
from tim_jax.system import flops, timing
from tim_jax.system.chips import Chip
from tim_jax.system.topologies import Topology
from tim_jax.verification import peaks
from tim_jax.verification.setup import Setup, Sizes
from tim_jax.verification.verdicts import WRONG, LeftOut, Line, slow_unless

VARIANTS = {"flow_matching": "flow matching", "tim_fused": "TiM, exact", "tim_dde": "TiM, finite difference"}
UTILISATION = 0.2  # share of the measured peak of matrix products below which a step is slow
MORE_THAN_COUNTED = 1.25  # times the ratio of operations: how much slower than flow matching the exact step may be
OF_DIFFERENCE = 1.1  # times the step with a finite difference: the same
OF_PLAN = 0.05  # share of the planned memory by which the measured one may be off


@dataclasses.dataclass(frozen=True)
class Planned:
    """A compiled step with the planner's word.

    Attributes:
        compiled: The step.
        operations: Of its matrix products.
        memory: Bytes by what they are for.
        bounds: Seconds at least.
    """

    compiled: jax.stages.Compiled
    operations: int
    memory: Memory
    bounds: Bounds


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields lines for each network: a step of each variant, their ratios, their memory."""
    for case in setup.sizes.training:
        yield from of_case(case, setup.sizes)


def of_case(case: Case, sizes: Sizes) -> Iterator[Line | LeftOut]:
    """Yields the lines of a network."""
    began = time.perf_counter()
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            traced = {variant: trace_step(case, variant) for variant in VARIANTS}
            waiting = {name: pool.submit(step.lower().compile) for name, step in traced.items()}
            model = {name: model_operations(case, name, traced[name]) for name in VARIANTS}
            steps = {name: plan(case, name, traced[name], done.result(), sizes) for name, done in waiting.items()}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield LeftOut(case.name, "its step does not fit into the memory of this device, says the compiler")
        return
    compiling = time.perf_counter() - began
    told = peaks.memory_of(jax.local_devices()[0])
    needed = max(step.memory.total for step in steps.values())
    if told and 0 < told[1] < needed:
        yield LeftOut(case.name, f"its step needs {gib(needed)}, and this device has {gib(told[1])}")
        return
    turns = Turns(case, steps)
    used = {name: turns.memory_of(name) for name in sorted(steps, key=lambda name: steps[name].memory.total)}
    timings = timing.interleaved({name: functools.partial(turns, name) for name in steps}, sizes.repeats)
    peak = peaks.of_first_device(sizes).flops
    about = f"{case.name}, batch {case.batch}"
    for name, step in steps.items():
        seconds, loss = timings[name].seconds, turns.losses[name]
        share = model[name] / seconds / peak
        figures = {
            "step": f"{about}: {VARIANTS[name]}",
            "seconds": seconds,
            "images_per_second": case.batch / seconds,
            "model_flops": model[name],
            "utilisation": share,
            "loss": loss,
            "compile_seconds": compiling,  # of all variants of a network together
            "planned_seconds": step.bounds.step,
            "planned_bytes": step.memory.total,
            "measured_bytes": used[name],
        }
        measured = f"{1e3 * seconds:.4g} ms, {case.batch / seconds:.4g} images/s, {share:.0%} of the product's peak"
        finite = np.isfinite(loss)
        verdict = slow_unless(share >= UTILISATION) if finite else WRONG
        yield Line(
            f"{about}: {VARIANTS[name]}",
            measured if finite else f"{measured}, the loss is {loss}",
            f"at least {UTILISATION:.0%}",
            verdict,
            figures,
        )
    second = {name: timings[name].seconds for name in steps}
    over = second["tim_fused"] / second["flow_matching"]
    counted = steps["tim_fused"].operations / steps["flow_matching"].operations
    yield ratio(f"{about}: exact over flow matching", over, MORE_THAN_COUNTED * counted, f", operations {counted:.2f}")
    over = second["tim_fused"] / second["tim_dde"]
    yield ratio(f"{about}: exact over finite difference", over, OF_DIFFERENCE)
    yield from of_memory(about, steps, used)


def ratio(what: str, over: float, most: float, more: str = "") -> Line:
    """Returns the line of a ratio of times."""
    return Line(what, f"{over:.2f}", f"at most {most:.2f}{more}", slow_unless(over <= most), {"ratio": over})


def of_memory(about: str, steps: dict[str, Planned], used: dict[str, int | None]) -> Iterator[Line | LeftOut]:
    """Yields a line for each step whose memory was measured."""
    known = {name: size for name, size in used.items() if size is not None}
    if not known:
        yield LeftOut(f"{about}: memory", "this device does not say what programs use")
    for name, size in known.items():
        planned = steps[name].memory.total
        off = size / planned - 1
        yield Line(
            f"{about}: memory of {VARIANTS[name]}",
            f"{gib(size)}, {off:+.1%} of what is planned",
            f"{gib(planned)} ± {OF_PLAN:.0%}",
            slow_unless(abs(off) <= OF_PLAN),
            {"measured_bytes": size, "planned_bytes": planned},
        )


def model_operations(case: Case, variant: str, traced: jax.stages.Traced) -> int:
    """Returns the operations of a step without those that are made again."""
    if case.network.remat == "none":
        return flops.count(traced.jaxpr)
    whole = dataclasses.replace(case, network=case.network.clone(remat="none"))
    return flops.count(trace_step(whole, variant).jaxpr)


def plan(case: Case, variant: str, traced: jax.stages.Traced, compiled: jax.stages.Compiled, sizes: Sizes) -> Planned:
    """Returns what the planner says of a compiled step on the device that is here."""
    settings, device = step_settings(case, variant), jax.local_devices()[0]
    sharding = SingleDeviceSharding(device)

    def here(make: Callable) -> Any:
        shapes = jax.eval_shape(functools.partial(make, case, settings))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    needed = memory.of_step(here(make_state), here(made_up_batch), compiled, here(frozen_params))
    operations = flops.count(traced.jaxpr)
    step = Program(needed, operations)
    return Planned(compiled, operations, needed, bounds(step, Topology("here", chip(sizes), [device], 1), []))


@dataclasses.dataclass(frozen=True)
class Program:
    """What bounds the time of a step: its memory in bytes, and the operations of its matrix products."""

    memory: Memory
    executed_flops: int


def chip(sizes: Sizes) -> Chip:
    """Returns the published figures of this device, or where they are not known, those that were measured."""
    if (known := peaks.published()) is not None:
        return known
    found = peaks.of_first_device(sizes)
    return Chip(0, found.flops, found.memory_bandwidth, float("inf"), float("inf"))


class Turns:
    """Steps that train one state in turn, so that there need be memory for no more than one.

    Attributes:
        losses: Of each step's last turn, by name.
    """

    def __init__(self, case: Case, steps: dict[str, Planned]):
        settings = step_settings(case, next(iter(steps)))
        self._steps, self.losses = steps, dict.fromkeys(steps, float("nan"))
        self._state = jax.jit(functools.partial(make_state, case, settings))()
        self._batch = jax.jit(functools.partial(made_up_batch, case, settings))()

    def __call__(self, name: str) -> None:
        """Makes one step and waits for it."""
        self._state, metrics, _ = self._steps[name].compiled(self._state, self._batch, SEED, {})
        jax.block_until_ready(self._state)
        self.losses[name] = float(metrics["loss"]) if not float(metrics["nonfinite"]) else float("nan")

    def memory_of(self, name: str) -> int | None:
        """Makes one step, and returns the most bytes that were in use, where this step has raised them."""
        device = jax.local_devices()[0]
        before = peaks.memory_of(device)
        self(name)
        after = peaks.memory_of(device)
        return after[0] if before and after and after[0] > before[0] else None


def gib(size: float) -> str:
    """Returns bytes as text."""
    return f"{size / 2**30:.2f} GiB"
