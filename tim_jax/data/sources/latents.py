"""The published layout of latents: class folders of safetensors files.

A file holds `latent` (2, C, h, w), that of the image and that of its mirror image, and `label`.
"""

import dataclasses
import json
import struct

import ml_dtypes
import numpy as np
import safetensors

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.class_folders import index_folder
from tim_jax.data.sources.base import Example, Location, checked_label
from tim_jax.data.sources.folder import FilesInClassFolders

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
    """The latents of an image and of its mirror image.

    Args:
        found: the arrays of a file, among them "latent" (2, C, h, w) of any float type.
        channels: the C that it must have.

    Returns:
        {"image", "flipped"}, float32 (h, w, C) each.

    Raises:
        BadRecord: there is no such array, it has another shape, or a value is not finite.
    """
    latent = found.get("latent")
    if latent is None:
        raise BadRecord("metadata", f"no 'latent' among {', '.join(sorted(found))}")
    if latent.ndim != 4 or latent.shape[0] != 2 or latent.shape[1] != channels:
        raise BadRecord("channels", f"latent is {latent.shape}, must be (2, {channels}, h, w)")
    latent = np.moveaxis(latent.astype(np.float32), 1, -1)
    if not np.isfinite(latent).all():
        raise BadRecord("not finite", "latent")
    return {"image": latent[0], "flipped": latent[1]}


@dataclasses.dataclass(frozen=True)
class LatentSource(FilesInClassFolders):
    """Latents in class folders."""

    @property
    def latents(self) -> bool:
        return True

    def read(self, i: int) -> Example:
        found = tensors(self.file_bytes(i))
        pair = latent_pair(found, self.channels)
        label = np.asarray(found.get("label", ()))
        if label.size != 1 or label.dtype.kind not in "iu":
            raise BadRecord("label", f"{label.dtype} of shape {label.shape}, must be one whole number")
        return pair | {"label": checked_label(label.item(), self.num_classes), "index": int(i)}

    def header(self, i: int) -> tuple[int, int]:
        shape = header_shape(self.file_bytes(i, 2**16))
        if len(shape) != 4 or shape[0] != 2 or shape[1] != self.channels:
            raise BadRecord("channels", f"latent is {shape}, must be (2, {self.channels}, h, w)")
        return shape[2], shape[3]


def header_shape(encoded: bytes) -> tuple[int, ...]:
    """The shape of `latent` by the first bytes of a safetensors file. Raises BadRecord."""
    if not encoded:
        raise BadRecord("empty")
    try:
        (length,) = struct.unpack("<Q", encoded[:8])
        return tuple(json.loads(encoded[8 : 8 + length])["latent"]["shape"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadRecord("unreadable", f"no safetensors header: {error}") from None


def open_latents(at: Location) -> LatentSource:
    """Opens the latents in the class folders of `at.path`, all with `at.channels` channels.

    Raises:
        ValueError: there are no .safetensors files in class folders.
    """
    return LatentSource(*index_folder(at, (".safetensors",)), at.channels)
