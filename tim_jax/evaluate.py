"""python -m tim_jax.evaluate --workdir=DIR --steps=1,2,4,8,16,32,64 [--seeds=3]"""

import argparse
import time

import jax
from etils import epath

from tim_jax import cluster, workdir
from tim_jax import config as configuration
from tim_jax.command_line import Parser, user_errors, whole_numbers
from tim_jax.evaluation import FEATURES, anystep, pictures
from tim_jax.feed import images_of_one_shape
from tim_jax.generate import Generator, cycle_labels, load_weights
from tim_jax.grid import with_found_grid
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampler import evaluations


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.evaluate", description="The any-step table of a trained run.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8,16,32,64", help="step counts, such as 1,4,32")
    parser.add_argument("--seeds", type=int, default=3, help="how many noises, for mean and spread")
    args, overrides = parser.parse(argv)
    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    measure(args, overrides)


@Stop()
def measure(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        steps = whole_numbers("steps", args.steps, least=1)
        if args.seeds < 1:
            raise ValueError(f"--seeds is {args.seeds}; it must be at least 1")
        folder = epath.Path(args.workdir)
        run = configuration.build(workdir.load(folder, overrides))
        training, held_out = run.config.data.split, run.config.evaluation.held_out
        (reference, _), (held_out, _) = (images_of_one_shape(run, split) for split in (training, held_out))
        count = run.config.evaluation.samples or len(reference)
        weights, training_step = load_weights(run, folder)
        run = with_found_grid(run, folder, training_step)
        nfe = {count: evaluations(run.transport, count, run.sampling) for count in steps}

    generator = Generator(run, min(count, run.config.evaluation.batch_size))
    labels = cycle_labels(run.config.model.num_classes, count)
    for most in {min(64, max(steps)), max(steps)}:  # compilation is not the sampler's time
        generator(weights, most, 0, labels[: generator.batch_size])
    first = {}

    def sample(steps: int, seed: int, count: int):
        began = time.perf_counter()
        images = generator(weights, steps, seed, labels)
        seconds = time.perf_counter() - began
        first.setdefault(steps, images[:20])
        return images, seconds

    began = time.perf_counter()

    def progress(done: int, total: int, line: str) -> None:
        # Later entries take more steps, so the time left is told in network evaluations.
        spent = time.perf_counter() - began
        if jax.process_index() == 0:
            print(f"[{done}/{total}, {spent:.0f} s] {line}", flush=True)

    table = anystep.any_step_table(
        sample,
        steps,
        list(range(args.seeds)),
        count,
        reference,
        held_out,
        FEATURES[run.config.evaluation.features],
        nfe=nfe.get,
        progress=progress,
    )
    table["step"] = training_step
    images = generator(weights, max(steps), 0, labels[:24])
    if jax.process_index() > 0:
        return
    anystep.write(table, folder)
    pictures.any_step_grid(first, path=folder / "any_step_samples.png")
    pictures.neighbours_picture(images, reference, path=folder / "nearest.png")
    print(anystep.to_markdown(table))
    print("written: " + ", ".join(str(folder / name) for name in (
        "any_step.json", "any_step.md", "any_step.png", "any_step_samples.png", "nearest.png")))  # fmt: skip


if __name__ == "__main__":
    main()
