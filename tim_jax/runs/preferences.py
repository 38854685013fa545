"""Which of two samples a reward prefers: of pairs of one run's, to be trained on, or of two runs', to compare these."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from tim_jax import data
from tim_jax.config.build import build
from tim_jax.config.keys import flatten
from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import judging, workdir
from tim_jax.runs import labels as by_name
from tim_jax.runs.conditions import known_labels
from tim_jax.runs.generation import Generator, load_weights, open_generator
from tim_jax.runs.input_pipeline import open_source_and_plan
from tim_jax.runs.labels import repeated
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.outputs.layouts import png
from tim_jax.runs.restoration import check_samples
from tim_jax.system import compilation_cache, files, paths
from tim_jax.system.progress import Bar
from tim_jax.transitions.rewards import REWARDS
from tim_jax.transitions.sampling.planning import make_plan

FILE, PICTURE, IMAGES = "preferences.jsonl", "preferences.png", "images"
SHOWN = 10  # pairs in the picture
ALIKE = ("model.condition", "model.num_classes", "data.height", "data.width", "data.channels")  # of two runs


class Sampler(NamedTuple):
    """A run that samples: its workdir, what draws, and its weights."""

    name: str
    generator: Generator
    weights: Any


class Pairs(NamedTuple):
    """Some pairs: images, each (b, H, W, C) as files hold them, and their rewards, each (b,), by place in the pair."""

    images: tuple[np.ndarray, np.ndarray]
    rewards: tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Pairs that are about to be drawn; all that the user can have got wrong has been checked.

    Attributes:
        samplers: of the first and of the second sample of a pair; one for both.
        reward: a name in REWARDS.
        count: how many pairs.
        steps: of the sampler.
        seed: of the noise. Pair i has the images 2i and 2i + 1 of it; of two runs the image i.
        labels: those that take their turns; None where there are prompts.
        source: of prompts; None where there are labels.
        names: of the labels.
    """

    samplers: tuple[Sampler, ...]
    reward: str
    count: int
    steps: int
    seed: int
    labels: np.ndarray | None = None
    source: data.Source | None = None
    names: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """What the condition of a pair is called in its line."""
        return "prompt" if self.labels is None else "label"

    def conditions(self) -> list[Any]:
        """The labels or prompts of all pairs."""
        if self.labels is not None:
            return np.resize(self.labels, self.count).tolist()
        assert self.source is not None, "prompts come from a source"
        return [data.caption_at(self.source, i) for i in range(self.count)]

    def draw(self, conditions: list[Any]) -> Iterator[Pairs]:
        """Draws the pairs of these conditions, in batches. Raises ValueError for a reward that is none."""
        both, numbers = (self.samplers[0], self.samplers[-1]), np.arange(len(conditions))
        of_pair = (numbers, numbers) if self.compares else (2 * numbers, 2 * numbers + 1)
        streams = (
            each.generator.batches(
                each.weights, each.generator.times(self.steps), conditions, seed=self.seed, numbers=which
            )
            for each, which in zip(both, of_pair, strict=True)
        )
        first = 0
        for batches in zip(*streams, strict=True):
            some = conditions[first : first + len(batches[0])]
            x, y = (self.decoded(each.generator, batch) for each, batch in zip(both, batches, strict=True))
            yield Pairs((x, y), (self.rewards(x, some), self.rewards(y, some)))
            first += len(some)

    def decoded(self, generator: Generator, examples: np.ndarray) -> np.ndarray:
        """The images (b, H, W, C) of examples, as files hold them."""
        return pictures.as_written(generator.decode(repeated(examples, generator.batch_size))[: len(examples)])

    def rewards(self, images: np.ndarray, conditions: list[Any]) -> np.ndarray:
        """The rewards (b,) of images. Raises ValueError if they are no finite numbers."""
        condition = {self.kind: conditions if self.labels is None else jnp.asarray(conditions)}
        return judging.of_images(self.reward, images, condition)

    def write(self, out: epath.Path) -> str:
        """Draws all pairs and writes them to a folder; of several processes only the first does.

        Returns what is to be said of them. Raises ValueError for a reward that is none.
        """
        conditions = self.conditions()
        lines: list[dict[str, Any]] = []
        shown: list[Any] = []
        with Bar(total=self.count, unit="pair", disable=jax.process_index() > 0, mininterval=1.0) as bar:
            for pairs in self.draw(conditions):
                for *images, reward, other in zip(*pairs.images, *pairs.rewards, strict=True):
                    line = self.line(len(lines), conditions[len(lines)], (float(reward), float(other)))
                    self._write_images(out, line, images)
                    if len(lines) < SHOWN:
                        shown.append(images[::-1] if line["choice"] == 1 and not self.compares else images)
                    lines.append(line)
                bar.update(len(pairs.rewards[0]))
        if jax.process_index() == 0:
            captions = by_name.captions(conditions[:SHOWN], self.names)
            rows = dict(zip(self.rows, zip(*shown, strict=True), strict=True))
            pictures.any_step_grid(rows, path=out / PICTURE, column_labels=captions)
            files.replace(out / FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return self.told(out, *np.array([line["rewards"] for line in lines]).T)

    def line(self, i: int, condition: Any, rewards: Sequence[float]) -> dict[str, Any]:
        """The line of pair i, as the source `preferences` reads it."""
        tie = rewards[0] == rewards[1]
        return {
            "images": [f"{IMAGES}/{i:06}_{place}.png" for place in (0, 1)],
            "choice": None if tie else int(rewards[1] > rewards[0]),
            self.kind: condition,
            "reward": max(rewards),
            "rewards": list(rewards),
        }

    @property
    def compares(self) -> bool:
        """Whether the pairs are of two runs."""
        return len(self.samplers) == 2

    @property
    def rows(self) -> tuple[str, str]:
        """What the rows of the picture are called."""
        return (self.samplers[0].name, self.samplers[1].name) if self.compares else ("preferred", "other")

    def _write_images(self, out: epath.Path, line: dict[str, Any], images: Sequence[np.ndarray]) -> None:
        if jax.process_index() > 0:
            return
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
        for name, image, reward in zip(line["images"], images, line["rewards"], strict=True):
            about = {self.kind: line[self.kind], self.reward: reward, "steps": self.steps}
            files.replace(out / name, png(pictures.to_uint8(image), about))

    def told(self, out: epath.Path, first: np.ndarray, second: np.ndarray) -> str:
        """The line to end with, of the rewards (n,) of first and second samples."""
        ties, (name, other) = f"{(first == second).sum()} ties", self.rows
        if self.compares:
            how_often = f"{name} is preferred in {(first > second).mean():.1%} of {self.count} pairs, {ties}"
            means = f"mean {first.mean():.4g}, of {other} {second.mean():.4g}"
            return f"{self.reward}: {how_often}; {means}; in {out}"
        means = f"mean {np.maximum(first, second).mean():.4g}, of the others {np.minimum(first, second).mean():.4g}"
        return f"{self.reward}: {self.count} pairs, {ties}; {means}; in {out}"


def check_out(out: str) -> epath.Path:
    """The folder to write to. Raises ValueError if it cannot be written to, or holds something already."""
    folder = paths.given(out, "--out")
    paths.check_folder(folder, "--out")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in there if name not in (IMAGES, PICTURE)]  # which a command that was stopped leaves
    if others:
        raise ValueError(
            f"--out is {out!r}; it must be a new folder, and holds {FILE if FILE in others else others[0]}"
        )
    return folder


def open_comparison(
    folders: Sequence[epath.Path], overrides: dict[str, str], reward: str, *, count: int, steps: int, seed: int
) -> Comparison:
    """Opens one run, or two that are compared, on this machine's devices.

    Args:
        folders: the workdirs.
        overrides: {"section.key": text} of their configurations.
        reward: a name in REWARDS.
        count: how many pairs.
        steps: of the sampler.
        seed: of the noise.

    Raises:
        ValueError: one line that names what is wrong.
    """
    flags = ("--workdir", "--against")
    runs = [build(workdir.load(folder, overrides, flag)) for folder, flag in zip(folders, flags, strict=False)]
    if reward not in REWARDS:
        raise ValueError(f"--reward is {reward!r}; it must be one of {', '.join(REWARDS)}, or a plugin's own")
    if len(set(map(str, folders))) < len(folders):
        raise ValueError(f"--against is {str(folders[-1])!r}; it must be another run than --workdir")
    here, there = (flatten(run.config) for run in (runs[0], runs[-1]))
    for key in ALIKE:
        if here[key] != there[key]:
            raise ValueError(
                f"--against is {str(folders[-1])!r}; it must have {key}={here[key]!r}, and has {there[key]!r}"
            )
    compilation_cache.use(runs[0].training.compilation_cache, runs[0].training.compilation_cache_gib)
    samplers = tuple(_sampler(run, folder, count, steps) for run, folder in zip(runs, folders, strict=True))
    if runs[0].config.model.condition == "class":
        labels = np.flatnonzero(known_labels(runs[0], folders[0]))
        return Comparison(samplers, reward, count, steps, seed, labels, names=workdir.class_names(folders[0]))
    source, _ = open_source_and_plan(runs[0])
    if not source.captions:
        raise ValueError(
            f"model.condition is 'text'; it must be 'class', as the examples of {source.name} have no captions"
        )
    return Comparison(samplers, reward, count, steps, seed, source=source)


def _sampler(run: Run, folder: epath.Path, count: int, steps: int) -> Sampler:
    check_samples(run, "pairs of samples")
    if not run.shows_images:
        raise ValueError("codecs.autoencoder is ''; it must name what decodes latents to images, of which rewards are")
    weights, step = load_weights(run, folder)
    run = with_found(run, folder, step)
    generator = open_generator(run, min(run.config.sampling.batch_size, count))
    make_plan(run.transport, generator.times(steps), run.sampling)
    generator.load()
    return Sampler(str(folder), generator, weights)
