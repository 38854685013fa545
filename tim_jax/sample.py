"""python -m tim_jax.sample --workdir=DIR --steps=1,4,32 [--labels=… --guidance=… --seed=… --out=…]

Of a run conditioned on text: --prompt="…", or --prompts=FILE (.txt, .jsonl, .json, or a folder of .txt files), with
--per-prompt=N images of each and --layout=geneval, dpg or mjhq for the programs that score them.

From images in place of noise: --from=FILE,… --labels=… with --start=TIME noises them to that time and samples down from
there; without, they are brought to noise and back. --interpolate=N draws N images on the way between neighbours.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, failures, user_errors, whole_numbers
from tim_jax.config.run import Run
from tim_jax.runs import workdir
from tim_jax.runs.encoders import Decoder, Pixels, decoder_of, texts_of
from tim_jax.runs.generation import Generator, load_weights, mixture
from tim_jax.runs.outputs.batches import batch_size, drawn
from tim_jax.runs.outputs.layouts import LAYOUTS
from tim_jax.runs.outputs.prompts import read_prompts
from tim_jax.runs.outputs.requests import Request, by_prompts, read_images, read_labels, read_size
from tim_jax.runs.outputs.writer import Output
from tim_jax.runs.step_grid import with_found_grid
from tim_jax.system import cluster, compilation_cache
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampling.sampler import make_plan, slerp, time_grid

COUNT = 40  # images per step count where no labels are given


def read_asked(args: argparse.Namespace, run: Run, size: tuple[int, int], factor: int) -> list[Request]:
    """What the command line asks for. size: of rows where a prompt has none of its own. Raises ValueError."""
    if run.config.model.condition == "class":
        for name in ("prompt", "prompts", "per_prompt"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: this run is conditioned on labels, not on text")
        return read_labels(args.labels, args.count or COUNT, size, run.config.model.num_classes)
    for name in ("labels", "count"):
        if getattr(args, name):
            raise ValueError(f"--{name} is {getattr(args, name)}; this run is conditioned on text: give --prompt")
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError("--prompt, --prompts: this run is conditioned on text; give one of them")
    named = read_prompts(args.prompts) if args.prompts is not None else [("00000", {"prompt": args.prompt})]
    return by_prompts(named, size, args.per_prompt or LAYOUTS[args.layout].count, run, factor)


def read_all(
    args: argparse.Namespace, run: Run, decoder: Pixels | Decoder | None
) -> tuple[list[Request], np.ndarray | None]:
    """What is asked for, and the images (n, H, W, C) to start from or None. decoder: see `decoder_of`.

    Raises ValueError.
    """
    factor = decoder.factor if decoder else 1
    given, size = None, run.image_shape[:2]
    if args.images:
        given = read_images(args.images, run, decoder and factor)
        size = tuple(side // factor for side in given.shape[1:3])
    elif args.size:
        size = read_size("--size is", args.size, run, factor)
    asked = read_asked(args, run, size, factor)
    by = "--labels" if run.config.model.condition == "class" else "--prompts"
    if args.images or args.interpolate:
        asked = in_line(asked, given, size, by)
    if args.interpolate and len(asked) < 2:
        raise ValueError(f"--interpolate is {args.interpolate}; it needs two images, and {by} has one")
    return asked, given


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.sample", description="Samples from a trained run at several step counts.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8", help="step counts, such as 1,4,32")
    parser.add_argument("--labels", default="", help="labels, such as 0,1,2; default: every class in turn")
    parser.add_argument("--count", type=int, help=f"images per step count where no labels are given; default: {COUNT}")
    parser.add_argument("--prompt", help="of a run conditioned on text: what the images are to show")
    parser.add_argument("--prompts", help="a file of prompts: .txt, .jsonl or .json; or a folder of .txt files")
    parser.add_argument("--per-prompt", type=int, help="images of each prompt; default: 1, or what the layout has")
    parser.add_argument("--layout", choices=LAYOUTS, default="plain", help="of the files; default: %(default)s")
    parser.add_argument("--size", default="", help="height x width of images, such as 64x48; default: the run's")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 for none; default: the configuration's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--from", dest="images", help="image files to start from, such as a.png,b.png, not noise")
    parser.add_argument("--start", type=float, help="time that those are noised to; default: the sampler's way up")
    parser.add_argument("--interpolate", type=int, help="images on the way from each to the next")
    parser.add_argument("--out", help="folder to write to; default: WORKDIR/sampled, or one in it for another layout")
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
        run = build(workdir.load(folder, overrides))
        compilation_cache.use(run.config.training.compilation_cache)
        decoder = decoder_of(run)
        asked, given = read_all(args, run, decoder)
        check_layout(args, run, asked, steps, decoder is not None)
        texts = texts_of(run) if run.config.model.condition == "text" else None
        if texts:
            texts.check([of.what for of in asked])
        weights, step = load_weights(run, folder)
        run = with_found_grid(run, folder, step)
        check_times(args, run, steps)
        generator = Generator(run, batch_size(run, asked), texts, decoder or Pixels())
        generator.load()

    rows = None if given is None else generator.decode.rows(given)
    starts, wanted = asked, asked
    if args.interpolate:
        order = np.concatenate([nearer(i, i + 1, args.interpolate) for i in range(len(asked) - 1)])
        wanted = [dataclasses.replace(asked[i], first=k, name=f"{k:05}") for k, i in enumerate(order)]
    output = Output(args, run, step, wanted, decoder and decoder.factor)
    total = len(steps) * sum(of.count for of in wanted)
    with tqdm(total=total, unit="image", disable=jax.process_index() > 0, mininterval=1.0) as bar, failures(OSError):
        for count in steps:
            times = generator.times(count, args.start)
            x = start(generator, weights, times, starts, rows, args)
            if rows is not None:
                output.arrays[f"start{count}"] = x
            for one in drawn(generator, weights, times, wanted, args.seed, x, bar.update):
                output.add(count, one)
    if jax.process_index() > 0:
        return
    with failures(OSError):
        written = output.finish()
    print(f"{total // len(steps)} images at each of {args.steps} steps, from training step {step}, in {output.folder}:")
    if given is not None and args.start is None and not args.interpolate:
        for count in steps:
            off = np.sqrt(np.mean((output.arrays[f"steps{count}"] - rows) ** 2))
            print(f"  to noise and back in {count} + {count} steps: {off:.3g} off (RMS)")
    print("\n".join(f"  {file}" for file in written))


def start(
    generator: Generator,
    weights: Any,
    times: np.ndarray,
    asked: list[Request],
    given: np.ndarray | None,
    args: argparse.Namespace,
) -> np.ndarray | None:
    """The states (n, h, w, C) that sampling along `times` starts from; None: noise of --seed.

    given: (len(asked), h, w, C) rows, or None. With --interpolate there are so many for each two neighbours.
    """
    if args.start is not None:
        return generator.noised(given, args.start, args.seed)
    if given is not None:
        x = generator.along(weights, times[::-1], [of.what for of in asked], args.seed, given)
    elif args.interpolate:
        x = mixture(generator.run, times[0])[1] * generator.noise(args.seed, len(asked), asked[0].size)
    if not args.interpolate:
        return None if given is None else x
    u = np.linspace(0, 1, args.interpolate)
    return np.concatenate([slerp(*pair, u) for pair in zip(x, x[1:])])


def in_line(asked: list[Request], given: np.ndarray | None, size: tuple[int, int], by: str) -> list[Request]:
    """One image of each thing asked for, of noises 0, 1, …, for --from and --interpolate. by: the flag that asks.

    Raises ValueError if there are more of one, or other sizes, or not so many as images are given.
    """
    if any(of.count > 1 or of.size != size for of in asked):
        raise ValueError(f"{by} has prompts with several images or other sizes; --from and --interpolate take neither")
    if given is not None and len(asked) != len(given):
        raise ValueError(f"{by} has {len(asked)}; --from has {len(given)} images and needs one for each")
    return [dataclasses.replace(of, first=i) for i, of in enumerate(asked)]


def check_layout(args: argparse.Namespace, run: Run, asked: list[Request], steps: list[int], is_picture: bool) -> None:
    """Raises ValueError for a layout that is not for what is asked."""
    if args.layout == "plain":
        return
    said = f"--layout is {args.layout!r}"
    if run.config.model.condition != "text":
        raise ValueError(f"{said}, which is for prompts; this run is conditioned on labels")
    if not is_picture:
        raise ValueError(f"{said}; rows of this run are latents, and codecs.autoencoder, which decodes them, is ''")
    if args.images or args.interpolate:
        raise ValueError(f"{said}; with --from and --interpolate it must be 'plain'")
    LAYOUTS[args.layout].check(args.layout, asked, steps)


def check_times(args: argparse.Namespace, run: Run, steps: list[int]) -> None:
    """Raises ValueError for step counts, or a --start, that the run's transport and sampler cannot take."""
    if args.start is not None and not run.transport.T_min < args.start <= run.transport.T_max:
        ends = f"above {run.transport.T_min:g} and at most {run.transport.T_max:g}"
        raise ValueError(f"--start is {args.start}; it must be {ends} for {run.transport.name}")
    upwards = args.images and args.start is None
    for count in steps:
        times = time_grid(run.transport, count, run.sampling, args.start)
        make_plan(run.transport, times[::-1] if upwards else times, run.sampling)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that cannot be, whatever the run."""
    for name, least in (("count", 1), ("per_prompt", 1), ("seed", 0), ("interpolate", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if args.seed >= 2**32:
        raise ValueError(f"--seed is {args.seed}; it must be below 2^32")
    if args.start is not None and not args.images:
        raise ValueError(f"--start is {args.start}; it needs images, --from=FILE")
    if args.start is not None and args.interpolate:
        raise ValueError(f"--start is {args.start} and --interpolate is {args.interpolate}; give one of them")
    if args.images and not (args.labels or args.prompt or args.prompts):
        raise ValueError(f"--from is {args.images}; it needs --labels or prompts, one for each image")
    if args.images and args.size:
        raise ValueError(f"--size is {args.size}; with --from the size is that of the images")


def nearer(first: int, second: int, count: int) -> np.ndarray:
    """(count,) of two neighbours, by their places, the nearer one on the way from the first to the second."""
    return np.where(np.arange(count) < count / 2, first, second)


if __name__ == "__main__":
    main()
