"""What python -m tim_jax.sample writes: pictures as they are drawn, and at the end arrays, settings and grids."""

import argparse
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from etils import epath
from PIL import Image

from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs.outputs.batches import Drawn, settings
from tim_jax.runs.outputs.layouts import LAYOUTS, Picture, png
from tim_jax.runs.outputs.requests import Request
from tim_jax.system import files

SHOWN = 100  # images of a step count in its grid, at most
COLUMNS = 10


def file_name(run: Run, step: int, asked: Sequence[Request], size: str, args: argparse.Namespace) -> str:
    """What files of these samples are called, so that those of other settings or prompts stay beside them."""
    parts = []
    if args.prompt or args.prompts:
        what = repr([(of.what, of.size, of.count) for of in asked]).encode()
        told = args.prompt or epath.Path(args.prompts).stem
        parts += ["-".join(re.findall(r"[a-z0-9]+", told.lower()))[:40], hashlib.sha256(what).hexdigest()[:6]]
    parts += [f"step{step}", size, run.sampling.sampler, run.sampling.grid, f"seed{args.seed}"]
    parts.append(f"guidance{run.sampling.guidance:g}")
    if args.images:
        parts.append("inverted" if args.start is None else f"start{args.start:g}")
    if args.interpolate:
        parts.append(f"interpolate{args.interpolate}")
    return "_".join(part for part in parts if part)


class Output:
    """The files of one command; only the first process writes any.

    asked: all that is drawn at every step count. factor: pixels per position of a row, None where rows are latents that
    nothing decodes; then, and of labels, the rows are written as arrays. arrays: further ones, by name.
    """

    def __init__(self, args: argparse.Namespace, run: Run, step: int, asked: Sequence[Request], factor: int | None):
        self.args, self.asked, self.factor = args, asked, factor
        self.layout = LAYOUTS[args.layout]
        self.kind = "label" if run.config.model.condition == "class" else "prompt"
        self.settings = settings(run, step, args.seed)
        given = {"from": args.images, "start": args.start, "interpolate": args.interpolate}
        self.settings |= {name: value for name, value in given.items() if value is not None}
        self.sizes = {of.size: self._pixels(of.size) for of in asked}
        size = "x".join(map(str, *self.sizes.values())) if len(self.sizes) == 1 else "sizes"
        self.name = file_name(run, step, asked, size, args)
        place = epath.Path(args.workdir) / "sampled" / ("" if self.plain else f"{self.name}_{args.layout}")
        self.folder = epath.Path(args.out) if args.out else place
        self.arrays: dict[str, np.ndarray] = {}
        self._rows, self._shown = defaultdict(dict), defaultdict(dict)  # by step count, then by place

    @property
    def plain(self) -> bool:
        return self.args.layout == "plain"

    def _pixels(self, size: tuple[int, int]) -> list[int]:
        return [side * (self.factor or 1) for side in size]

    def of(self, steps: int | list[int], asked: Request, numbers: Sequence[int]) -> dict:
        """The settings of a picture of these images of what is asked."""
        numbers = [asked.first + number for number in numbers]
        what = {self.kind: asked.what}
        further = {key: value for key, value in asked.record.items() if key not in ("prompt", "size", "count")}
        what |= {"further": further} if further else {}
        about = {"number": numbers[0] if len(numbers) == 1 else numbers, "steps": steps, "size": self.sizes[asked.size]}
        return what | self.settings | about

    def add(self, steps: int, drawn: Drawn) -> None:
        """Writes the pictures of one thing asked for, and keeps what is written at the end."""
        if jax.process_index() > 0:
            return
        asked = self.asked[drawn.place]
        if self.kind == "label" or self.factor is None or self.args.images:
            self._rows[steps][drawn.place] = drawn.rows
        if self.factor is None:
            return
        room = SHOWN - sum(map(len, self._shown[steps].values()))
        if self.plain and room > 0:
            self._shown[steps][drawn.place] = drawn.images[:room]
        folder = self.folder / f"{self.name}_steps{steps}" if self.plain else self.folder
        for name, content in self.layout.files(drawn.place, asked, pictures.to_uint8(drawn.images)).items():
            if isinstance(content, Picture):
                content = png(content.pixels, self.of(steps, asked, content.numbers))
            self._write(folder / name, content)

    def finish(self) -> list[str]:
        """Writes the rest; returns the names of what was written."""
        if not self.plain:
            return [f"{len(self.asked)} prompts as {self.args.layout!r}"]
        written = []
        self.arrays |= self._of_rows()
        if self.arrays:
            npz = io.BytesIO()
            np.savez(npz, **self.arrays)
            written.append(self._write(self.folder / f"{self.name}.npz", npz.getvalue()))
        about = self.settings | self._whats(range(len(self.asked))) | {"sizes": list(self.sizes.values())}
        about |= {"steps": list(self._shown or self._rows)}
        written.append(self._write(self.folder / f"{self.name}.json", (json.dumps(about, indent=2) + "\n").encode()))
        written += [f"{self.name}_steps{steps}/" for steps in self._shown]
        for end, picture, places in self._grids():
            content = png(picture, about | self._whats(places))
            written.append(self._write(self.folder / f"{self.name}{end}.png", content))
        return written

    def _of_rows(self) -> dict[str, np.ndarray]:
        """All rows that were kept, by step count, and by size if there are several, with their labels or prompts."""
        found = {}
        for steps, rows in self._rows.items():
            for size in self.sizes:
                end = "" if len(self.sizes) == 1 else f"_{size[0]}x{size[1]}"
                places = [i for i in sorted(rows) if self.asked[i].size == size]
                found[f"steps{steps}{end}"] = np.concatenate([rows[i] for i in places])
                whats = [self.asked[i].what for i in places for _ in range(self.asked[i].count)]
                found[f"{self.kind}s{end}"] = np.array(whats)
        return found

    def _grids(self) -> Iterator[tuple[str, Image.Image, list[int]]]:
        """(end of the file's name, grid, places shown): of each step count, where there is one size, and of all."""
        rows = {}
        for steps, images in self._shown.items():
            places = sorted(images)
            if len(self.sizes) == 1:
                together = np.concatenate([images[i] for i in places])
                columns = self.args.interpolate or min(COLUMNS, len(together))
                yield f"_steps{steps}", pictures.grid(together, columns), places
            rows[steps] = [image for i in places for image in images[i]][: self.args.interpolate or COLUMNS]
        if rows:
            yield "", pictures.any_step_grid(rows), places

    def _whats(self, places: Iterable[int]) -> dict:
        return {f"{self.kind}s": [self.asked[i].what for i in places]}

    def _write(self, path: epath.Path, content: bytes) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
        return path.name
