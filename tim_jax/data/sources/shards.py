"""This project's own shards: ArrayRecord files whose records are safetensors, and what these have in common.

A record holds one of

- `image`: the bytes of an image file (uint8);
- `latent` (2, C, h, w): the latents of an image and of its mirror image;
- `moments` (2, 2 C, h, w): mean and log variance of both latents;
- `pair` (2, C, h, w), float32: a model's sample and the noise that it was made from;

and, where the shards have them,

- `label` (1,) and `captions` (JSON as bytes);
- `text` (sum of L, T), bfloat16: the features of the tokens of one caption after another, and `lengths` (captions,),
  their numbers of tokens;
- `features` (2, rows, columns, Z) of the image and of its mirror image.

`about.json` is the manifest, `sizes.npy` (n, 2) holds heights and widths, and `null.safetensors` the features of the
empty prompt and their mask. See shard_files.py for how they are written.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from tim_jax.data import shard_files
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import decode, header_size
from tim_jax.data.sources.base import Example, Location, Source, checked_captions, checked_label, digest
from tim_jax.data.sources.latents import latent_pair, tensors
from tim_jax.data.splits import own_split, split_of_folder
from tim_jax.system import files

MAX_OPEN = 256  # files of shards at a time: a process may have 1,024 files open on most systems


@dataclasses.dataclass(frozen=True)
class ShardSource(Source):
    """The examples of a folder of shards.

    Attributes:
        root: the folder.
        channels: channels of the images to make, where examples are images.
        with_captions: whether captions and their features are read.
    """

    root: str
    channels: int = 3
    with_captions: bool = True

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        return shard_files.read_about(Path(self.root))

    @functools.cached_property
    def _null_text(self) -> dict[str, np.ndarray]:
        path = Path(self.root) / shard_files.NULL
        return safetensors.numpy.load(path.read_bytes()) if path.exists() else {}

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.load(Path(self.root) / shard_files.SIZES, mmap_mode="r")

    @functools.cached_property
    def _reader(self) -> Callable[[int], Any]:
        """Function of a shard's number that returns its reader. At most MAX_OPEN files stay open, the latest ones."""

        def opened(shard: int) -> Any:
            # Nothing is read ahead: examples are asked for in random order.
            path = Path(self.root) / self._about["shards"][shard]["name"]
            return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")

        return functools.lru_cache(MAX_OPEN)(opened)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard["rows"] for shard in self._about["shards"]])

    @functools.cached_property
    def _image_shape(self) -> tuple[int | None, int | None, int]:
        height, width = self._sizes[0].tolist()
        channels = self._about["latent_channels"] or self.channels
        same = min(height, width) > 0 and bool((self._sizes == self._sizes[:1]).all())
        return (height, width, channels) if same else (None, None, channels)

    @property
    def name(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:
        return self._about["num_classes"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._about.get("class_names", ()))

    @property
    def captions(self) -> bool:
        return self.with_captions and self._about["captions"]

    @property
    def latents(self) -> bool:
        return self._about["latent_channels"] > 0

    @property
    def paired_noise(self) -> bool:
        return self._about.get("noise", False)

    @property
    def null_text(self) -> dict[str, np.ndarray]:
        return self._null_text if self.with_captions else {}

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return self._image_shape

    def __len__(self) -> int:
        return self._about["rows"]

    def identity(self, i: int) -> str:
        shard, index = self._locate(i)
        return f"{self._about['shards'][shard]['name']}[{index}]"

    def read(self, i: int) -> Example:
        found = self._record(i)
        example = self._checked(found) | {"index": int(i)}
        if self.latents:
            return example | self._latents(found)
        if "image" not in found:
            raise BadRecord("missing", "no image")
        return example | {"image": decode(found["image"].tobytes(), self.image_shape[-1])}

    def annotations(self, i: int) -> Example:
        found = self._record(i)
        return self._checked({name: found[name] for name in ("label", "captions") if name in found})

    def header(self, i: int) -> tuple[int, int]:
        height, width = self._sizes[i].tolist()
        if height and width:
            return height, width
        found = self._record(i)
        return header_size(io.BytesIO(found["image"].tobytes() if "image" in found else b""))

    def fingerprint(self) -> str:
        return digest("shards", self._about, self.channels)

    def _locate(self, i: int) -> tuple[int, int]:
        """(shard, number within it) of example i."""
        shard = int(np.searchsorted(self._ends, i, "right"))
        return shard, i - (int(self._ends[shard - 1]) if shard else 0)

    def _record(self, i: int) -> dict[str, np.ndarray]:
        """The arrays of record i. Raises BadRecord."""
        shard, index = self._locate(i)
        reader = self._reader(shard)
        if not reader.ok():
            raise BadRecord("shard", "cannot be opened, or cut short")
        try:
            (record,) = reader.read([index])
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadRecord("shard", str(error)[:200]) from None
        return tensors(record)

    def _checked(self, found: dict[str, np.ndarray]) -> Example:
        """All of an example but its image or latents. Raises BadRecord."""
        label = found["label"].item() if "label" in found and found["label"].size == 1 else None
        example: Example = {"label": checked_label(label, self.num_classes)}
        if not self.with_captions:
            found = {name: array for name, array in found.items() if name != "text"}
        if self.captions:
            try:
                example["captions"] = checked_captions(json.loads(found["captions"].tobytes()))
            except (KeyError, ValueError):
                raise BadRecord("caption", "none, must be a JSON list of texts") from None
        for name in ("text", "features"):
            if name in found and not np.isfinite(found[name]).all():
                raise BadRecord("not finite" if name == "text" else "features", name)
        if "text" in found:
            example["texts"] = _texts(found, len(example.get("captions", ())))
        if "features" in found:
            if found["features"].ndim != 4 or len(found["features"]) != 2:
                raise BadRecord("features", f"{found['features'].shape}, must be (2, rows, columns, width)")
            example["features"] = found["features"].astype(np.float32)
        return example

    def _latents(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The latents of an example, and its noise or deviations. Raises BadRecord."""
        channels = self._about["latent_channels"]
        if self.paired_noise:
            pair = latent_pair({"latent": found["pair"]} if "pair" in found else {}, channels)
            return {"image": pair["image"], "noise": pair["flipped"]}
        if not self._about["moments"]:
            return latent_pair(found, channels)
        pair = latent_pair({"latent": found["moments"]} if "moments" in found else {}, 2 * channels)
        means = {name: moments[..., :channels] for name, moments in pair.items()}
        return means | {"deviations": np.exp(0.5 * np.stack([moments[..., channels:] for moments in pair.values()]))}


def _texts(found: dict[str, np.ndarray], captions: int) -> list[np.ndarray]:
    """The features (L, T) of each caption. Raises BadRecord."""
    lengths = found.get("lengths", np.zeros(0, np.int32))
    if len(lengths) != captions or found["text"].ndim != 2 or lengths.sum() != len(found["text"]):
        raise BadRecord("metadata", f"text {found['text'].shape} for {captions} captions of {lengths.tolist()} tokens")
    return np.split(found["text"], np.cumsum(lengths)[:-1])


def _folder_of_split(at: Location) -> Path:
    """The folder of the shards of `at.split`: the path, or one in it that is named by a part. Raises ValueError."""
    root, parts = Path(at.root), {}
    if not (root / shard_files.ABOUT).exists() and root.is_dir():
        folders = {path: split_of_folder(path.name) for path in sorted(root.iterdir())}
        parts = {split: path for path, split in folders.items() if split and (path / shard_files.ABOUT).exists()}
    if parts:
        return parts[own_split(at, parts)]
    own_split(at)
    return root


def open_shards(at: Location) -> ShardSource:
    """Opens a folder that `python -m tim_jax.encode`, `tim_jax.pairs` or `write_shards` made.

    Raises:
        ValueError: `at.path` is no such folder and holds none for the part, or the folder is not finished, has files
            that changed, or is in object storage.
    """
    if not files.is_local(at.path):
        raise ValueError(f"{at.key} is {at.path!r}; ArrayRecord files are read from a local or mounted disk only")
    root = _folder_of_split(at)
    try:
        shard_files.check_sizes(root)
    except ValueError as error:
        raise ValueError(f"{at.key} is {at.path!r}; {error}") from None
    return ShardSource(str(root), at.channels, at.captions)
