"""How fast rows come: the whole pipeline against the bare decoding and resizing of the same images.

Images are JPEG crops of the embedded photographs at many aspect ratios, in class folders. Both sides read the same
files with the same number of threads and bring each image to the same bucket; the bare side does nothing else.
"""

import argparse
import io
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tim_jax import data
from tim_jax.data.fit import REDUCING_GAP
from tim_jax.data.photos import PHOTOGRAPHS

IMAGES = 240
SIDES = (300, 500)  # square root of the area of an image, in pixels
AREA = 256 * 256  # of a bucket
ROWS = 16
STEPS = 24
ROUNDS = 5


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


def bare(task: tuple[str, tuple[int, int]]) -> None:
    """Decodes a file, resizes it to cover (h, w) and crops the middle."""
    path, (h, w) = task
    with open(path, "rb") as file, Image.open(io.BytesIO(file.read())) as image:
        image = image.convert("RGB")
    scale = max(h / image.height, w / image.width)
    left, top = (image.width - w / scale) / 2, (image.height - h / scale) / 2
    box = (max(left, 0), max(top, 0), min(left + w / scale, image.width), min(top + h / scale, image.height))
    np.asarray(image.resize((w, h), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


def measure(workers: int) -> dict[str, float]:
    """{"ratio", "rows_per_second", "bare_rows_per_second", "workers"}: rates are medians over rounds in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_images(root / "images")
        source = data.open_source("folder", str(root / "tables"), path=str(root / "images"))
        sizes = data.read_sizes(source, root / "tables")
        how = data.Bucketing(area=AREA, most=8, rows=ROWS, grid=data.Grid(side=16))
        plan = data.make_plan(source, sizes, how, root / "tables")
        batches = data.global_batches(source, plan, seed=0)[:STEPS]
        tasks = []
        for step in range(STEPS):
            batch = batches[step]
            shape = tuple(batch["bucket"].tolist())
            tasks += [(str(root / "images" / source.identity(i)), shape) for i in batch["index"].tolist()]
        rates = {"rows_per_second": [], "bare_rows_per_second": []}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            stream = data.iterate(batches, 0, threads=workers, prefetch=2 * workers)
            rows = sum(len(batch["index"]) for batch in stream)
            rates["rows_per_second"].append(rows / (time.perf_counter() - began))
            began = time.perf_counter()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(bare, tasks))
            rates["bare_rows_per_second"].append(len(tasks) / (time.perf_counter() - began))
    ratio = np.median(np.divide(rates["rows_per_second"], rates["bare_rows_per_second"]))
    medians = {name: float(np.median(rate)) for name, rate in rates.items()}
    return {"ratio": float(ratio)} | medians | {"workers": workers}


def run(json_path: str | None = None, workers: int | None = None) -> dict[str, float]:
    """Prints the measurement, writes it to `json_path` if one is given, and returns it."""
    found = measure(workers or min(8, os.cpu_count() or 1))
    print(f"{'rows/s':>10}  {'bare rows/s':>12}  {'ratio':>6}  {'workers':>8}")
    print(
        f"{found['rows_per_second']:10.1f}  {found['bare_rows_per_second']:12.1f}  {found['ratio']:6.2f}  "
        f"{found['workers']:8d}"
    )
    if json_path:
        Path(json_path).write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tim_jax.bench data", description=__doc__)
    parser.add_argument("--json", help="a file to write the measurement to")
    parser.add_argument("--workers", type=int, help="threads of both sides; as many as processors, up to 8")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}; it must be at least 1")
    run(args.json, args.workers)


if __name__ == "__main__":
    main()
