"""The speed of the input pipeline, against bare decoding and resizing of the same images.

Images are JPEG crops of the embedded photographs at many aspect ratios. Both sides read the same images with the same
number of threads and fit each of them to the same bucket; the bare side does nothing else, and reads them from single
files, whatever the layout that the pipeline reads them from.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tim_jax import data
from tim_jax.data.fit import REDUCING_GAP
from tim_jax.data.sources.photos import PHOTOGRAPHS

IMAGES = 240
SIDES = (300, 500)  # square root of the area of an image, in pixels
AREA = 256 * 256  # of a bucket
BATCH = 16  # images in a batch
STEPS = 48  # batches in a round
ROUNDS = 5  # of both sides in turn
COLUMNS = (
    ("source", "{source}"),
    ("workers", "{workers}"),
    ("images/s", "{rows_per_second:.1f}"),
    ("bare images/s", "{bare_rows_per_second:.1f}"),
    ("ratio", "{ratio:.3f}"),
    ("spread of the ratio", "{spread:.3f}"),
)


def write_images(folder: Path) -> None:
    """Writes IMAGES crops into class folders."""
    photographs = [(name, Image.fromarray(load())) for name, (load, _) in PHOTOGRAPHS.items()]
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        name, photograph = photographs[i % len(photographs)]
        side, aspect = np.exp(rng.uniform(*np.log(SIDES))), np.exp(rng.uniform(-0.7, 0.7))
        path = folder / name / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = round(side / np.sqrt(aspect)), round(side * np.sqrt(aspect))
        photograph.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0).save(path, "JPEG", quality=90)


def write_tar(files: list[Path], folder: Path) -> None:
    """Writes the files into a tar shard."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, file in enumerate(files):
            tar.add(file, f"{i:06}{file.suffix}")


def write_parquet(files: list[Path], folder: Path) -> None:
    """Writes the files as a data hub does: structs in row groups of a thousand."""
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), folder / "0.parquet", row_group_size=1000)


# Layouts: the function that writes the files of class folders in another one.
LAYOUTS: dict[str, Callable[[list[Path], Path], None] | None] = {
    "folder": None,
    "tar": write_tar,
    "parquet": write_parquet,
}


def bare(task: tuple[str, tuple[int, int]]) -> None:
    """Decodes the file of a task (path, (h, w)), resizes it to cover h × w pixels and crops the middle."""
    path, (h, w) = task
    with open(path, "rb") as file, Image.open(io.BytesIO(file.read())) as image:
        colours = image.convert("RGB")
    scale = max(h / colours.height, w / colours.width)
    left, top = (colours.width - w / scale) / 2, (colours.height - h / scale) / 2
    box = (max(left, 0), max(top, 0), min(left + w / scale, colours.width), min(top + h / scale, colours.height))
    np.asarray(colours.resize((w, h), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


def measure(workers: int, layout: str = "folder", rounds: int = ROUNDS) -> dict[str, Any]:
    """Measures both sides with so many threads each.

    Args:
        workers: threads.
        layout: a key of LAYOUTS.
        rounds: of both sides in turn.

    Returns:
        {"ratio", "spread", "rows_per_second", "bare_rows_per_second", "workers", "source"}: medians over rounds, of
        images per second and of their ratio, whose spread is the largest less the smallest.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_images(root / "images")
        files, path = sorted((root / "images").glob("*/*")), root / "images"
        if write := LAYOUTS[layout]:
            path = root / layout
            path.mkdir()
            write(files, path)
        source = data.open_source(layout, str(root / "tables"), path=str(path))
        sizes = data.read_sizes(source, root / "tables")
        how = data.Bucketing(area=AREA, max_buckets=8, batch_size=BATCH, grid=data.Grid(side=16))
        plan = data.make_plan(source, sizes, how, root / "tables")
        batches = data.global_batches(source, plan, seed=0)[:STEPS]
        tasks = []
        for step in range(STEPS):
            batch = batches[step]
            shape = tuple(batch["bucket"].tolist())
            tasks += [(str(files[i]), shape) for i in batch["index"].tolist()]
        rates: dict[str, list[float]] = {"rows_per_second": [], "bare_rows_per_second": []}
        for _ in range(rounds):
            began = time.perf_counter()
            stream = data.iterate(batches, 0, threads=workers, prefetch=2 * workers)
            images = sum(len(batch["index"]) for batch in stream)
            rates["rows_per_second"].append(images / (time.perf_counter() - began))
            began = time.perf_counter()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(bare, tasks))
            rates["bare_rows_per_second"].append(len(tasks) / (time.perf_counter() - began))
    ratios = np.divide(rates["rows_per_second"], rates["bare_rows_per_second"])
    medians = {name: float(np.median(rate)) for name, rate in rates.items()}
    about = {"source": layout, "workers": workers}
    return about | {"ratio": float(np.median(ratios)), "spread": float(np.ptp(ratios))} | medians


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one row. Raises ValueError for no workers."""
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1")
    return [measure(args.workers, args.source)]
