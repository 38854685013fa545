"""What python -m tim_jax.sample writes: pictures as they are drawn, and at the end arrays, settings and grids."""

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import labels
from tim_jax.runs.outputs.batches import Samples, sampling_record
from tim_jax.runs.outputs.layouts import LAYOUTS, Picture, png
from tim_jax.runs.outputs.requests import Request
from tim_jax.runs.outputs.settings import SampleSettings
from tim_jax.runs.searching import Searcher
from tim_jax.system import files

SHOWN = 100  # images of a step count in its grid, at most
COLUMNS = 10


def file_name(run: Run, step: int, requests: Sequence[Request], size: str, settings: SampleSettings) -> str:
    """The name that files of these samples begin with, so that those of other settings or prompts stay beside them.

    Args:
        run: that samples.
        step: of training.
        requests: what is drawn.
        size: of all images in pixels, or "sizes" where there are several.
        settings: of the command.
    """
    parts = []
    if settings.prompt or settings.prompts:
        content = repr([(request.condition, request.size, request.count) for request in requests]).encode()
        text = settings.prompt or epath.Path(settings.prompts).stem
        parts += ["-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40], hashlib.sha256(content).hexdigest()[:6]]
    parts += [f"step{step}", size, run.sampling.sampler, run.sampling.grid, f"seed{settings.seed}"]
    parts.append(f"guidance{run.sampling.guidance:g}")
    steering = run.sampling.steering
    if settings.images and settings.start is not None:
        parts.append(f"start{settings.start:g}")
    elif settings.inverts(steering.active):
        parts.append("inverted" if settings.strength is None else f"inverted{settings.strength:g}")
        if settings.source is not None:
            parts.append("from-" + "-".join(re.findall(r"[a-z0-9]+", settings.source.lower()))[:40])
    if steering.active:
        parts += [steering.operator.replace(":", "-"), steering.method]
    if settings.interpolate:
        parts.append(f"interpolate{settings.interpolate}")
    if settings.search:
        radius = f"radius{settings.radius:g}" if settings.radius else ""
        parts += [settings.search.replace(":", ""), radius, settings.reward or ""]
    return "_".join(part for part in parts if part)


class SampleWriter:
    """Writes the files of one command; of several processes only the first does.

    Args:
        settings: of the command.
        run: that samples.
        step: of training.
        requests: all that is drawn at every step count.
        factor: pixels per position of an example; None where examples are latents that nothing decodes. In that case,
            and for labels, the examples are written as arrays.
        names: of the labels, or ().
        searcher: that finds them; None where they are drawn as they come.

    Attributes:
        arrays: further arrays to write, by name.
    """

    def __init__(
        self,
        settings: SampleSettings,
        run: Run,
        step: int,
        requests: Sequence[Request],
        factor: int | None,
        names: Sequence[str] = (),
        searcher: Searcher | None = None,
    ):
        self.settings, self.requests, self.factor, self.names = settings, requests, factor, names
        self.layout = LAYOUTS[settings.layout]
        self.steered = run.sampling.steering.active
        self.kind = "label" if run.config.model.condition == "class" else "prompt"
        self.record = sampling_record(run, step, settings.seed)
        names_of_flags = ("start", "strength", "source", "mask", "target", "interpolate")
        given = {"from": settings.images} | {name: getattr(settings, name) for name in names_of_flags}
        self.record |= {name: value for name, value in given.items() if value is not None}
        self.record |= searcher.record() if searcher else {}
        self.reward = searcher.judge.name if searcher else ""
        self.sizes = {request.size: self._pixels(request.size) for request in requests}
        size = "x".join(map(str, *self.sizes.values())) if len(self.sizes) == 1 else "sizes"
        self.name = file_name(run, step, requests, size, settings)
        beside = "" if self.plain else f"{self.name}_{settings.layout}"
        self.folder = settings.folder if settings.out is not None else settings.folder / beside
        self.arrays: dict[str, np.ndarray] = {}
        # By step count, then by the request's place.
        self._examples: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        self._shown: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        self._found: dict[int, dict[int, Sequence[Mapping[str, Any]]]] = defaultdict(dict)

    @property
    def plain(self) -> bool:
        """Whether the layout is that of no evaluator."""
        return self.settings.layout == "plain"

    def _pixels(self, size: tuple[int, int]) -> list[int]:
        return [side * (self.factor or 1) for side in size]

    def picture_record(
        self, steps: int, request: Request, numbers: Sequence[int], found: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """The settings that go into a picture of these images of a request, with what a search says of each."""
        about = together([found[number] for number in numbers] if found else [])
        numbers = [request.first + number for number in numbers]
        record: dict[str, Any] = {self.kind: request.condition}
        record |= {"class": self.caption(request)} if self.names else {}
        further = {key: value for key, value in request.record.items() if key not in ("prompt", "size", "count")}
        record |= {"further": further} if further else {}
        number = numbers[0] if len(numbers) == 1 else numbers
        return record | self.record | about | {"number": number, "steps": steps, "size": self.sizes[request.size]}

    def caption(self, request: Request) -> str:
        """What the images of a request are called in pictures: its prompt, or its class."""
        return labels.captions([request.condition], self.names)[0]

    def add(self, steps: int, samples: Samples) -> None:
        """Writes the pictures of a request, and keeps what is written at the end."""
        if jax.process_index() > 0:
            return
        request = self.requests[samples.place]
        if self.kind == "label" or self.factor is None or self.settings.images or self.steered:
            self._examples[steps][samples.place] = samples.examples
        if self.reward:
            self._found[steps][samples.place] = samples.found
        if self.factor is None:
            return
        room = SHOWN - sum(map(len, self._shown[steps].values()))
        if self.plain and room > 0:
            self._shown[steps][samples.place] = samples.images[:room]
        folder = self.folder / f"{self.name}_steps{steps}" if self.plain else self.folder
        for name, content in self.layout.files(samples.place, request, pictures.to_uint8(samples.images)).items():
            if isinstance(content, Picture):
                content = png(content.pixels, self.picture_record(steps, request, content.numbers, samples.found))
            self._write(folder / name, content)

    def finish(self) -> list[str]:
        """Writes arrays, settings and grids; returns the names of all that was written."""
        if not self.plain:
            return [f"{len(self.requests)} prompts as {self.settings.layout!r}"]
        written = []
        self.arrays |= self._example_arrays()
        if self.arrays:
            npz = io.BytesIO()
            np.savez(npz, **self.arrays)  # type: ignore[arg-type]
            written.append(self._write(self.folder / f"{self.name}.npz", npz.getvalue()))
        about = self.record | self._conditions(range(len(self.requests))) | {"sizes": list(self.sizes.values())}
        about |= {"steps": list(self._shown or self._examples)}
        about |= {"found": {steps: together(self._all_found(steps)) for steps in self._found}} if self._found else {}
        written.append(self._write(self.folder / f"{self.name}.json", (json.dumps(about, indent=2) + "\n").encode()))
        written += [f"{self.name}_steps{steps}/" for steps in self._shown]
        for end, picture, places in self._grids():
            content = png(picture, about | self._conditions(places))
            written.append(self._write(self.folder / f"{self.name}{end}.png", content))
        return written

    def rewards(self) -> list[str]:
        """Lines with the mean reward of each step count; none without a search."""
        lines = []
        for steps in self._found:
            found = together(self._all_found(steps))
            line = f"  {steps} steps: mean {self.reward} {np.mean(found['reward']):.4g}"
            first = f", of first candidates {np.mean(found['first_reward']):.4g}" if "first_reward" in found else ""
            lines.append(line + first)
        return lines

    def _all_found(self, steps: int) -> list[Mapping[str, Any]]:
        return [one for _, found in sorted(self._found[steps].items()) for one in found]

    def _example_arrays(self) -> dict[str, np.ndarray]:
        """All examples, by step count, and by size if there are several, with their labels or prompts."""
        found = {}
        for steps, examples in self._examples.items():
            for size in self.sizes:
                end = "" if len(self.sizes) == 1 else f"_{size[0]}x{size[1]}"
                places = [i for i in sorted(examples) if self.requests[i].size == size]
                found[f"steps{steps}{end}"] = np.concatenate([examples[i] for i in places])
                conditions = [self.requests[i].condition for i in places for _ in range(self.requests[i].count)]
                found[f"{self.kind}s{end}"] = np.array(conditions)
        return found

    def _grids(self) -> Iterator[tuple[str, Image.Image, list[int]]]:
        """(end of the file's name, grid, places shown): of each step count, where there is one size, and of all."""
        rows: dict[int, list[np.ndarray]] = {}
        captions: list[str] = []
        places: list[int] = []
        for steps, images in self._shown.items():
            places = sorted(images)
            if len(self.sizes) == 1:
                together = np.concatenate([images[i] for i in places])
                columns = self.settings.interpolate or min(COLUMNS, len(together))
                yield f"_steps{steps}", self._grid(together, columns, places, images), places
            shown = self.settings.interpolate or COLUMNS
            rows[steps] = [image for i in places for image in images[i]][:shown]
            captions = self._captions(places, images)[:shown]
        if rows:
            yield "", pictures.any_step_grid(rows, column_labels=captions), places

    def _captions(self, places: list[int], images: dict[int, np.ndarray]) -> list[str]:
        """What the images of some requests are called, one after another."""
        return [self.caption(self.requests[i]) for i in places for _ in images[i]]

    def _grid(self, together: np.ndarray, columns: int, places: list[int], images: dict[int, np.ndarray]) -> Any:
        """The images of a step count, with their captions above columns that have one caption, or below each image."""
        captions = self._captions(places, images)
        tops = captions[:columns]
        if all(caption == tops[i % columns] for i, caption in enumerate(captions)):
            return pictures.grid(together, columns, column_labels=tops)
        return pictures.grid(together, columns, tile_labels=captions)

    def _conditions(self, places: Iterable[int]) -> dict[str, list[str | int]]:
        requests = [self.requests[i] for i in places]
        found: dict[str, list[str | int]] = {f"{self.kind}s": [request.condition for request in requests]}
        return found | ({"classes": [self.caption(request) for request in requests]} if self.names else {})

    def _write(self, path: epath.Path, content: bytes) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
        return path.name


def together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{name: values} of what a search says of images, or {name: value} of a single one."""
    if len(found) == 1:
        return dict(found[0])
    return {name: [each[name] for each in found] for name in found[0]} if found else {}
