"""This project's own shards: ArrayRecord files whose records are safetensors, with what the rows have in common beside.

A record holds `image`, the bytes of an image file (uint8), or `latent` (2, C, h, w), the latents of an image and of its
mirror image, or `moments` (2, 2 C, h, w), mean and log variance of both, or `pair` (2, C, h, w), float32, a model's
sample and the noise that it was made from; and, where the shards have them, `label` (1,),
`captions` (JSON as bytes), `text` (ΣL, T), bfloat16, the features of the tokens of one caption after another, whose
numbers are `lengths` (captions,), and `features` (2, rows, columns, Z) of the image and of its mirror image.
`about.json` is the manifest, `sizes.npy` (n, 2) holds heights and widths, `null.safetensors` the features of the empty
prompt and their mask. See shard_files.py for how they are written.
"""

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from tim_jax.data import shard_files
from tim_jax.data.decode import decode, header_size, pixels
from tim_jax.data.faults import BadRecord
from tim_jax.data.sources.base import Fields, Location, checked_captions, checked_label, digest
from tim_jax.data.sources.latents import latent_pair, tensors
from tim_jax.system import files


@dataclasses.dataclass(frozen=True)
class ShardSource(Fields):
    """root: the folder. channels: of the images to make, where rows are images."""

    root: str
    channels: int = 3

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        return shard_files.read_about(Path(self.root))

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """`text` (M, T) and `mask` (M,) of the empty prompt, {} where rows have no text features."""
        path = Path(self.root) / shard_files.NULL
        return safetensors.numpy.load(path.read_bytes()) if path.exists() else {}

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.load(Path(self.root) / shard_files.SIZES, mmap_mode="r")

    @functools.cached_property
    def _readers(self) -> dict[int, Any]:
        return {}

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            # No reading ahead: rows are asked for in random order.
            path = Path(self.root) / self._about["shards"][shard]["name"]
            self._readers[shard] = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        return self._readers[shard]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard["rows"] for shard in self._about["shards"]])

    @property
    def name(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:
        return self._about["num_classes"]

    @property
    def captions(self) -> bool:
        return self._about["captions"]

    @property
    def latents(self) -> bool:
        return self._about["latent_channels"] > 0

    @property
    def noise(self) -> bool:
        """Whether rows bring the noise that they were made from."""
        return self._about.get("noise", False)

    @functools.cached_property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        first = tuple(self._sizes[0].tolist())
        size = first if min(first) > 0 and bool((self._sizes == self._sizes[:1]).all()) else (None, None)
        return *size, self._about["latent_channels"] or self.channels

    def __len__(self) -> int:
        return self._about["rows"]

    def _place(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, i, "right"))
        return shard, i - (int(self._ends[shard - 1]) if shard else 0)

    def identity(self, i: int) -> str:
        shard, row = self._place(i)
        return f"{self._about['shards'][shard]['name']}[{row}]"

    def _record(self, i: int) -> dict[str, np.ndarray]:
        shard, row = self._place(i)
        if not self._reader(shard).ok():
            raise BadRecord("shard", "cannot be opened, or cut short")
        try:
            (record,) = self._reader(shard).read([row])
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadRecord("shard", str(error)[:200]) from None
        return tensors(record)

    def _checked(self, found: dict[str, np.ndarray]) -> dict[str, Any]:
        label = found["label"].item() if "label" in found and found["label"].size == 1 else None
        row = {"label": checked_label(label, self.num_classes)}
        if self.captions:
            try:
                row["captions"] = checked_captions(json.loads(found["captions"].tobytes()))
            except (KeyError, ValueError):
                raise BadRecord("caption", "none, must be a JSON list of texts") from None
        for name in ("text", "features"):
            if name in found and not np.isfinite(found[name]).all():
                raise BadRecord("not finite" if name == "text" else "features", name)
        if "text" in found:
            row["texts"] = _texts(found, len(row.get("captions", ())))
        if "features" in found:
            if found["features"].ndim != 4 or len(found["features"]) != 2:
                raise BadRecord("features", f"{found['features'].shape}, must be (2, rows, columns, width)")
            row["features"] = found["features"].astype(np.float32)
        return row

    def _latents(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        channels = self._about["latent_channels"]
        if self.noise:
            pair = latent_pair({"latent": found["pair"]} if "pair" in found else {}, channels)
            return {"image": pair["image"], "noise": pair["flipped"]}
        if not self._about["moments"]:
            return latent_pair(found, channels)
        pair = latent_pair({"latent": found["moments"]} if "moments" in found else {}, 2 * channels)
        row = {name: moments[..., :channels] for name, moments in pair.items()}
        return row | {"deviations": np.exp(0.5 * np.stack([moments[..., channels:] for moments in pair.values()]))}

    def row(self, i: int) -> dict[str, Any]:
        """Row i with an image as Pillow's."""
        found = self._record(i)
        row = self._checked(found) | {"index": int(i)}
        if self.latents:
            return row | self._latents(found)
        if "image" not in found:
            raise BadRecord("missing", "no image")
        return row | {"image": decode(found["image"].tobytes(), self.image_shape[-1])}

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        return row if self.latents else row | {"image": pixels(row["image"])}

    def header(self, i: int) -> tuple[int, int]:
        """(height, width) of row i. Raises BadRecord."""
        height, width = self._sizes[i].tolist()
        if height and width:
            return height, width
        found = self._record(i)
        return header_size(io.BytesIO(found["image"].tobytes() if "image" in found else b""))

    def fingerprint(self) -> str:
        return digest("shards", self._about, self.channels)


def _texts(found: dict[str, np.ndarray], captions: int) -> list[np.ndarray]:
    """Features (L, T) of each caption. Raises BadRecord."""
    lengths = found.get("lengths", np.zeros(0, np.int32))
    if len(lengths) != captions or found["text"].ndim != 2 or lengths.sum() != len(found["text"]):
        raise BadRecord("metadata", f"text {found['text'].shape} for {captions} captions of {lengths.tolist()} tokens")
    return np.split(found["text"], np.cumsum(lengths)[:-1])


def open_shards(at: Location) -> ShardSource:
    """The rows of a folder that `encode` or write_shards made. Raises ValueError if it is not one, is not whole, has
    files that changed, or is in object storage."""
    if not files.is_local(at.path):
        raise ValueError(f"data.path is {at.path!r}; ArrayRecord files are read from a local or mounted disk only")
    root = Path(at.root)
    try:
        shard_files.check_sizes(root)
    except ValueError as error:
        raise ValueError(f"data.path: {error}") from None
    return ShardSource(str(root), at.channels)
