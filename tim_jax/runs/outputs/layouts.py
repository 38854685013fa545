"""How images of prompts are laid out in files, as the programs that score them read them."""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tim_jax.runs.outputs.requests import Request

KEY = "tim_jax"  # of the settings in a PNG's metadata
LONGEST = 200  # bytes of a name


class Picture(NamedTuple):
    """One picture file.

    Attributes:
        pixels: uint8 (H, W, 3).
        numbers: which of its prompt's images it shows, from 0 on.
    """

    pixels: np.ndarray
    numbers: Sequence[int]


Files = Mapping[str, Picture | bytes]  # by path


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of files.

    Attributes:
        files: (place of the request in its list, the request, its images (count, H, W, 3)) → files.
        count: images of a prompt where nothing says another number.
        counts: which numbers there may be; () for any.
        keys: what a prompt's record must have.
        paths: what becomes a part of paths, "name" or a key of the record.
        squares: whether all images must be squares of one size.
        one_step_count: whether there is room for a single step count only.
    """

    files: Callable[[int, Request, np.ndarray], Files]
    count: int = 1
    counts: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    squares: bool = False
    one_step_count: bool = True

    def check(self, name: str, requests: Sequence[Request], steps: Sequence[int]) -> None:
        """Raises ValueError, in one line, for requests or step counts that the layout of this name has no place for."""
        where = f"--layout is {name!r}"
        if self.one_step_count and len(steps) > 1:
            raise ValueError(f"{where}; --steps must then be one step count, not {', '.join(map(str, steps))}")
        for i, request in enumerate(requests, 1):
            if self.counts and request.count not in self.counts:
                rule = " or ".join(map(str, self.counts))
                raise ValueError(f"{where}; prompt {i} asks for {request.count} images, and must for {rule}")
            for key in self.keys:
                if not isinstance(request.record.get(key), str):
                    raise ValueError(f"{where}, whose evaluator needs {key!r} of every prompt; prompt {i} has none")
            for key in self.paths:
                part = request.name if key == "name" else request.record[key]
                if not can_be_a_name(part):
                    raise ValueError(f"{where}; prompt {i} has the {key} {part!r:.80}, which can be no name of a file")
            if self.squares and (request.size[0] != request.size[1] or request.size != requests[0].size):
                sizes = f"{request.size[0]}x{request.size[1]}, the first {requests[0].size[0]}x{requests[0].size[1]}"
                raise ValueError(f"{where}, of squares of one size; the examples of prompt {i} are {sizes}")


def can_be_a_name(text: str) -> bool:
    """Whether a text from outside may be the name of a file: visible, within its folder, not hidden."""
    visible = text.isprintable() and not any(letter in text for letter in '/\\:*?"<>|')
    return visible and text == text.strip() and not text.startswith(".") and 0 < len(text.encode()) <= LONGEST


def tiles(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (n, H, W, 3) side by side, row by row, without gaps; white where none is left."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    whole = np.full((rows * columns, height, width, 3), 255, np.uint8)
    whole[:n] = pictures
    return whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _plain(i: int, request: Request, pictures: np.ndarray) -> Files:
    names = [f"{i:05}_{j:02}" for j in range(request.count)] if request.count > 1 else [f"{i:05}"]
    return {f"{name}.png": Picture(pictures[j], [j]) for j, name in enumerate(names)}


def _geneval(i: int, request: Request, pictures: np.ndarray) -> Files:
    folder, together = f"{i:05}", Picture(tiles(pictures, math.isqrt(request.count - 1) + 1), range(request.count))
    record = json.dumps(dict(request.record)).encode() + b"\n"
    samples = {f"{folder}/samples/{j:05}.png": Picture(pictures[j], [j]) for j in range(request.count)}
    return {f"{folder}/metadata.jsonl": record} | samples | {f"{folder}/grid.png": together}


def _dpg(i: int, request: Request, pictures: np.ndarray) -> Files:
    return {f"{request.name}.png": Picture(tiles(pictures, 2 if request.count > 1 else 1), range(request.count))}


def _mjhq(i: int, request: Request, pictures: np.ndarray) -> Files:
    return {f"{request.record['category']}/{request.name}.png": Picture(pictures[0], [0])}


LAYOUTS: Mapping[str, Layout] = {
    "plain": Layout(_plain, one_step_count=False),  # 00000.png, or 00000_00.png, 00000_01.png, …
    "geneval": Layout(_geneval, count=4, keys=("tag",)),  # 00000/metadata.jsonl, samples/00000.png, grid.png
    "dpg": Layout(_dpg, count=4, counts=(4, 1), paths=("name",), squares=True),  # NAME.png, two by two
    "mjhq": Layout(_mjhq, counts=(1,), keys=("category",), paths=("category", "name")),  # CATEGORY/NAME.png
}


def png(picture: Image.Image | np.ndarray, settings: Mapping[str, Any]) -> bytes:
    """A picture, or its pixels (H, W, 3), as a PNG whose text chunk KEY holds the settings as JSON."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(KEY, json.dumps(settings))
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_settings(file: Any) -> dict[str, Any]:
    """The settings that `png` wrote into a file."""
    with Image.open(file) as image:
        return json.loads(image.info[KEY])
