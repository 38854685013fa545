"""The training loop: one page, whatever is trained."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from tim_jax.training import checkpoints, sharding
from tim_jax.training.metrics import Progress, Writer
from tim_jax.training.state import TrainState, create
from tim_jax.training.step import StepSettings, train_step


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """steps: to train in all. log_every, sample_every (0: only at the end), checkpoint_every: in steps. keep:
    checkpoints that stay."""

    steps: int
    log_every: int = 50
    sample_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 2

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, key in (
            ("steps", "training.steps"),
            ("log_every", "training.log_every"),
            ("checkpoint_every", "checkpoint.every"),
            ("keep", "checkpoint.keep"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{key} is {getattr(self, name)}; it must be at least 1")
        if self.sample_every < 0:
            raise ValueError(f"training.sample_every is {self.sample_every}; it must be at least 0")


@contextlib.contextmanager
def on_mesh(mesh: Mesh):
    """Within it, logical axis names in the networks mean axes of the mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        yield


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled pieces of a run on a mesh.

    init: key → boxed parameters of the student. step: settings of the train step.
    """

    mesh: Mesh
    init: Callable[[jax.Array], Any]
    step: StepSettings

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        shapes = jax.eval_shape(self._create())
        boxed = jax.eval_shape(self.init, jax.random.key(0))
        params = {"student": sharding.shardings(self.mesh, boxed, shapes.params["student"])}
        everywhere = sharding.replicated(self.mesh)
        opt_state = sharding.like_parameters(shapes.opt_state, params, everywhere)
        emas = {name: params["student"] for name in shapes.emas}
        return checkpoints.abstract_state(shapes, TrainState(everywhere, params, emas, opt_state))

    @functools.cached_property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def _create(self) -> Callable[[], TrainState]:
        return create(lambda key: nn.unbox(self.init(key)), self.step.tx, self.step.emas, self.step.seed)

    def create(self) -> TrainState:
        """The first state, made in place on the mesh."""
        with on_mesh(self.mesh):
            return jax.jit(self._create(), out_shardings=self.shardings)()

    @functools.cached_property
    def jitted(self):
        return jax.jit(
            functools.partial(train_step, self.step),
            in_shardings=(self.shardings, None),
            out_shardings=(self.shardings, sharding.replicated(self.mesh)),
            donate_argnums=0,
        )

    @functools.cached_property
    def _compiled(self) -> dict:
        return {}

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
                with on_mesh(self.mesh):
                    lowered = self.jitted.lower(self.abstract, batch)
                waiting[pool.submit(lowered.compile)] = shapes
            for done in concurrent.futures.as_completed(waiting):
                self._compiled[waiting[done]] = done.result()
                bar.update()

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step with the program compiled for this batch's shapes."""
        if _shapes(batch) not in self._compiled:
            self.compile([jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)])
        return self._compiled[_shapes(batch)](state, batch)


def _shapes(batch: dict) -> tuple:
    return tuple((name, value.shape, np.dtype(value.dtype)) for name, value in sorted(batch.items()))


class Feed(Protocol):
    """What is trained on. shapes: the global batches that come, to compile the steps ahead."""

    shapes: Sequence[dict[str, jax.ShapeDtypeStruct]]

    def batches(self, start: int) -> Iterator[tuple[dict[str, jax.Array], np.ndarray]]:
        """(batch on the mesh, which rows this process brought) of every step from `start` on."""

    def metrics(self) -> dict[str, float]:
        """Counts that go into the metrics."""


def train(
    trainer: Trainer,
    settings: LoopSettings,
    workdir: epath.Path,
    feed: Feed,
    record: dict,
    first: Callable[[], TrainState],
    pictures: Callable[[TrainState], dict[str, Any]] | None = None,
) -> TrainState:
    """Trains from the workdir's latest checkpoint, or from `first`, to `settings.steps`; returns the last state.

    record: what a checkpoint says of its run. first: makes the state where there is no checkpoint. pictures: state →
    {name: PIL image}, written to samples/ and TensorBoard every `sample_every` steps and at the end.
    """
    lead = jax.process_index() == 0
    manager = checkpoints.open_manager(workdir, settings.keep, settings.checkpoint_every)
    resumed = manager.latest_step() is not None
    state = checkpoints.restore(manager, trainer.abstract) if resumed else first()
    start = int(state.step)
    if start >= settings.steps:
        manager.close()
        return state

    trainer.compile(feed.shapes)
    writer = Writer(workdir, active=lead)
    progress = Progress(start, settings.steps, active=lead)

    def finish(step: int, metrics: dict[str, jax.Array]) -> None:
        jax.block_until_ready(metrics)
        if step % settings.log_every == 0 or step == settings.steps:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            writer.scalars(step, values | progress.show(step, values["loss"]) | feed.metrics())

    def draw(step: int) -> None:
        with progress.paused():
            for name, image in pictures(state).items():
                writer.picture(step, name, image)

    batches = feed.batches(start)
    last = None  # the step before is waited for while the devices work on this one
    for step in range(start + 1, settings.steps + 1):
        with progress.waiting():
            batch, _ = next(batches)
        state, metrics = trainer(state, batch)
        if last is not None:
            finish(*last)
        last = step, metrics
        progress.advance(step, len(batch["x"]))
        checkpoints.save(manager, step, state, record, force=step == settings.steps)
        if pictures is not None and settings.sample_every and step % settings.sample_every == 0:
            draw(step)
    finish(*last)
    if pictures is not None:
        draw(settings.steps)
    progress.close()
    writer.close()
    manager.wait_until_finished()
    manager.close()
    return state
