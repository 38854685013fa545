"""python -m tim_jax.sample --workdir=DIR --steps=1,4,32 [--labels=… --guidance=… --seed=… --out=…]"""

import argparse
import io
import json

import jax
import numpy as np
from etils import epath

from tim_jax import cluster, compilation_cache, files, workdir
from tim_jax import config as configuration
from tim_jax.command_line import Parser, user_errors, whole_numbers
from tim_jax.evaluation import pictures
from tim_jax.generate import Generator, cycle_labels, load_weights
from tim_jax.training.preemption import Stop


def read_labels(text: str, count: int, num_classes: int) -> np.ndarray:
    """Labels (n,): every class in turn where the text is empty. Raises ValueError for a label out of range."""
    if not text:
        return cycle_labels(num_classes, count)
    labels = whole_numbers("labels", text, least=0)
    for label in labels:
        if label >= num_classes:
            raise ValueError(f"--labels has {label}; labels of this run lie in 0 … {num_classes - 1}")
    return np.asarray(labels, np.int32)


def read_size(text: str, run: configuration.Run) -> tuple[int, int]:
    """(height, width): the configuration's where the text is empty. Raises ValueError if patches do not divide it."""
    if not text:
        return run.image_shape[:2]
    patch = run.config.model.patch_size
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size is {text!r}; it must be height x width, such as 64x48") from None
    if min(height, width) < 1 or height % patch or width % patch:
        raise ValueError(f"--size is {text!r}; height and width must be positive multiples of the patch size, {patch}")
    return height, width


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.sample", description="Samples from a trained run at several step counts.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8", help="step counts, such as 1,4,32")
    parser.add_argument("--labels", default="", help="labels, such as 0,1,2; default: every class in turn")
    parser.add_argument("--count", type=int, default=40, help="images per step count where no labels are given")
    parser.add_argument("--size", default="", help="height x width, such as 64x48; default: the configuration's")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 for none; default: the configuration's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", help="folder to write to; default: WORKDIR/sampled")
    args, overrides = parser.parse(argv)
    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    draw(args, overrides)


@Stop()
def draw(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        steps = whole_numbers("steps", args.steps, least=1)
        if args.count < 1:
            raise ValueError(f"--count is {args.count}; it must be at least 1")
        if args.seed < 0:
            raise ValueError(f"--seed is {args.seed}; it must be at least 0")
        if args.guidance is not None:
            overrides["sampling.guidance"] = str(args.guidance)
        folder = epath.Path(args.workdir)
        run = configuration.build(workdir.load(folder, overrides))
        compilation_cache.use(run.config.training.compilation_cache)
        size = read_size(args.size, run)
        labels = read_labels(args.labels, args.count, run.config.model.num_classes)
        weights, step = load_weights(run, folder)

    generator = Generator(run, min(len(labels), run.config.evaluation.batch_size))
    images = {count: generator(weights, count, args.seed, labels, size) for count in steps}
    if jax.process_index() > 0:
        return
    out = epath.Path(args.out) if args.out else folder / "sampled"
    out.mkdir(parents=True, exist_ok=True)
    name = f"step{step}_{size[0]}x{size[1]}_seed{args.seed}_guidance{run.sampling.guidance:g}"
    arrays = {f"steps{count}": array for count, array in images.items()}
    npz = io.BytesIO()
    np.savez(npz, labels=labels, **arrays)
    files.replace(out / f"{name}.npz", npz.getvalue())
    settings = {"step": step, "size": size, "seed": args.seed, "steps": steps, "sampling": dict(run.config.sampling)}
    (out / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")
    written = [f"{name}.npz", f"{name}.json"]
    if run.image_shape[-1] in (1, 3):
        for count, array in images.items():
            pictures.grid(array, columns=min(10, len(array)), path=out / f"{name}_steps{count}.png")
            written.append(f"{name}_steps{count}.png")
        pictures.any_step_grid({count: array[:10] for count, array in images.items()}, path=out / f"{name}.png")
        written.append(f"{name}.png")
    print(f"{len(labels)} images at each of {args.steps} steps, from training step {step}, in {out}:")
    print("\n".join(f"  {file}" for file in written))


if __name__ == "__main__":
    main()
