"""The training loop: one page, whatever is trained."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import optax
from etils import epath
from jax.sharding import Mesh

from tim_jax.training import checkpoints, sharding
from tim_jax.training.metrics import Progress, Writer
from tim_jax.training.state import TrainState, create
from tim_jax.training.step import StepSettings, train_step


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """steps: to train in all. batch_size: rows per step. log_every, sample_every (0: only at the end),
    checkpoint_every: in steps. keep: checkpoints that stay."""

    steps: int
    batch_size: int
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
        opt_state = optax.tree_map_params(
            self.step.tx,
            lambda _, like: like,
            shapes.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        )
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

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step with the program compiled for this batch's shapes."""
        shapes = tuple((name, value.shape, value.dtype) for name, value in sorted(batch.items()))
        if shapes not in self._compiled:
            with on_mesh(self.mesh):
                self._compiled[shapes] = self.jitted.lower(state, batch).compile()
        return self._compiled[shapes](state, batch)


def train(
    trainer: Trainer,
    settings: LoopSettings,
    workdir: epath.Path,
    batches: Callable[[int], Iterator[dict]],
    record: dict,
    first: Callable[[], TrainState] | None = None,
    pictures: Callable[[TrainState], dict[str, Any]] | None = None,
) -> TrainState:
    """Trains from the workdir's latest checkpoint, or from `first`, to `settings.steps`; returns the last state.

    batches: step → iterator of host batches from that step on. record: what a checkpoint says of its run. first: makes
    the state where there is no checkpoint; by default from scratch.
    pictures: state → {name: PIL image}, written to samples/ and TensorBoard every `sample_every` steps and at the end.
    """
    lead = jax.process_index() == 0
    manager = checkpoints.open_manager(workdir, settings.keep, settings.checkpoint_every)
    resumed = manager.latest_step() is not None
    state = checkpoints.restore(manager, trainer.abstract) if resumed else (first or trainer.create)()
    start = int(state.step)
    if start >= settings.steps:
        manager.close()
        return state

    writer = Writer(workdir, active=lead)
    progress = Progress(start, settings.steps, settings.batch_size, active=lead)

    def log(step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        writer.scalars(step, values | {"images_per_second": progress.show(step, values["loss"])})

    def draw(step: int) -> None:
        with progress.paused():
            for name, image in pictures(state).items():
                writer.picture(step, name, image)

    data = batches(start)
    late = None  # a step's metrics are fetched while the device works on the next step
    for step in range(start + 1, settings.steps + 1):
        state, metrics = trainer(state, sharding.put_batch(trainer.mesh, next(data)))
        if late is not None:
            log(*late)
        late = (step, metrics) if step % settings.log_every == 0 or step == settings.steps else None
        progress.advance(step)
        checkpoints.save(manager, step, state, record, force=step == settings.steps)
        if pictures is not None and settings.sample_every and step % settings.sample_every == 0:
            draw(step)
    log(*late)
    if pictures is not None:
        draw(settings.steps)
    progress.close()
    writer.close()
    manager.wait_until_finished()
    manager.close()
    return state
