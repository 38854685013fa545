"""This project's own shards: ArrayRecord files whose records are safetensors, with what the rows have in common beside.

A record holds `image`, the bytes of an image file (uint8), or `latent` (2, C, h, w), the latents of an image and of its
mirror image; and, where the shards have them, `label` (1,), `captions` (JSON as bytes), `text` (M, T) with `mask` (M,),
`features` (rows, columns, Z). `about.json` says what they have; `null.safetensors` holds the features of the empty
prompt and their mask, once.
"""

import dataclasses
import functools
import io
import json
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module
from etils import epath

from tim_jax import files
from tim_jax.data.decode import decode, header_size, pixels
from tim_jax.data.faults import BadRecord
from tim_jax.data.latents import latent_pair, tensors
from tim_jax.data.sources import Fields, Location, checked_captions, checked_label, digest
from tim_jax.data.tar import shards_of, state_of

ENDING = ".array_record"


def pack(row: dict[str, Any]) -> bytes:
    """A row as a record. row: `image` bytes or `latent` array, and what else the head of this file names."""
    arrays = {name: np.ascontiguousarray(value) for name, value in row.items() if isinstance(value, np.ndarray)}
    if "image" in row:
        arrays["image"] = np.frombuffer(row["image"], np.uint8)
    if "captions" in row:
        arrays["captions"] = np.frombuffer(json.dumps(list(row["captions"])).encode(), np.uint8)
    if "label" in row:
        arrays["label"] = np.array([row["label"]], np.int64)
    return safetensors.numpy.save(arrays)


def write_shards(
    folder: Any,
    rows: Iterable[dict[str, Any]],
    num_classes: int = 0,
    null: dict[str, np.ndarray] | None = None,
    rows_per_shard: int = 1000,
) -> None:
    """Writes rows as shards into a new folder, which appears when all is written.

    null: `text` (M, T) and `mask` (M,) of the empty prompt. Raises ValueError if the folder exists or there is no
    row, or for a folder in object storage.
    """
    if not files.is_local(folder):
        raise ValueError(f"folder {str(folder)!r}: ArrayRecord files are written to a local or mounted disk only")
    folder = epath.Path(folder)
    if folder.exists():
        raise ValueError(f"folder {str(folder)!r}: exists, must be new")
    unfinished = folder.parent / f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    writer, count, about = None, 0, None
    try:
        for row in rows:
            if count % rows_per_shard == 0:
                if writer is not None:
                    writer.close()
                path = unfinished / f"rows-{count // rows_per_shard:05d}{ENDING}"
                writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            if about is None:
                channels = int(row["latent"].shape[1]) if "latent" in row else 0
                about = {"num_classes": num_classes, "captions": "captions" in row, "latent_channels": channels}
            writer.write(pack(row))
            count += 1
        if writer is None:
            raise ValueError(f"folder {str(folder)!r}: no rows to write, must have at least one")
        writer.close()
        if null:
            (unfinished / "null.safetensors").write_bytes(safetensors.numpy.save(null))
        (unfinished / "about.json").write_text(json.dumps(about))
        unfinished.rename(folder)
    finally:
        if unfinished.exists():
            unfinished.rmtree()


@dataclasses.dataclass(frozen=True)
class ShardSource(Fields):
    """root: the folder. channels: of the images to make, where rows are images. A shard that cannot be opened, or is
    cut short, counts as one bad row."""

    root: str
    channels: int = 3

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        path = epath.Path(self.root) / "about.json"
        try:
            about = json.loads(path.read_text())
            return {name: about[name] for name in ("num_classes", "captions", "latent_channels")}
        except (OSError, ValueError, KeyError) as error:
            message = f"data.path is {self.root!r}; its about.json must say what its rows have ({error})"
            raise ValueError(message) from None

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """`text` (M, T) and `mask` (M,) of the empty prompt, {} where rows have no text features."""
        path = epath.Path(self.root) / "null.safetensors"
        return safetensors.numpy.load(path.read_bytes()) if path.exists() else {}

    @functools.cached_property
    def _shards(self) -> list[epath.Path]:
        return shards_of(epath.Path(self.root), (ENDING,))

    @functools.cached_property
    def _readers(self) -> list[Any]:
        # No reading ahead: rows are asked for in random order.
        options = "readahead_buffer_size:0"
        return [array_record_module.ArrayRecordReader(str(path), options) for path in self._shards]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([reader.num_records() if reader.ok() else 1 for reader in self._readers])

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

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
    def image_shape(self) -> tuple[None, None, int]:
        return None, None, self._about["latent_channels"] or self.channels

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, i, "right"))
        return shard, i - (int(self._ends[shard - 1]) if shard else 0)

    def identity(self, i: int) -> str:
        shard, row = self._place(i)
        return f"{self._shards[shard].name}[{row}]"

    def _record(self, i: int) -> dict[str, np.ndarray]:
        shard, row = self._place(i)
        if not self._readers[shard].ok():
            raise BadRecord("shard", "cannot be opened, or cut short")
        try:
            (record,) = self._readers[shard].read([row])
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
            if name in found and not np.isfinite(found[name].astype(np.float32)).all():
                raise BadRecord("not finite" if name == "text" else "features", name)
        extra = {name: found[name].astype(np.float32) for name in ("text", "features") if name in found}
        return row | extra | ({"mask": found["mask"].astype(bool)} if "mask" in found else {})

    def row(self, i: int) -> dict[str, Any]:
        """Row i with an image as Pillow's."""
        found = self._record(i)
        row = self._checked(found) | {"index": int(i)}
        if self._about["latent_channels"]:
            return row | latent_pair(found, self.image_shape[-1])
        if "image" not in found:
            raise BadRecord("missing", "no image")
        return row | {"image": decode(found["image"].tobytes(), self.image_shape[-1])}

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        return row if "flipped" in row else row | {"image": pixels(row["image"])}

    def header(self, i: int) -> tuple[int, int]:
        """(height, width) of row i. Raises BadRecord."""
        found = self._record(i)
        self._checked(found)
        if self._about["latent_channels"]:
            return latent_pair(found, self.image_shape[-1])["image"].shape[:2]
        if "image" not in found:
            raise BadRecord("missing", "no image")
        if not found["image"].size:
            raise BadRecord("empty")
        return header_size(io.BytesIO(found["image"].tobytes()))

    def fingerprint(self) -> str:
        return digest("shards", self.root, state_of(self._shards), self._about, self.channels)


def open_shards(at: Location) -> ShardSource:
    """The rows of a folder that write_shards made. Raises ValueError if it is not one, or in object storage."""
    if not files.is_local(at.path):
        raise ValueError(f"data.path is {at.path!r}; ArrayRecord files are read from a local or mounted disk only")
    source = ShardSource(str(at.root), at.channels)
    if not len(source):
        raise ValueError(f"data.path is {at.path!r}; its shards hold no rows, must hold some")
    source.captions  # about.json is there and right
    return source
