"""The published layout of latents: class folders of safetensors files.

A file holds `latent` (2, C, h, w), that of the image and that of its mirror image, and `label`, a whole number that the
published preprocessing writes as a float32 scalar. The images themselves may lie beside them: that of
LATENTS/n01440764/n01440764_18.safetensors is IMAGES/n01440764/n01440764_18.JPEG, whatever its ending.
"""

import dataclasses
import functools
import json
import struct

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.class_folders import index_folder
from tim_jax.data.decode import ENDINGS, decode
from tim_jax.data.sources.base import Example, Location, checked_label, digest, read_file
from tim_jax.data.sources.folder import FilesInClassFolders
from tim_jax.system import paths

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_}
ENDING = ".safetensors"
HEADER_BYTES = 2**12  # as many as headers have, and a small part of a file: all of ImageNet's are looked at
IMAGE_ENDINGS = (".JPEG", *ENDINGS, *map(str.upper, ENDINGS))  # ImageNet's own first

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
    """Latents in class folders.

    Attributes:
        max_classes: labels lie below it, or below the number of class folders where that is more: the files say which
            class they are of, so that some of the folders will do.
        images: the folder of the images that the latents were made of, in the same class folders; "" reads none.
    """

    FORMER_KIND = "latents"

    max_classes: int = 0
    images: str = ""

    @property
    def latents(self) -> bool:
        return True

    def read(self, i: int) -> Example:
        found = tensors(self.file_bytes(i))
        pair = latent_pair(found, self.channels)
        label = np.asarray(found.get("label", ()))
        if label.size != 1 or label.dtype.kind not in "iuf":
            raise BadRecord("label", f"{label.dtype} of shape {label.shape}, must be one whole number")
        classes = max(self.num_classes, self.max_classes)
        example = pair | {"label": checked_label(label.item(), classes), "index": int(i)}
        return example | {"original": decode(self.original_bytes(i), 3)} if self.images else example

    def original_bytes(self, i: int) -> bytes:
        """The bytes of the image file that latent i was made of. Raises BadRecord."""
        stem = epath.Path(self.images) / self.identity(i)[: -len(ENDING)]
        for ending in dict.fromkeys((self._usual.get("ending", IMAGE_ENDINGS[0]), *IMAGE_ENDINGS)):
            if (path := stem.parent / f"{stem.name}{ending}").exists():
                self._usual["ending"] = ending
                return read_file(path)
        raise BadRecord("missing", f"no image {stem}.*")

    @functools.cached_property
    def _usual(self) -> dict[str, str]:
        """The ending of the image that was read last, which most of them have."""
        return {}

    def header(self, i: int) -> tuple[int, int]:
        start = self.file_bytes(i, HEADER_BYTES)
        needed = min(8 + int.from_bytes(start[:8], "little"), 2**16)
        shape = header_shape(start if needed <= len(start) else self.file_bytes(i, needed))
        if len(shape) != 4 or shape[0] != 2 or shape[1] != self.channels:
            raise BadRecord("channels", f"latent is {shape}, must be (2, {self.channels}, h, w)")
        return shape[2], shape[3]

    @functools.cached_property
    def _fingerprint(self) -> str:
        files = super()._fingerprint
        return digest(files, self.images) if self.images else files


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
        ValueError: there are no .safetensors files in class folders, or the first of them has no image in `at.images`.
    """
    root, index = index_folder(at, (ENDING,))
    if not at.images:
        return LatentSource(root, index, at.channels, at.num_classes)
    images = paths.given(at.images, "data.images") / epath.Path(root).relative_to(at.root)
    source = LatentSource(root, index, at.channels, at.num_classes, str(images))
    try:
        source.original_bytes(0)
    except BadRecord:
        raise ValueError(
            f"data.images is {at.images!r}; it must hold the images of {at.path} in the same folders, and has none for "
            f"{source.identity(0)}"
        ) from None
    return source
