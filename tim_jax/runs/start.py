"""What a run starts from: its own checkpoint, the named one, other weights, or scratch, in this order."""

import shlex
import sys
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from tim_jax import data
from tim_jax.config import identity
from tim_jax.config.run import Run
from tim_jax.runs import teachers
from tim_jax.runs.schedule import warn_of_schedule
from tim_jax.runs.workdir import compare_classes, restored, to_json
from tim_jax.system import files
from tim_jax.training import names, snapshots, warm_start
from tim_jax.training.checkpoints import DamagedCheckpoints
from tim_jax.training.state import TrainState


def check_classes(run: Run, workdir: epath.Path, source: data.Source) -> None:
    """Raises ValueError if labels no longer mean what they meant to the checkpoint that the run goes on from."""
    compare_classes(workdir, run, source.class_names)
    if run.checkpoint.resume and warm_start.latest(workdir) is None:
        named = files.absolute(epath.Path(run.checkpoint.resume))  # a workdir, or WORKDIR/checkpoints/STEP
        compare_classes(named if (named / "checkpoints").exists() else named.parent.parent, run, source.class_names)


def first_state(run: Run, workdir: epath.Path) -> Callable[[], TrainState]:
    """Prepares the state that the run starts from where its workdir has no checkpoint.

    All that can be wrong is found here, before anything is read or compiled.

    Args:
        run: with its teachers.
        workdir: its folder.

    Returns:
        A function that makes the state.

    Raises:
        ValueError: naming the key.
    """
    config, trainer = run.config, run.trainer
    if warm_start.latest(workdir) is not None:
        if trainer.frozen and (latest := warm_start.latest_record(workdir)):
            saved, recorded = latest
            teachers.check_same(run, recorded, saved)
        return trainer.create  # never called
    if config.checkpoint.resume:
        saved = warm_start.find(config.checkpoint.resume, "checkpoint.resume")
        recorded = warm_start.record(saved)
        before = to_json(restored(recorded["config"], saved.directory.parent))
        identity.compare(before, config, saved)
        warn_of_schedule(run, before)
        teachers.check_same(run, recorded, saved)
        return _announced(f"goes on from {saved}", lambda: _resumed(run, saved, workdir))
    if not config.start.checkpoint:
        return trainer.create

    weights, ema = config.start.checkpoint, config.start.ema
    saved = warm_start.find(weights, "start.checkpoint")
    there = warm_start.find_weights(saved, ema, "start.ema")
    abstract = names.by_name(trainer.abstract_online)
    here = {name: leaf.shape for name, leaf in abstract.items()}
    names.check_patterns("start.reinitialise", config.start.reinitialise, here.keys() | there.keys())
    try:
        taken = warm_start.common(here, there, config.start.reinitialise)
    except ValueError as error:
        raise ValueError(f"start.checkpoint is {weights!r}; it must fit this run: {error}") from None
    if not taken:
        raise ValueError(
            f"start.reinitialise is {config.start.reinitialise}; it must leave something to take from "
            f"start.checkpoint, {weights!r}"
        )

    here_for, there_for = config.transport.prediction, of_run(saved).transport.prediction
    if here_for != there_for and any(name.startswith("final/") for name in taken):
        raise ValueError(
            f"start.checkpoint is {weights!r}; it must have this run's transport.prediction, {here_for!r}, and has "
            f"{there_for!r}, unless start.reinitialise has 'final'"
        )
    name_here, name_there = config.transport.name, of_run(saved).transport.name
    if name_here != name_there:
        said = (
            f"warning: start.checkpoint is {weights!r}, of transport.name {name_there!r}, and here it is {name_here!r}"
        )
        print(f"{said}: what its network predicts has another meaning here", file=sys.stderr, flush=True)

    def make() -> TrainState:
        values = warm_start.read_weights(saved, ema, {name: abstract[name] for name in taken})
        return warm_start.replace_weights(trainer.create(), values, trainer.of_heads)

    return _announced(f"starts with {len(taken)} of {len(here)} parameters from {saved}, {ema}", make)


def of_run(saved: warm_start.Saved) -> ConfigDict:
    """The configuration of a checkpoint's run."""
    return restored(warm_start.record(saved)["config"], saved.directory.parent)


def _resumed(run: Run, saved: warm_start.Saved, workdir: epath.Path) -> TrainState:
    """The whole state of another workdir's checkpoint, whose snapshots of EMAs are copied into this one."""
    state = warm_start.resume(saved, run.trainer.abstract)
    if run.posthoc_ema.sigma_rel:
        snapshots.copy(saved.directory.parent, saved.step, workdir)
    return state


def finished(run: Run, workdir: epath.Path) -> str | None:
    """Returns the line to end with where a run has been trained to its last step, else None.

    Raises:
        ValueError: if it has checkpoints that are all damaged, and there are no others on this host to go on from.
    """
    latest = warm_start.latest(workdir)
    if latest is None or latest.step < run.training.steps:
        return None
    try:
        step = warm_start.find(str(workdir), "--workdir").step  # the latest that is not damaged
    except DamagedCheckpoints:
        if run.checkpoint.local:
            return None
        raise
    if step < run.training.steps:
        return None
    more = [f"--config.training.steps={2 * step}"]
    if run.config.optimizer.schedule != "constant":  # else the learning rate stays at its end
        more.append(f"--config.optimizer.decay_steps={2 * step}")
    command = f"tim-jax train {shlex.join([f'--workdir={workdir}', *more])}"
    return f"{workdir} is trained to its last step, {step}; {command} goes on"


def _announced(line: str, make: Callable[[], TrainState]) -> Callable[[], TrainState]:
    """The function, which prints a line before it does its work."""

    def announce() -> TrainState:
        if jax.process_index() == 0:
            print(line, flush=True)
        return make()

    return announce
