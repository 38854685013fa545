"""The published layout of latents: class folders of safetensors files with `latent` (2, C, h, w), that of the image and
that of its mirror image, and `label`."""

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from tim_jax.data.faults import BadRecord
from tim_jax.data.sources.base import Location, checked_label, digest
from tim_jax.data.sources.folder import InClassFolders, index_folder

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_}
DTYPES |= {f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)}


def tensors(encoded: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises BadRecord."""
    if not encoded:
        raise BadRecord("empty")
    try:
        found = safetensors.deserialize(encoded)
        return {name: np.frombuffer(a["data"], DTYPES[a["dtype"]]).reshape(a["shape"]) for name, a in found}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "truncated" if "incomplete" in str(error).lower() else "unreadable"
        raise BadRecord(reason, str(error)[:200]) from None


def latent_pair(found: dict[str, np.ndarray], channels: int) -> dict[str, np.ndarray]:
    """{"image", "flipped"}: float32 (h, w, C) each, from `latent` (2, C, h, w). Raises BadRecord."""
    latent = found.get("latent")
    if latent is None:
        raise BadRecord("metadata", f"no 'latent' among {', '.join(sorted(found))}")
    if latent.ndim != 4 or latent.shape[0] != 2 or latent.shape[1] != channels:
        raise BadRecord("channels", f"latent is {latent.shape}, must be (2, {channels}, h, w)")
    latent = np.moveaxis(latent.astype(np.float32), 1, -1)
    if not np.isfinite(latent).all():
        raise BadRecord("not finite", "latent")
    return {"image": latent[0], "flipped": latent[1]}


class LatentSource(InClassFolders):
    """Latents in class folders."""

    captions = False
    latents = True

    def __getitem__(self, i: int) -> dict[str, Any]:
        found = tensors(self.read(i))
        pair = latent_pair(found, self.channels)
        label = np.asarray(found.get("label", ()))
        if label.size != 1 or label.dtype.kind not in "iu":
            raise BadRecord("label", f"{label.dtype} of shape {label.shape}, must be one whole number")
        return pair | {"label": checked_label(label.item(), self.num_classes), "index": int(i)}

    def header(self, i: int) -> tuple[int, int]:
        """(height, width) of the latent of row i, from the file's header. Raises BadRecord."""
        shape = header_shape(self.read(i, 2**16))
        if len(shape) != 4 or shape[0] != 2 or shape[1] != self.channels:
            raise BadRecord("channels", f"latent is {shape}, must be (2, {self.channels}, h, w)")
        return shape[2], shape[3]

    def fingerprint(self) -> str:
        return digest("latents", self.root, self._table.meta["state"], len(self), self.channels)


def header_shape(encoded: bytes) -> tuple[int, ...]:
    """The shape of `latent` from the first bytes of a safetensors file. Raises BadRecord."""
    if not encoded:
        raise BadRecord("empty")
    try:
        (length,) = struct.unpack("<Q", encoded[:8])
        return tuple(json.loads(encoded[8 : 8 + length])["latent"]["shape"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadRecord("unreadable", f"no safetensors header: {error}") from None


def open_latents(at: Location) -> LatentSource:
    """The latents in the class folders of `path`, all with `channels` channels. Raises ValueError if there are none."""
    index = index_folder(at.root, at.directory, (".safetensors",))
    source = LatentSource(str(at.root), str(index), at.channels)
    if not len(source):
        raise ValueError(f"data.path is {at.path!r}; its class folders hold no .safetensors files")
    return source
