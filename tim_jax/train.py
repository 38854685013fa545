"""python -m tim_jax.train --config=configs/digits.py --workdir=DIR [--config.training.steps=…] [--check]"""

import time

import jax
import numpy as np
from etils import epath

from tim_jax import config as configuration
from tim_jax import config_keys, data, workdir
from tim_jax.command_line import Parser, load_config, user_errors
from tim_jax.evaluation import pictures
from tim_jax.generate import Generator, cycle_labels
from tim_jax.start import first_state
from tim_jax.training import sharding
from tim_jax.training.loop import train


def check(run: configuration.Run) -> None:
    """One real step of the configuration on its mesh, on made-up rows."""
    rows = run.batch_size // jax.process_count()
    batch = sharding.put_batch(run.mesh, configuration.made_up_batch(run.config, rows))
    began = time.perf_counter()
    state = run.trainer.create()
    state, metrics = run.trainer(state, batch)
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(", ".join(f"{name} {value:.5g}" for name, value in values.items()))
    print(f"one step of {run.batch_size} rows, {count:,} parameters, in {time.perf_counter() - began:.1f} s")
    if not all(np.isfinite(value) for value in values.values()):
        raise SystemExit("the first step is not finite")


def open_data(run: configuration.Run, split: str) -> data.Source:
    """The configured source. Raises ValueError if its rows are not what the configuration says."""
    settings = run.config.data
    directory = run.config.loader.directory or "~/.cache/tim_jax"
    source = data.open_source(settings.source, directory, split)
    if run.config.model.condition != "class":
        raise ValueError(f"model.condition is {run.config.model.condition!r}; {settings.source} has classes, no text")
    if source.image_shape != run.image_shape:
        raise ValueError(
            f"data.height, width, channels are {run.image_shape}; those of {settings.source} are {source.image_shape}"
        )
    if run.config.model.condition == "class" and source.num_classes > run.config.model.num_classes:
        raise ValueError(
            f"model.num_classes is {run.config.model.num_classes}; {settings.source} has labels up to "
            f"{source.num_classes - 1}, so it must be at least {source.num_classes}"
        )
    return source


def sample_pictures(run: configuration.Run):
    """state → {"samples": a grid, one row per step count}, of the weights that sampling uses."""
    generator = Generator(run, batch_size=20)
    labels = cycle_labels(run.config.model.num_classes, 20)

    def draw(state):
        weights = run.weights(state)
        images = {steps: generator(weights, steps, 0, labels) for steps in run.config.training.sample_steps}
        return {"samples": pictures.any_step_grid(images)}

    return draw


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.train", description="Trains a transition model.")
    parser.add_argument("--config", required=True, help="a configuration, such as configs/digits.py")
    parser.add_argument("--workdir", help="the run's folder; started again in it, a run goes on")
    parser.add_argument("--check", action="store_true", help="one step on made-up rows, nothing written")
    args, overrides = parser.parse(argv)
    with user_errors():
        if not args.workdir and not args.check:
            raise ValueError("--workdir: missing; it names the folder that the run writes to")
        run = configuration.build(load_config(args.config, overrides))
        if args.check:
            return check(run)
        folder = epath.Path(args.workdir)
        before = workdir.recorded(folder)
        if before is not None:
            config_keys.compare_identity(before, run.config, folder)
        for steps in run.config.training.sample_steps:
            if steps < 1:
                raise ValueError(f"training.sample_steps has {steps}; each must be at least 1")
        source = open_data(run, "train")
        first = first_state(run, folder)

    record = workdir.record_start(folder, run.config)
    loader = run.config.loader
    batches = data.global_batches(source, run.batch_size, run.config.seed, jax.process_index(), jax.process_count())
    train(
        run.trainer,
        run.loop,
        folder,
        lambda step: (
            {name: batch[name] for name in ("x", "label")}
            for batch in data.iterate(batches, step, threads=loader.threads, prefetch=loader.prefetch)
        ),
        record,
        first,
        sample_pictures(run) if run.image_shape[-1] in (1, 3) else None,
    )
    print(f"trained to step {run.loop.steps}; metrics, checkpoints and samples are in {folder}")


if __name__ == "__main__":
    main()
