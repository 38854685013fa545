"""The training loop: one page, whatever is trained."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from tim_jax.system import flops
from tim_jax.system.chips import chip_of
from tim_jax.training import checkpoints, sharding
from tim_jax.training.goodput import Goodput
from tim_jax.training.metrics import Progress, Writer
from tim_jax.training.nonfinite import NonFinite
from tim_jax.training.preemption import Agreement, Stop
from tim_jax.training.settings import CheckpointSettings, TrainingSettings
from tim_jax.training.state import TrainState, create
from tim_jax.training.step import StepSettings, train_step
from tim_jax.training.watch import Bins, Trace, memory
from tim_jax.training.watchdog import Watchdog


@contextlib.contextmanager
def on_mesh(mesh: Mesh):
    """Within it, logical axis names in the networks mean axes of the mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        yield


class FrozenNetwork(Protocol):
    """A network that a step asks and never changes. net: params → network on a tuple of Queries. abstract: shapes,
    types and shardings of its parameters. params: these, read when they are first wanted."""

    net: Callable
    abstract: Any
    params: Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled pieces of a run on a mesh.

    init: key → boxed parameters of the student. step: settings of the train step. counted: the same without
    rematerialisation, whose operations count as the model's; `step` itself where nothing is rematerialised. frozen:
    networks that the step asks, by the names that the objective knows them by.
    """

    mesh: Mesh
    init: Callable[[jax.Array], Any]
    step: StepSettings
    counted: StepSettings
    frozen: Mapping[str, FrozenNetwork] = dataclasses.field(default_factory=dict)

    def asking(self, frozen: Mapping[str, FrozenNetwork]) -> "Trainer":
        """The same, with these networks for the objective to ask."""
        nets = {name: network.net for name, network in frozen.items()}
        step = dataclasses.replace(self.step, nets={**self.step.nets, **nets})
        counted = step
        if self.counted is not self.step:
            counted = dataclasses.replace(self.counted, nets={**self.counted.nets, **nets})
        return Trainer(self.mesh, self.init, step, counted, frozen)

    @functools.cached_property
    def frozen_params(self) -> dict[str, Any]:
        """{name: parameters} of the frozen networks. They are read here, once, and no step donates them."""
        return {name: network.params for name, network in self.frozen.items()}

    @functools.cached_property
    def abstract_frozen(self) -> dict[str, Any]:
        """Shapes, types and shardings of `frozen_params`; nothing is read."""
        return {name: network.abstract for name, network in self.frozen.items()}

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        shapes = jax.eval_shape(self._create())
        boxed = jax.eval_shape(self.init, jax.random.key(0))
        student = sharding.shardings(self.mesh, boxed, shapes.params["online"])
        params = dict.fromkeys(shapes.params, student)
        everywhere = sharding.replicated(self.mesh)
        opt_state = sharding.like_parameters(shapes.opt_state, params, everywhere)
        emas = dict.fromkeys(shapes.emas, student)
        return checkpoints.abstract_state(shapes, TrainState(everywhere, params, emas, opt_state))

    @functools.cached_property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def _create(self) -> Callable[[], TrainState]:
        step = self.step
        return create(lambda key: nn.unbox(self.init(key)), step.tx, step.emas, step.seed, step.auxiliary)

    def create(self) -> TrainState:
        """The first state, made in place on the mesh."""
        with on_mesh(self.mesh):
            return jax.jit(self._create(), out_shardings=self.shardings)()

    @functools.cached_property
    def jitted(self):
        return jax.jit(
            functools.partial(train_step, self.step),
            in_shardings=(self.shardings, None, jax.tree.map(lambda leaf: leaf.sharding, self.abstract_frozen)),
            out_shardings=(self.shardings, sharding.replicated(self.mesh), sharding.replicated(self.mesh)),
            donate_argnums=0,
        )

    @functools.cached_property
    def _compiled(self) -> dict:
        return {}

    @functools.cached_property
    def _flops(self) -> dict:
        return {}

    def flops(self, batch: dict[str, jax.Array]) -> int:
        """The model's operations in the step of a batch that has been compiled for, over all devices."""
        return self._flops[_shapes(batch)]

    def trace(self, batch: dict[str, jax.ShapeDtypeStruct]) -> jax.stages.Traced:
        """The step of a batch of these shapes as a jaxpr, to be lowered and compiled."""
        jitted = self.jitted  # made outside of the mesh: devices that are not there run nothing
        with on_mesh(self.mesh):
            return jitted.trace(self.abstract, batch, self.abstract_frozen)

    def model_flops(self, batch: dict[str, jax.ShapeDtypeStruct], traced: jax.stages.Traced) -> int:
        """Operations of the step if nothing was recomputed, over all devices. traced: the step of that batch."""
        if self.counted is self.step:
            return flops.count(traced.jaxpr)
        return flops.count(dataclasses.replace(self, step=self.counted).trace(batch).jaxpr)

    def compile(self, batches: Sequence[dict[str, jax.ShapeDtypeStruct]]) -> None:
        """Compiles the step for global batches of these shapes, as many at a time as there are processors."""
        missing = {_shapes(batch): batch for batch in batches if _shapes(batch) not in self._compiled}
        quiet = jax.process_index() > 0 or len(missing) < 2
        with (
            tqdm(total=len(missing), desc="compiling", unit="shape", disable=quiet) as bar,
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            waiting = {}
            for shapes, batch in missing.items():
                traced = self.trace(batch)
                waiting[pool.submit(traced.lower().compile)] = shapes
                self._flops[shapes] = self.model_flops(batch, traced)
            for done in concurrent.futures.as_completed(waiting):
                self._compiled[waiting[done]] = done.result()
                bar.update()

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step: the next state and its metrics."""
        return self.detailed(state, batch)[:2]

    def detailed(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict, dict]:
        """All that `train_step` returns, from the program compiled for this batch's shapes."""
        if _shapes(batch) not in self._compiled:
            self.compile([jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)])
        return self._compiled[_shapes(batch)](state, batch, self.frozen_params)


def _shapes(batch: dict) -> tuple:
    return tuple((name, value.shape, np.dtype(value.dtype)) for name, value in sorted(batch.items()))


class InputPipeline(Protocol):
    """What is trained on. shapes: the global batches that come, to compile the steps ahead."""

    shapes: Sequence[dict[str, jax.ShapeDtypeStruct]]

    def batches(self, start: int) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """(batch, numbers of its rows as halves (B, 2)), both on the mesh, of every step from `start` on."""

    def metrics(self) -> dict[str, float]:
        """Counts that go into the metrics."""


@dataclasses.dataclass(frozen=True)
class End:
    """How training ended. step: reached. stopped: who asked for an end before the last step, or None.

    goodput: share of the time since the first start in steps that count. saved: whether `step` is. failures: what could
    not be written.
    """

    state: TrainState
    step: int
    goodput: float
    saved: bool = True
    failures: Sequence[str] = ()
    stopped: str | None = None


def latest_state(
    trainer: Trainer, manager: ocp.CheckpointManager, first: Callable[[], TrainState]
) -> tuple[TrainState, dict]:
    """The state to go on from and what its checkpoint says of it: the latest good one's, or `first` and {}."""
    saved, damaged = checkpoints.latest_good(manager)
    checkpoints.set_aside(manager, damaged)
    if saved is None:
        return first(), {}
    return checkpoints.restore(manager, trainer.abstract, saved), checkpoints.read_record(manager, saved)


def train(
    trainer: Trainer,
    settings: TrainingSettings,
    saving: CheckpointSettings,
    workdir: epath.Path,
    feed: InputPipeline,
    record: dict,
    first: Callable[[], TrainState],
    pictures: Callable[[TrainState], dict[str, Any]] | None = None,
    stop: Stop | None = None,
    first_start: float | None = None,
    profile: tuple[int, int] | None = None,
    measure: Callable[[TrainState], dict[str, float]] | None = None,
    measure_every: int = 0,
) -> End:
    """Trains from the workdir's latest good checkpoint, or from `first`, to `settings.steps`, or until asked to stop.

    record: what a checkpoint says of its run. first: makes the state where there is no checkpoint. pictures: state →
    {name: PIL image}, written to samples/ and TensorBoard every `sample_every` steps and at the end. first_start: of
    the workdir, in seconds since the epoch. profile: first and last step of a trace. measure: state → {name: figure}
    that go into the metrics every `measure_every` steps (0: never).
    Raises TooManyNonFinite and DamagedCheckpoints.
    """
    stop = stop or Stop()
    manager = checkpoints.open_manager(workdir, saving.keep, saving.every, saving.keep_every)
    state, before = latest_state(trainer, manager, first)
    start = int(state.step)
    goodput = Goodput(first_start or time.time(), before.get("productive_seconds", 0.0))
    if start >= settings.steps:
        manager.close()
        return End(state, start, goodput.share)
    trainer.compile(feed.shapes)
    jax.block_until_ready(trainer.frozen_params)  # read now, not within the first step
    agreed = Agreement(trainer.mesh)
    nonfinite = NonFinite(workdir, settings.max_nonfinite, start)

    with contextlib.ExitStack() as stack:
        lead = jax.process_index() == 0
        writer = stack.enter_context(contextlib.closing(Writer(workdir, lead, settings.wandb, record)))
        saver = stack.enter_context(contextlib.closing(checkpoints.Saver(manager)))
        peak = trainer.mesh.size * getattr(chip_of(jax.devices()[0].device_kind), "flops", math.nan)
        progress = stack.enter_context(contextlib.closing(Progress(start, settings.steps, peak, active=lead)))
        trace = stack.enter_context(contextlib.closing(Trace(workdir, profile)))
        bins, batches = Bins(), feed.batches(start)
        watchdog = stack.enter_context(Watchdog(settings.hang_seconds))
        stack.enter_context(stop.held())
        stop.before = saver.wait
        goodput.begin()

        def finish(step: int, metrics: dict, by_row: dict, index: jax.Array) -> None:
            """Waits for a step and takes it into account."""
            left_out = bool(metrics["nonfinite"])
            watchdog.step()
            goodput.step()
            trace.after(step)
            bins.add(by_row)
            logged = step % settings.log_every == 0 or step == settings.steps
            if not left_out:
                nonfinite.streak = 0
            if not (left_out or logged):
                return
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if left_out:
                nonfinite.see(step, values, by_row, index)
            if logged:
                values |= {"nonfinite": nonfinite.count, "goodput": goodput.share}
                values |= progress.show(step, values["loss"]) | bins.take() | memory() | feed.metrics()
                writer.scalars(step, values)

        last = None  # the step before is waited for while the devices work on this one
        due = False
        for step in range(start + 1, settings.steps + 1):
            with progress.waiting(), goodput.waiting():
                batch, index = next(batches)
            trace.before(step)
            state, metrics, by_row = trainer.detailed(state, batch)
            if last is not None:
                finish(*last)
            last = step, metrics, by_row, index
            progress.advance(step, len(batch["x"]), trainer.flops(batch))

            stopped = agreed(stop.asked is not None)
            ended = step == settings.steps
            drawn = pictures is not None and (ended or settings.sample_every and step % settings.sample_every == 0)
            measured = measure is not None and measure_every > 0 and step % measure_every == 0
            due = due or step % saving.every == 0
            if not (due or drawn or measured or ended or stopped):
                continue
            finish(*last)
            last = None
            with progress.paused(), watchdog.paused(), goodput.waiting():
                if ended or not nonfinite.streak:  # while updates are left out, the last good checkpoint stays
                    saver.save(step, state, record | {"productive_seconds": goodput.productive})
                    due = False
                if stopped and not ended:
                    saver.wait()
                    asked = stop.asked or "a signal to another process"
                    return End(state, step, goodput.share, saver.saved == step, saver.failures, asked)
                if drawn:  # the state is saved, so that a stop may break off the drawing
                    with stop.released():
                        for name, image in pictures(state).items():
                            writer.picture(step, name, image)
                if measured:
                    with stop.released():
                        writer.scalars(step, measure(state))
        saver.wait()
        return End(state, step, goodput.share, saver.saved == step, saver.failures)
