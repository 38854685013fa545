"""Files of images and statistics as the published evaluations exchange them (Dhariwal & Nichol 2021, ADM).

Such an npz file holds images in arr_0, uint8 (n, h, w, 3), and their labels in arr_1; one that is written here says in
"protocol" how they were drawn. Reference batches may also hold
the moments of a larger set: mu and sigma of pool3, mu_s and sigma_s of the spatial features. Images are read and
written in parts, so that 50,000 of them need not fit in memory.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from tim_jax.evaluation.statistics import Statistics
from tim_jax.evaluation.summaries import Summary
from tim_jax.system import archives, files

IMAGES, LABELS, PROTOCOL = "arr_0", "arr_1", "protocol"
MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
PART = 256  # images that are read at a time


def write_images(
    path: Any,
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray,
    protocol: Mapping[str, Any] | None = None,
) -> None:
    """Writes a file of images and labels in one move.

    Args:
        path: the npz file; missing folders are made.
        batches: the images in order, uint8 (any number, h, w, 3).
        shape: (n, h, w, 3) of all of them together.
        labels: (n,) whole numbers.
        protocol: how they were drawn, as JSON holds it; None for nothing that is said of it.

    Raises:
        ValueError: for images of another type or shape, or another number of them.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(size) for size in shape)}
    written = 0
    with (
        files.appearing(path) as new,
        new.open("wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for batch in batches:
                if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape[1:]):
                    raise ValueError(f"images are {batch.dtype} {batch.shape}; they must be uint8 {tuple(shape)}")
                stream.write(np.ascontiguousarray(batch).tobytes())
                written += len(batch)
        with archive.open(f"{LABELS}.npy", "w") as stream:
            np.lib.format.write_array(stream, np.asarray(labels, np.int64), allow_pickle=False)
        if protocol is not None:
            with archive.open(f"{PROTOCOL}.npy", "w") as stream:
                text = json.dumps(protocol, ensure_ascii=False)
                np.lib.format.write_array(stream, np.array(text), allow_pickle=False)
        if written != shape[0]:
            raise ValueError(f"images: {written} were given; shape says {shape[0]}")


@contextlib.contextmanager
def _reading(path: Any) -> Iterator[None]:
    """Turns what reading a damaged file raises into a ValueError of one line."""
    try:
        yield
    except archives.DAMAGED as error:
        reason = str(error) if type(error) is ValueError else f"damaged or not complete ({error})"
        raise ValueError(
            f"evaluation.reference is {str(path)!r}; it must be a file of images or statistics: {reason}"
        ) from None


def names(path: Any) -> list[str]:
    """Returns the names of a file's arrays. Raises ValueError, in one line, for a file that is not npz."""
    with _reading(path), _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def image_shape(path: Any) -> tuple[int, int, int, int] | None:
    """Returns (n, h, w, 3) of a file's images, None if it has none. Raises ValueError, in one line."""
    with _reading(path), _opened(path) as archive:
        if f"{IMAGES}.npy" not in archive.namelist():
            return None
        with archive.open(f"{IMAGES}.npy") as stream:
            return _header(stream)


def read_images(path: Any) -> Iterator[np.ndarray]:
    """Yields the images of a file in order, uint8 (≤ 256, h, w, 3). Raises ValueError, in one line."""
    with _reading(path), _opened(path) as archive, archive.open(f"{IMAGES}.npy") as stream:
        count, *shape = _header(stream)
        for first in range(0, count, PART):
            size = (min(PART, count - first), *shape)
            data = stream.read(int(np.prod(size)))
            if len(data) != int(np.prod(size)):
                raise EOFError("images are missing")
            yield np.frombuffer(data, np.uint8).reshape(size)


def read_moments(path: Any) -> Summary:
    """Returns the summary of the moments that a file holds, {} if it holds none. Raises ValueError, in one line."""
    summary: Summary = {}
    with _reading(path), _opened(path):  # which looks at what it claims to hold
        pass
    with _reading(path), epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
        for output, (mean, covariance) in MOMENTS.items():
            if mean in stored.files and covariance in stored.files:
                mu, sigma = np.asarray(stored[mean], np.float64), np.asarray(stored[covariance], np.float64)
                if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
                    raise ValueError(f"{mean} is {mu.shape} and {covariance} {sigma.shape}, must be (d,) and (d, d)")
                # The file does not say of how many images: 2 makes scatter and covariance the same.
                summary[output, "moments"] = Statistics(2, mu, sigma)
    return summary


def digest(path: Any) -> str:
    """Returns a short digest of a file's content, 16 hexadecimal digits."""
    found = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while part := file.read(2**22):
            found.update(part)
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[zipfile.ZipFile]:
    with epath.Path(path).open("rb") as file:
        archives.check(file)
        with zipfile.ZipFile(file) as archive:
            yield archive


def _header(stream: Any) -> tuple[int, int, int, int]:
    """Reads the header of arr_0 and returns its shape."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"{IMAGES} is {dtype} {shape}, must be uint8 (n, h, w, 3)")
    return shape
