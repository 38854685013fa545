"""python -m tim_jax.evaluate --workdir=DIR --steps=1,2,4,8,16,32,64,128 [--seeds=3 --export=FILE]"""

import argparse
import time

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, failures, user_errors, whole_numbers
from tim_jax.config.run import Run
from tim_jax.evaluation import anystep, pictures, published
from tim_jax.evaluation.settings import MIN_IMAGES
from tim_jax.runs import measuring, reference_data, workdir
from tim_jax.runs.generation import Generator, load_weights
from tim_jax.runs.step_grid import with_found_grid
from tim_jax.system import cluster, compilation_cache
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampling.sampler import evaluations

METRICS_COST = 8  # of a set of samples in network evaluations, roughly, for the time left


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.evaluate", description="The any-step table of a trained run.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8,16,32,64,128", help="step counts, such as 1,4,32")
    parser.add_argument("--seeds", type=int, default=3, help="how many noises, for mean and spread")
    parser.add_argument("--count", type=int, help="samples per step count and seed; default: evaluation.num_samples")
    parser.add_argument("--nearest", type=int, default=24, help="samples shown beside their nearest training image")
    parser.add_argument("--export", help="only write the samples of one step count and of seed 0 to this npz file, "
                        "as published evaluations read them")  # fmt: skip
    args, overrides = parser.parse(argv)
    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    evaluate(args, overrides)


@Stop()
def evaluate(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        steps = whole_numbers("steps", args.steps, least=1)
        if args.seeds < 1:
            raise ValueError(f"--seeds is {args.seeds}; it must be at least 1")
        if args.nearest < 0:
            raise ValueError(f"--nearest is {args.nearest}; it must be at least 0")
        if args.count is not None:
            if args.count < (1 if args.export else MIN_IMAGES):
                raise ValueError(f"--count is {args.count}; it must be at least {1 if args.export else MIN_IMAGES}")
            overrides["evaluation.num_samples"] = str(max(args.count, MIN_IMAGES))
        folder = epath.Path(args.workdir)
        run = build(workdir.load(folder, overrides))
        compilation_cache.use(run.config.training.compilation_cache)
        if args.export:
            check_export(run, args)
        else:
            plan = measuring.plan(run)
            count = measuring.count_of(plan)
        weights, training_step = load_weights(run, folder)
        run = with_found_grid(run, folder, training_step)
        nfe = {number: evaluations(run.transport, number, run.sampling) for number in steps}
        count = args.count or run.evaluation.num_samples if args.export else count
        generator = measuring.generator_of(run, count)
        generator.load()

    if args.export:
        export(generator, weights, steps[0], count, epath.Path(args.export))
    else:
        with failures(ValueError):
            table(plan, generator, weights, training_step, nfe, args, count, folder)


def check_export(run: Run, args: argparse.Namespace) -> None:
    """Raises ValueError if the samples cannot be exported."""
    if "," in args.steps:
        raise ValueError(f"--steps is {args.steps!r}; with --export it must be one step count")
    if not args.export.endswith(".npz"):
        raise ValueError(f"--export is {args.export!r}; it must end with .npz")
    if not (args.count or run.evaluation.num_samples):
        raise ValueError("--count: missing; with --export it says how many samples to write")
    if not run.shows_images:
        raise ValueError(f"--export: data.channels is {run.image_shape[-1]}; only 1 or 3 are images")


def export(generator: Generator, weights, steps: int, count: int, path: epath.Path) -> None:
    """Writes `count` samples and their labels as a published batch."""
    run = generator.run
    asked = measuring.asked_of(run, count)
    began, progress, done = time.perf_counter(), Progress(count), 0

    def levels():
        nonlocal done
        for images in generator.images(weights, generator.times(steps), asked):
            done += len(images)
            progress(done, f"{done} of {count} samples")
            yield pictures.to_uint8(images)

    if jax.process_index() == 0:
        labels = np.zeros(count, np.int32) if isinstance(asked, list) else asked
        published.write_images(path, levels(), (count, *reference_data.picture_shape(run)[:2], 3), labels)
        print(f"{count} samples at {steps} steps in {time.perf_counter() - began:.0f} s: {path}")
    else:
        for _ in levels():
            pass


class Progress:
    """Tells how far the work is, and the time left, which is as the work that is left. Silent but on one process."""

    def __init__(self, work: float):
        self.began, self.work = time.perf_counter(), work

    def __call__(self, done: float, line: str) -> None:
        spent = time.perf_counter() - self.began
        if jax.process_index() == 0:
            left = spent * (self.work / done - 1)
            print(f"[{spent:.0f} s, about {left:.0f} s left] {line}", flush=True)


def table(plan: measuring.Measurement, generator: Generator, weights, training_step: int, nfe, args, count, folder):
    """Measures samples at every step count, and writes table and pictures into the run's folder.

    nfe: {steps: network evaluations}.
    """
    run, steps = plan.run, sorted(nfe)
    work = np.cumsum([nfe[s] + METRICS_COST for s in steps for _ in range(args.seeds)])
    told = Progress(work[-1])

    def progress(done: int, total: int, line: str) -> None:
        told(work[done - 1], f"{done}/{total}: {line}")

    found, shown = measuring.any_step_table(plan, generator, weights, nfe, list(range(args.seeds)), count, progress)
    found |= {"step": training_step}
    written = ["any_step.json", "any_step.md", "any_step.png"]
    near = min(args.nearest, count) if run.shows_images and plan.neighbours else 0
    images = generator.decode(generator(weights, max(steps), 0, measuring.asked_of(run, near))) if near else None
    if jax.process_index() > 0:
        return
    anystep.write(found, folder)
    if run.shows_images:
        pictures.any_step_grid(shown, path=folder / "any_step_samples.png")
        written.append("any_step_samples.png")
    if near:
        pictures.neighbours_picture(images, plan.training(), near, path=folder / "nearest.png")
        written.append("nearest.png")
    print(anystep.to_markdown(found))
    warn(plan, count)
    print("written: " + ", ".join(str(folder / name) for name in written))


def warn(plan: measuring.Measurement, count: int) -> None:
    """Tells where figures are of too few samples for their features."""
    for need, value in plan.yardstick.references[""].summary.items():
        if need[1] == "moments" and count <= np.size(value.mean):
            print(f"note: {count} samples for {np.size(value.mean)} {need[0]}: Fréchet distances are far too high")


if __name__ == "__main__":
    main()
