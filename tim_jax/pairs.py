"""python -m tim_jax.pairs --workdir=TEACHER --out=DIR [--rows=50000 --steps=32 --seed=0] [--config.sampling.…=…]
python -m tim_jax.pairs --verify=DIR

Writes pairs (ε, x̂(ε)) of noise and the sample that a trained run makes of it, once, to shards in DIR: what rectified
flow's reflow is trained on (configs/distillation/reflow.py), with --config.data.source=shards --config.data.path=DIR
--config.data.paired_noise=True. Labels, or the captions of the run's own source, take their turns. Stopped or killed,
the same
command goes on. With several processes each makes a share of the shards.
"""

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax import data
from tim_jax.config.build import build
from tim_jax.config.keys import identity
from tim_jax.config.run import Run
from tim_jax.data.shard_files import EXAMPLE_OVERHEAD, SHARD_OVERHEAD
from tim_jax.runs import shard_job, workdir
from tim_jax.runs.encoders import texts_of
from tim_jax.runs.encoding.settings import weights_of
from tim_jax.runs.generation import Generator, cycled, load_weights, mixture
from tim_jax.runs.input_pipeline import open_rows
from tim_jax.runs.outputs.batches import settings as settings_of_samples
from tim_jax.runs.step_grid import fingerprint, with_found_grid
from tim_jax.system import compilation_cache
from tim_jax.transitions.sampling.sampler import make_plan

ROWS, STEPS = 50_000, 32
LOOKED_AT = 64  # captions, for the size of all


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of a run's samples and their noise: a `shard_job.Job`.

    Pair i is of image i of the seed. weights: on the generator's mesh. of: what of the run the pairs depend on. source:
    of captions, None where pairs have labels.
    """

    generator: Generator
    weights: Any
    of: dict[str, Any]
    rows: int
    steps: int
    seed: int
    rows_per_shard: int
    source: data.Source | None = None

    doing, train_with = "sampling", "--config.data.paired_noise=True"

    @property
    def run(self) -> Run:
        return self.generator.run

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        asked = {"rows": self.rows, "steps": self.steps, "rows_per_shard": self.rows_per_shard}
        return json.loads(json.dumps(asked | self.of))

    @functools.cached_property
    def counts(self) -> list[int]:
        return [min(self.rows - first, self.rows_per_shard) for first in range(0, self.rows, self.rows_per_shard)]

    @property
    def max_bad_share(self) -> float:
        return self.run.inputs.max_bad_share

    @property
    def about(self) -> dict[str, Any]:
        return {
            "num_classes": 0 if self.source else self.run.config.model.num_classes,
            "captions": self.source is not None,
            "latent_channels": self.run.image_shape[-1],
            "moments": False,
            "noise": True,
        }

    @property
    def null(self) -> dict[str, np.ndarray]:
        return self.generator.texts.first_null if self.source else {}

    def size_in_bytes(self) -> int:
        row = EXAMPLE_OVERHEAD + 2 * 4 * math.prod(self.run.image_shape)
        if self.source:
            found = [caption_of(self.source, i) for i in range(min(self.rows, LOOKED_AT))]
            texts, width = self.generator.texts, self.run.config.data.text_width
            tokens = [min(texts.tokenizer.count(caption), texts.length) for caption in found]
            row += np.mean([len(caption.encode()) for caption in found]) + 2 * width * np.mean(tokens)
        return int(self.rows * row + len(self.counts) * SHARD_OVERHEAD)

    def make(self, shards: Sequence[int], told: Callable[[], Any]) -> Iterator[tuple[list, list]]:
        for shard in shards:
            numbers = shard * self.rows_per_shard + np.arange(self.counts[shard])
            made, bad = [], []
            for number, row in zip(numbers.tolist(), self.shard(numbers), strict=True):
                told()
                if np.isfinite(row["pair"]).all():
                    made.append(row)
                else:
                    bad.append({"row": number, "identity": f"pair {number}", "reason": "not finite"})
            yield made, bad

    def shard(self, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
        """The pairs of these numbers, consecutive ones: a batch holds rows of one shard alone."""
        generator, size = self.generator, self.generator.batch_size
        noise = generator.noise(self.seed, len(numbers), first=int(numbers[0]))
        states = mixture(self.run, self.run.transport.T_max)[1] * noise
        if self.source:
            asked = [caption_of(self.source, i) for i in numbers.tolist()]
        else:
            asked = numbers % self.run.config.model.num_classes
        batches = generator.batches(
            self.weights, generator.times(self.steps), asked, self.seed, states, numbers=numbers
        )
        for first, samples in zip(range(0, len(numbers), size), batches, strict=True):
            here = slice(first, first + size)
            pairs = np.moveaxis(np.stack([samples, noise[here]], axis=1), -1, 2)
            for pair, condition in zip(pairs, self._conditions(asked[here]), strict=True):
                yield {"pair": pair} | condition

    def _conditions(self, asked: Sequence[int] | Sequence[str]) -> list[dict[str, Any]]:
        """What rows hold of labels or captions, at most a batch of them."""
        if not self.source:
            return [{"label": int(label)} for label in asked]
        made = self.generator.texts(cycled(np.asarray(asked), self.generator.batch_size).tolist())
        texts, lengths = np.asarray(made["text"]), np.asarray(made["mask"]).sum(1)
        found = zip(asked, texts, lengths)
        return [{"captions": [caption], "texts": [text[:length]]} for caption, text, length in found]


def caption_of(source: data.Source, i: int) -> str:
    """The first caption of row i of a source, its rows over and over, or of the next that can be used.

    Raises ValueError if there is none.
    """
    read = source.read
    for k in range(i, i + len(source)):
        try:
            return read(k % len(source))["captions"][0]
        except data.BadRecord:
            continue
    raise ValueError(f"{source.name}: none of its rows can be used")


def open_job(args: argparse.Namespace, overrides: dict[str, str]) -> Pairs:
    """What the command line asks for, on this process's devices. Raises ValueError."""
    for name, least, below in (("rows", 1, 2**32), ("steps", 1, 2**32), ("seed", 0, 2**32)):
        if not least <= getattr(args, name) < below:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least} and below 2^32")
    folder = epath.Path(args.workdir)
    run = build(workdir.load(folder, overrides), jax.local_devices())
    kept = compilation_cache.use(run.config.training.compilation_cache)
    texts, source, of = None, None, {}
    if run.config.model.condition == "text":
        texts, (source, _) = texts_of(run), open_rows(run)
        if not source.captions:
            raise ValueError(f"model.condition is 'text'; the rows of {source.name} have no captions")
        encoder = weights_of(run.codecs.text_encoder) | {"dtype": run.codecs.dtype}
        of = {"text_encoder": encoder, "source": source.fingerprint()}
    weights, step = load_weights(run, folder)
    run = with_found_grid(run, folder, step)
    generator = Generator(run, min(run.config.sampling.batch_size, args.rows_per_shard, args.rows), texts)
    times = generator.times(args.steps)
    if make_plan(run.transport, times, run.sampling).c.any():
        raise ValueError(
            f"sampling.sampler is {run.sampling.sampler!r}, with sampling.stochasticity {run.sampling.stochasticity}: "
            f"in {args.steps} steps it draws noise on its way, and a pair's sample must follow from its own alone"
        )
    generator.load()
    of |= {"run": identity(run.config), "weights": fingerprint(run, folder, step)}
    found = {"times": times.tolist()} if run.sampling.optimal_times else {}
    of |= {"sampling": settings_of_samples(run, step, args.seed) | found}
    shard_job.say(kept)
    return Pairs(generator, weights, of, args.rows, args.steps, args.seed, args.rows_per_shard, source)


def main(argv: list[str] | None = None) -> None:
    parser = shard_job.parser("tim_jax.pairs", __doc__)
    parser.add_argument("--workdir", help="the folder of the run that samples")
    parser.add_argument("--rows", type=int, default=ROWS, help="pairs; default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default: %(default)s")
    shard_job.command(parser, "workdir", open_job, argv)


if __name__ == "__main__":
    main()
