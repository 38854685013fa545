"""python -m tim_jax.train --config=configs/digits.py --workdir=DIR [--config.training.steps=…] [--check]"""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from tim_jax import cluster, compilation_cache, config_keys, data, files, lock, measure, teachers, workdir
from tim_jax import config as configuration
from tim_jax.command_line import Parser, failures, load_config, user_errors
from tim_jax.data import inspect
from tim_jax.evaluation import pictures
from tim_jax.exit_codes import DONE, FAILED, RESTART
from tim_jax.feed import Feed, open_feed
from tim_jax.generate import cycle_labels, open_generator, prompts_of
from tim_jax.start import first_state
from tim_jax.teachers import with_teachers
from tim_jax.training import sharding
from tim_jax.training.checkpoints import DamagedCheckpoints
from tim_jax.training.loop import End, train
from tim_jax.training.nonfinite import TooManyNonFinite
from tim_jax.training.preemption import Stop, leave
from tim_jax.training.state import TrainState

COLUMNS = 20  # images of a row in the pictures of samples


def check(run: configuration.Run) -> None:
    """One real step of the configuration on its mesh, on made-up rows."""
    rows = run.data.rows(run.image_shape[:2])
    here = rows * len(sharding.shards_here(run.mesh)) // sharding.batch_shards(run.mesh)
    batch = configuration.made_up_batch(run.config, here)
    began = time.perf_counter()
    state = run.trainer.create()
    state, metrics = run.trainer(state, sharding.put_batch(run.mesh, batch))
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(", ".join(f"{name} {value:.5g}" for name, value in values.items()))
    print(f"one step of {rows} rows, {count:,} parameters, in {time.perf_counter() - began:.1f} s")
    if not all(np.isfinite(value) for value in values.values()):
        raise SystemExit("the first step is not finite")


def picture_sizes(run: configuration.Run, plan: data.Plan, most: int = 5) -> list[tuple[int, int]]:
    """Sizes (h, w) that rows are drawn in: of the buckets, the tallest, the widest and some between."""
    shapes = sorted((bucket.shape for bucket in plan.buckets), key=lambda shape: shape[0] / shape[1])
    if len(shapes) == 1:
        return [run.image_shape[:2]]
    chosen = sorted({round(i) for i in np.linspace(0, len(shapes) - 1, most)})
    return [tuple(side // run.data.factor for side in shapes[i]) for i in chosen]


def sample_pictures(run: configuration.Run, feed: Feed):
    """state → {"samples": a grid, one row per step count}, of the weights that sampling uses."""
    sizes = picture_sizes(run, feed.plan)
    each = COLUMNS // len(sizes) if len(sizes) == 1 else 3
    generator, count = open_generator(run, each), each * len(sizes)
    generator.load()
    by_class = run.config.model.condition == "class"
    asked = cycle_labels(run.config.model.num_classes, count) if by_class else prompts_of(feed.source, count)

    def draw(state):
        weights = run.weights(state)
        images = {
            steps: [
                image
                for i, size in enumerate(sizes)
                for image in generator.decode(generator(weights, steps, 0, asked[i * each : (i + 1) * each], size))
            ]
            for steps in run.config.training.sample_steps
        }
        return {"samples": pictures.any_step_grid(images)}

    return draw


def can_draw(run: configuration.Run) -> bool:
    """Whether pictures of samples can be made: of rows that are or become images, and prompts that are read here."""
    return run.shows_images and (run.config.model.condition == "class" or bool(run.codecs.text_encoder))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.train", description="Trains a transition model.")
    parser.add_argument("--config", required=True, help="a configuration, such as configs/digits.py")
    parser.add_argument("--workdir", help="the run's folder; started again in it, a run goes on")
    parser.add_argument("--check", action="store_true", help="one step on made-up rows, nothing written")
    parser.add_argument("--profile", default="", help="first and last step of a trace for XProf, such as 100:105")
    args, overrides = parser.parse(argv)
    with user_errors():
        profile = read_profile(args.profile)
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop() as stop, contextlib.ExitStack() as stack:
        with user_errors():
            if not args.workdir and not args.check:
                raise ValueError("--workdir: missing; it names the folder that the run writes to")
            run = configuration.build(load_config(args.config, overrides))
            kept = compilation_cache.use(run.config.training.compilation_cache)
            if args.check:
                return check(with_teachers(run))
            folder = epath.Path(args.workdir)
            if profile and not files.is_local(folder):
                raise ValueError(f"--profile is {args.profile}; traces need a local disk, and --workdir is {folder}")
            before = workdir.recorded(folder)
            if before is not None:
                config_keys.compare_identity(before, run.config, folder)
            run = with_teachers(run)
            for steps in run.config.training.sample_steps:
                if steps < 1:
                    raise ValueError(f"training.sample_steps has {steps}; each must be at least 1")
            measurement = measure.plan(run) if run.evaluation.every else None
            if measurement is not None:
                measure.count_of(measurement)
            if run.sampling.grid == "optimal":
                raise ValueError("sampling.grid is 'optimal', which is found once a run is trained; train with another")
            first = first_state(run, folder)
            feed = open_feed(run)
            draw = sample_pictures(run, feed) if can_draw(run) else None
            stack.enter_context(lock.locked(folder, jax.process_index() == 0, jax.process_count()))
        if jax.process_index() == 0:
            print(kept, flush=True)
        end = fit(run, feed, folder, first, stop, profile, measurement, draw)
    if jax.process_index() == 0:
        print(last_line(end, folder), flush=True)
    code = RESTART if end.stopped else DONE if end.saved else FAILED
    if end.failures and jax.process_count() == 1:
        leave(code)  # at once: what is left of failed writes complains at length, and not after the last line
    if code != DONE:
        raise SystemExit(code)


def read_profile(text: str) -> tuple[int, int] | None:
    """(first, last) step; None for an empty text. Raises ValueError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile is {text!r}; it must be the first and the last step, such as 100:105")
    return int(first), int(last)


def fit(
    run: configuration.Run,
    feed: Feed,
    folder: epath.Path,
    first: Callable[[], TrainState],
    stop: Stop,
    profile: tuple[int, int] | None = None,
    measurement: measure.Measurement | None = None,
    draw: Callable[[TrainState], dict] | None = None,
) -> End:
    """Trains in a workdir, from `first` if it has no checkpoint. draw: see `sample_pictures`.

    Ends the program with one line if too many records are bad or training cannot go on.
    """
    record = workdir.record_start(folder, run.config, teachers.record(run))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the start is recorded")
    account = data.Account(folder, jax.process_index(), run.data.max_bad_share, cluster.summed)
    feed = dataclasses.replace(feed, account=account)
    if jax.process_index() == 0:
        print(inspect.summary(feed.source, feed.plan), flush=True)
    with user_errors(data.TooManyBadRecords), failures(TooManyNonFinite, DamagedCheckpoints):
        first_start = workdir.first_start(folder)
        figures = measure.while_training(run, measurement) if measurement else None
        return train(run.trainer, run.loop, folder, feed, record, first, draw, stop, first_start, profile, figures)


def last_line(end: End, folder: epath.Path) -> str:
    """What a run says at its end."""
    if end.stopped:
        saved = "which is saved" if end.saved else "which is not saved"
        line = f"stopped by {end.stopped} at step {end.step}, {saved}: start it again with the same command"
    else:
        line = f"trained to step {end.step}; metrics, checkpoints and samples are in {folder}"
    return "; ".join([line, f"goodput {end.goodput:.1%}", *end.failures[-1:]])


if __name__ == "__main__":
    main()
