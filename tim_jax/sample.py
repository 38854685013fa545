"""python -m tim_jax.sample --workdir=DIR --steps=1,4,32 [--labels=… --guidance=… --seed=… --out=…]

From images in place of noise: --from=FILE,… --labels=… with --start=TIME noises them to that time and samples down from
there; without, they are brought to noise and back. --interpolate=N draws N images on the way between neighbours.
"""

import argparse
import io
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax import cluster, compilation_cache, files, workdir
from tim_jax import config as configuration
from tim_jax.command_line import Parser, user_errors, whole_numbers
from tim_jax.data.decode import decode, pixels
from tim_jax.data.faults import BadRecord
from tim_jax.evaluation import pictures
from tim_jax.generate import Generator, cycle_labels, load_weights, mixture
from tim_jax.grid import with_found_grid
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampler import between, make_plan, time_grid


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
    """(height, width): the configuration's where the text is empty.

    Raises ValueError if the patches do not divide it, or the devices that share tokens the patches.
    """
    if not text:
        return run.image_shape[:2]
    patch = run.config.model.patch_size
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size is {text!r}; it must be height x width, such as 64x48") from None
    if min(height, width) < 1 or height % patch or width % patch:
        raise ValueError(f"--size is {text!r}; height and width must be positive multiples of the patch size, {patch}")
    configuration.check_tokens("--size is", (height, width), patch, run.mesh)
    return height, width


def read_images(text: str, run: configuration.Run) -> np.ndarray:
    """Images (n, h, w, C) in [−1, 1] from files in the formats of data sets, as they are.

    Raises ValueError for what is no image, and for sizes that differ or that the network's patches do not divide.
    """
    channels, images = run.image_shape[-1], []
    if channels not in (1, 3):
        raise ValueError(f"--from is {text}; this run's rows have {channels} channels: they are not images")
    for name in text.split(","):
        try:
            image = pixels(decode(epath.Path(name).read_bytes(), channels))
        except (OSError, BadRecord) as error:
            raise ValueError(f"--from has {name!r}, which cannot be read as an image: {error}") from None
        height, width, _ = image.shape
        patch = run.config.model.patch_size
        if height % patch or width % patch:
            raise ValueError(f"--from has {name}, {height}x{width}; the patch size, {patch}, must divide both")
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"--from has {name}, {height}x{width}, but the first is {'x'.join(map(str, images[0].shape[:2]))}"
            )
        images.append(image)
    return np.stack(images).astype(np.float32) / 127.5 - 1


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.sample", description="Samples from a trained run at several step counts.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8", help="step counts, such as 1,4,32")
    parser.add_argument("--labels", default="", help="labels, such as 0,1,2; default: every class in turn")
    parser.add_argument("--count", type=int, default=40, help="images per step count where no labels are given")
    parser.add_argument("--size", default="", help="height x width, such as 64x48; default: the configuration's")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 for none; default: the configuration's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--from", dest="images", help="image files to start from, such as a.png,b.png, not noise")
    parser.add_argument("--start", type=float, help="time that those are noised to; default: the sampler's way up")
    parser.add_argument("--interpolate", type=int, help="images on the way from each to the next")
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
        check_arguments(args)
        if args.guidance is not None:
            overrides["sampling.guidance"] = str(args.guidance)
        folder = epath.Path(args.workdir)
        run = configuration.build(workdir.load(folder, overrides))
        compilation_cache.use(run.config.training.compilation_cache)
        labels = read_labels(args.labels, args.count, run.config.model.num_classes)
        given = read_images(args.images, run) if args.images else None
        size = read_size(args.size, run) if given is None else given.shape[1:3]
        if given is not None and len(labels) != len(given):
            raise ValueError(
                f"--labels has {len(labels)} labels; --from has {len(given)} images and needs one for each"
            )
        if args.interpolate and len(labels) < 2:
            raise ValueError(f"--interpolate is {args.interpolate}; it needs two images, and --labels has one")
        weights, step = load_weights(run, folder)
        run = with_found_grid(run, folder, step)
        if args.start is not None and not run.transport.T_min < args.start <= run.transport.T_max:
            ends = f"above {run.transport.T_min:g} and at most {run.transport.T_max:g}"
            raise ValueError(f"--start is {args.start}; it must be {ends} for {run.transport.name}")
        for count in steps:  # what cannot be is told before anything is compiled
            times = time_grid(run.transport, count, run.sampling, args.start)
            make_plan(run.transport, times if given is None or args.start else times[::-1], run.sampling)

    generator = Generator(run, min(len(labels), run.config.evaluation.batch_size))
    wanted = labels
    if args.interpolate:
        wanted = np.concatenate([nearer(*pair, args.interpolate) for pair in zip(labels, labels[1:])])
    images, arrays = {}, {}
    for count in steps:
        times = generator.times(count, args.start)
        x = start(generator, weights, times, labels, size, given, args)
        images[count] = arrays[f"steps{count}"] = generator.along(weights, times, wanted, args.seed, x, size)
        if given is not None:
            arrays[f"start{count}"] = x
    if jax.process_index() > 0:
        return
    out = epath.Path(args.out) if args.out else folder / "sampled"
    out.mkdir(parents=True, exist_ok=True)
    name = file_name(run, step, size, args)
    npz = io.BytesIO()
    np.savez(npz, labels=wanted, **arrays)
    files.replace(out / f"{name}.npz", npz.getvalue())
    settings = {"step": step, "size": size, "steps": steps, "sampling": dict(run.config.sampling)}
    settings |= {"seed": args.seed, "from": args.images, "start": args.start, "interpolate": args.interpolate}
    (out / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")
    written = [f"{name}.npz", f"{name}.json"]
    if run.image_shape[-1] in (1, 3):
        columns = args.interpolate or min(10, len(wanted))
        for count, array in images.items():
            pictures.grid(array, columns=columns, path=out / f"{name}_steps{count}.png")
            written.append(f"{name}_steps{count}.png")
        pictures.any_step_grid({count: array[:columns] for count, array in images.items()}, path=out / f"{name}.png")
        written.append(f"{name}.png")
    print(f"{len(wanted)} images at each of {args.steps} steps, from training step {step}, in {out}:")
    if given is not None and args.start is None and not args.interpolate:
        for count, array in images.items():
            off = np.sqrt(np.mean((array - given) ** 2))
            print(f"  to noise and back in {count} + {count} steps: {off:.3g} off (RMS)")
    print("\n".join(f"  {file}" for file in written))


def start(
    generator: Generator,
    weights: Any,
    times: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    given: np.ndarray | None,
    args: argparse.Namespace,
) -> np.ndarray | None:
    """The states (n, h, w, C) that sampling along `times` starts from; None: noise of --seed.

    given: (len(labels), h, w, C) images, or None. With --interpolate there are so many for each two neighbours.
    """
    if args.start is not None:
        return generator.noised(given, args.start, args.seed)
    if given is not None:
        x = generator.along(weights, times[::-1], labels, args.seed, given)
    elif args.interpolate:
        x = mixture(generator.run, times[0])[1] * generator.noise(args.seed, len(labels), size)
    if not args.interpolate:
        return None if given is None else x
    u = np.linspace(0, 1, args.interpolate)
    return np.concatenate([between(*pair, u) for pair in zip(x, x[1:])])


def file_name(run: configuration.Run, step: int, size: tuple[int, int], args: argparse.Namespace) -> str:
    """What files of these samples are called, so that those of other settings stay beside them."""
    settings = [f"step{step}", f"{size[0]}x{size[1]}", run.sampling.sampler, run.sampling.grid, f"seed{args.seed}"]
    settings.append(f"guidance{run.sampling.guidance:g}")
    if args.images:
        settings.append("inverted" if args.start is None else f"start{args.start:g}")
    if args.interpolate:
        settings.append(f"interpolate{args.interpolate}")
    return "_".join(settings)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that cannot be, whatever the run."""
    if args.count < 1:
        raise ValueError(f"--count is {args.count}; it must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; it must be at least 0")
    if args.interpolate is not None and args.interpolate < 2:
        raise ValueError(f"--interpolate is {args.interpolate}; it must be at least 2")
    if args.start is not None and not args.images:
        raise ValueError(f"--start is {args.start}; it needs images, --from=FILE")
    if args.start is not None and args.interpolate:
        raise ValueError(f"--start is {args.start} and --interpolate is {args.interpolate}; give one of them")
    if args.images and not args.labels:
        raise ValueError(f"--from is {args.images}; it needs --labels, one for each image")
    if args.images and args.size:
        raise ValueError(f"--size is {args.size}; with --from the size is that of the images")


def nearer(first: int, second: int, count: int) -> np.ndarray:
    """(count,) labels on the way from one image to another: the nearer one's."""
    return np.where(np.arange(count) < count / 2, first, second).astype(np.int32)


if __name__ == "__main__":
    main()
