"""The training loop: one page, whatever is trained."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from absl import logging
from etils import epath

from tim_jax.system import peers
from tim_jax.training import checkpoints, damaged, sharding
from tim_jax.training.array_checksums import Checksums
from tim_jax.training.cadence import Cadence
from tim_jax.training.corruption import Guard
from tim_jax.training.goodput import Goodput
from tim_jax.training.local_checkpoints import LocalCheckpoints, Tier
from tim_jax.training.monitor import Launched, Monitor
from tim_jax.training.preemption import Agreement, Stop
from tim_jax.training.settings import CheckpointSettings, TrainingSettings
from tim_jax.training.snapshots import Snapshots
from tim_jax.training.state import TrainState
from tim_jax.training.trainer import AbstractBatch, Batch, Trainer


class InputPipeline(Protocol):
    """What is trained on."""

    @property
    def shapes(self) -> Sequence[AbstractBatch]:
        """The global batches that come, for which steps are compiled ahead."""

    def summed_batches(self, start: int) -> Iterator[tuple[Batch, jax.Array, Checksums | None]]:
        """Yields (batch, numbers of its examples as halves (B, 2), checksums), on the mesh, for steps after `start`.

        Checksums are those of the batch when it was put there; None for a batch that is not checked.
        """

    def metrics(self) -> dict[str, float]:
        """Returns counts that go into the metrics."""


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Something that is done with the state every so often.

    Attributes:
        call: Function of the state. What it returns goes to the metrics: images, or numbers by name.
        every: In steps; 0 for never.
        at_end: Whether it is done after the last step as well.
    """

    call: Callable[[TrainState], Mapping[str, Any]]
    every: int = 0
    at_end: bool = False

    def due(self, step: int, ended: bool) -> bool:
        """Whether it is done after this step. ended: whether that is the last one."""
        return bool(self.at_end and ended or self.every and step % self.every == 0)


@dataclasses.dataclass(frozen=True)
class End:
    """How training ended.

    Attributes:
        state: The state that was reached.
        step: Its step.
        seconds: Where the time since the first start went, by the names in ledger.KINDS.
        saved: Whether `step` has a complete checkpoint.
        failures: What could not be written.
        stopped: Who asked for an end before the last step, or None.
    """

    state: TrainState
    step: int
    seconds: Mapping[str, float]
    saved: bool = True
    failures: Sequence[str] = ()
    stopped: str | None = None


def latest_state(
    trainer: Trainer,
    manager: checkpoints.Manager,
    first: Callable[[], TrainState],
    local: LocalCheckpoints | None = None,
) -> tuple[TrainState, dict]:
    """Returns the state to go on from and the record of its checkpoint, or `first()` and {} where there is none.

    That is the newest good one of both tiers, the workdir's and the local one. Damaged ones of the workdir, which the
    log names, are set aside once there is a state to go on from.

    Raises:
        DamagedCheckpoints: If the workdir has checkpoints, all are damaged, and there is no local one to go on from.
            Then all stay where they are.
    """
    all_damaged: checkpoints.DamagedCheckpoints | None = None
    try:
        saved, wrong = checkpoints.latest_good(manager)
    except checkpoints.DamagedCheckpoints as error:
        saved, wrong, all_damaged = None, error.wrong, error
    found = None
    if local is not None:
        after, known = None if all_damaged else saved or 0, max([saved or 0, *wrong])
        found = local.restore(trainer.abstract, after, known, checkpoints.agreed(damaged.steps(manager.directory)))
    if all_damaged and found is None:
        none = "" if local is None else ", nor is there a local checkpoint to go on from"
        raise checkpoints.DamagedCheckpoints(f"{all_damaged}{none}", wrong)
    damaged.set_aside(manager, wrong)
    if found is not None:
        return found
    if saved is None:
        return first(), {}
    return checkpoints.restore(manager, trainer.abstract, saved), checkpoints.read_record(manager, saved)


def lost(steps: int) -> str:
    """What is lost of a run that ends so many steps after its last checkpoint."""
    return f"{steps} step{'s' if steps > 1 else ''} since the last checkpoint are lost" if steps else ""


def train(
    trainer: Trainer,
    settings: TrainingSettings,
    checkpoint: CheckpointSettings,
    workdir: epath.Path,
    pipeline: InputPipeline,
    first: Callable[[], TrainState],
    *,
    record: Mapping[str, Any] = {},
    pictures: Periodic | None = None,
    figures: Periodic | None = None,
    snapshots: Snapshots | None = None,
    local: LocalCheckpoints | None = None,
    stop: Stop | None = None,
    goodput: Goodput | None = None,
    profile: tuple[int, int] | None = None,
) -> End:
    """Trains from the workdir's latest good checkpoint, or from `first()`, to the last step or until asked to stop.

    Args:
        trainer: The compiled step.
        settings: Number of steps, and how often metrics are written.
        checkpoint: How often checkpoints are written, and which stay.
        workdir: Where all of it goes.
        pipeline: The batches.
        first: Makes the state where there is no checkpoint.
        record: What checkpoints say of the run, JSON.
        pictures: Images by name, which go to samples/ and TensorBoard.
        figures: Numbers by name, which go to the metrics.
        snapshots: Where power-function EMAs are stored, or None; closed at the end.
        local: The second tier of checkpoints, or None.
        stop: Who asks for an end; signals do only within its context.
        goodput: Account of this start's time; None for one that begins now.
        profile: First and last step of a trace.

    Raises:
        TooManyNonFinite: If too many updates in a row were left out.
        DamagedCheckpoints: If there are checkpoints, but none of either tier can be used.
        UnknownFormat: If the latest checkpoint was written by a later version.
        Corrupted: If a device was seen to compute or remember wrongly; called again, it goes on from the last
            checkpoint, which is from before (`corruption.sound` does).
        Excluded: Likewise, where `settings.on_corruption` says so.
    """
    stop = stop or Stop()
    manager = checkpoints.open_manager(workdir, checkpoint.keep, keep_every=checkpoint.keep_every)
    goodput = goodput or Goodput()
    if goodput.carried is not None:  # called again, see Corrupted
        goodput.go_back()
    with goodput.doing("restore") as restoring:
        state, saved = latest_state(trainer, manager, first, local)
        start = int(state.step)
        restoring.kind = "restore" if saved else "start"
    goodput.carried, goodput.done = saved.get("productive_seconds", 0.0), start >= settings.steps
    if goodput.done:
        manager.close()
        return End(state, start, goodput.seconds())
    if start and jax.process_index() == 0:
        print(f"going on from step {start} of {settings.steps}", flush=True)
    elsewhere = trainer.elsewhere if settings.recompute_elsewhere else None
    with goodput.doing("compile"):
        trainer.compile(pipeline.shapes)
        if elsewhere is not None:
            elsewhere.compile([sharding.abstract_on(elsewhere.mesh, batch) for batch in pipeline.shapes])
    if elsewhere is None and settings.recompute_elsewhere:
        logging.warning(
            "training.recompute_elsewhere is True, and there are no other devices in a process that could do the same: "
            "steps are made twice where they are made"
        )
    with goodput.doing("restore"):
        jax.block_until_ready(trainer.frozen_params)  # read now, not within the first step
    agreement = Agreement(trainer.mesh)

    with contextlib.ExitStack() as stack:
        saver = stack.enter_context(contextlib.closing(checkpoints.Saver(manager)))
        cadence, lead = Cadence(checkpoint, saver), jax.process_index() == 0
        tier = Tier(local, checkpoint)
        stack.callback(tier.wait)
        if snapshots is not None:
            stack.enter_context(contextlib.closing(snapshots))
        batches = pipeline.summed_batches(start)
        guard = Guard(workdir, trainer, settings, start, elsewhere)
        monitor = stack.enter_context(
            Monitor(
                workdir,
                settings,
                trainer.mesh,
                start,
                goodput,
                record,
                profile,
                lambda: pipeline.metrics() | cadence.metrics() | tier.metrics(),
            )
        )
        stack.enter_context(stop.held())
        stack.callback(setattr, stop, "lost", stop.lost)

        def written() -> None:
            saver.wait()
            tier.wait()

        stop.before, step = written, start
        stop.lost = lambda: lost(step - max(start, saver.saved or 0, tier.saved))

        def failures() -> list[str]:
            return [*(snapshots.failures if snapshots else ()), *tier.failures, *saver.failures]

        stack.enter_context(peers.watched())  # the last: what was entered before would wait for the lost one
        unsaved = False  # whether a checkpoint is due that has not been written
        for step in range(start + 1, settings.steps + 1):
            with monitor.waiting_for_data():
                batch, index, sent = next(batches)
            monitor.before(step)
            state, metrics, per_example = guard.step(step, state, batch)
            monitor.launched(Launched(step, metrics, per_example, index), len(batch["x"]), trainer.flops(batch))

            said = agreement(stop.asked is not None, cadence.wish(step) and lead, *tier.flags(step))
            stopped, wished, wished_locally, writing = said
            ended, unsaved = step == settings.steps, unsaved or wished or cadence.planned(step)
            due = [task for task in (pictures, figures) if task is not None and task.due(step, ended)]
            storing = snapshots if snapshots is not None and snapshots.due(step) else None
            saving = unsaved or due or ended or stopped
            locally = tier.due(step, wished_locally, writing) and not (ended or stopped)
            guard.check(step, state, batch, sent, due=bool(saving or storing or locally))
            if not (saving or storing or locally):
                continue
            monitor.finish()
            guard.settle()  # so that nothing is saved that replicas do not agree on
            with monitor.paused(), cadence.paused(), tier.paused():
                if storing:
                    storing.save(step, state)  # before any checkpoint from which a run would go on without it
                if locally and monitor.finite:
                    tier.save(step, state, saver.saved, goodput.productive)
                if not saving:
                    continue
                if ended and not monitor.finite:
                    logging.warning(
                        "the last %d updates were left out: the last checkpoint has what was there before them",
                        monitor.nonfinite.streak,
                    )
                if ended or monitor.finite:  # while updates are left out, the last good checkpoint stays
                    with cadence.saving():
                        saver.save(step, state, {**record, "productive_seconds": goodput.productive})
                    unsaved = False
                if stopped and not ended:
                    saver.wait()
                    by = stop.asked or "a signal to another process"
                    return End(state, step, goodput.seconds(), saver.saved == step, failures(), by)
                for task in due:
                    with stop.released(), goodput.doing("evaluate"):  # the state is saved, so a stop may break it off
                        monitor.writer.write(step, task.call(state))
        with goodput.doing("save"):
            saver.wait()
        goodput.done = saver.saved == step
        if local is not None and goodput.done:
            local.clear()
        return End(state, step, goodput.seconds(), saver.saved == step, failures())
