"""python -m tim_jax.encode --config=configs/photos_t2i.py --out=DIR [--rows-per-shard=1000] [--config.…=…]
python -m tim_jax.encode --verify=DIR

Encodes every row of a configuration's source once, by its frozen parts, to shards in DIR. Train on them with
--config.data.source=shards --config.data.path=DIR --config.data.encode=False. Stopped or killed, the same command goes
on. With several processes each makes a share of the shards.
"""

import argparse
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from tim_jax import cluster, compilation_cache, data, lock
from tim_jax.command_line import Parser, failures, load_config, user_errors
from tim_jax.config import Run
from tim_jax.data import inspect, shard_files
from tim_jax.data.faults import FEWEST_ROWS, REASONS, check_share
from tim_jax.encode import estimate
from tim_jax.encode.rows import RowEncoder
from tim_jax.encode.settings import compare, settings_of
from tim_jax.encode.work import Reading, Work, open_work, run_here
from tim_jax.training.preemption import Stop

AHEAD = 8  # rows read ahead for each batch that training would


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.encode", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", help="a configuration that encodes its rows, such as configs/photos_t2i.py")
    parser.add_argument("--out", help="the folder that shards are written to")
    parser.add_argument("--rows-per-shard", type=int, default=shard_files.ROWS_PER_SHARD, help="rows of the source")
    parser.add_argument("--verify", help="a folder of shards whose checksums are to be compared; nothing is encoded")
    args, overrides = parser.parse(argv)
    with user_errors():
        if args.verify:
            return verify(Path(args.verify))
        for name in ("config", "out"):
            if not getattr(args, name):
                raise ValueError(f"--{name}: missing; see --help")
        shard_files.check_local("--out", args.out)
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop(), contextlib.ExitStack() as stack:
        folder, lead = Path(args.out).expanduser(), jax.process_index() == 0
        with user_errors():
            run = run_here(load_config(args.config, overrides))
            kept = compilation_cache.use(run.config.training.compilation_cache)
            work = open_work(run, args.rows_per_shard)
            encoder, settings = RowEncoder(run, work), settings_of(run, work)
            begun = compare(folder, settings)
            if begun and finished(folder):
                return say(f"{folder}: was encoded before; nothing is left to do")
            check_room(run, work, encoder, folder)
            stack.enter_context(lock.locked(folder, lead, jax.process_count(), "--out"))
            if lead and not begun:
                with shard_files.appearing(folder / shard_files.SETTINGS) as new:
                    new.write_text(json.dumps(settings, indent=1) + "\n")
        say(kept)
        with user_errors(data.TooManyBadRecords), failures(OSError):
            make_shards(run, work, encoder, folder)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("all shards are written")
            if lead:
                about = shard_files.finish(folder, work.shards, about_rows(run, work), encoder.null)
                say(summary(about, folder))


def say(line: str) -> None:
    """Tells it once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def finished(folder: Path) -> bool:
    """Whether all shards are there."""
    try:
        return bool(shard_files.check_sizes(folder))
    except ValueError:
        return False


def check_room(run: Run, work: Work, encoder: RowEncoder, folder: Path) -> None:
    """Tells what will be made. Raises ValueError, on all processes, if the disk has no room for it."""
    lacking = np.zeros(1, np.int64)
    if jax.process_index() == 0:
        size = estimate.size_in_bytes(run, work, encoder)
        records = (shard_files.recorded(folder, shard) for shard in range(work.shards))
        there, free = sum(record["bytes"] for record in records if record), estimate.free(folder)
        say(inspect.summary(work.source, work.plan))
        say(
            f"{work.plan.images():,} rows in {work.shards:,} shards, about {estimate.told(size)}, of which "
            f"{estimate.told(there)} are there; free: {estimate.told(free)}"
        )
        lacking[:] = max(size - there - free, 0)
    lacking = int(cluster.summed(lacking)[0])
    if lacking:
        raise ValueError(f"--out={folder}: the disk lacks about {estimate.told(lacking)} for all shards; give another")


def make_shards(run: Run, work: Work, encoder: RowEncoder, folder: Path) -> None:
    """Makes this process's share of the shards, but for those that are there and right.

    Raises TooManyBadRecords, on all processes after the same shard.
    """
    index, count = jax.process_index(), jax.process_count()
    mine = range(index, work.shards, count)
    checked = tqdm(mine, desc="checking shards", unit=" shards", disable=index > 0, leave=False)
    kept = {shard: bad_of(record) for shard in checked if (record := shard_files.kept(folder, shard))}
    left = [shard for shard in mine if shard not in kept]
    rows = np.concatenate([work.rows(shard) for shard in left] or [np.zeros(0, np.int64)])
    everything, counts = sum(len(work.rows(shard)) for shard in mine), np.zeros(1 + len(REASONS), np.int64)
    stream = read(run, work, rows)
    whose = f"encoding, 1 of {count} processes" if count > 1 else "encoding"
    with tqdm(total=everything, initial=everything - len(rows), desc=whose, unit=" rows", disable=index > 0) as bar:
        for first in range(0, work.shards, count):
            shard = first + index
            if shard in kept:
                counts += kept[shard]
            elif shard in mine:
                made, bad = encoder(told(itertools.islice(stream, len(work.rows(shard))), bar))
                counts += bad_of(shard_files.write_shard(folder, shard, made, bad))
            drawn, *bad = cluster.summed(counts).tolist()
            found = dict(zip(REASONS, bad, strict=True))
            check_share(found, max(drawn, FEWEST_ROWS), run.data.max_bad_share, f"{folder}/rows-*.json")


def read(run: Run, work: Work, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """The given rows of the source as `Reading` has them, read ahead."""
    loader = run.config.loader
    dataset = grain.MapDataset.range(len(rows)).map(Reading.of(work, rows))
    return data.iterate(dataset, 0, loader.threads, AHEAD * loader.prefetch, loader.workers) if len(rows) else iter(())


def told(rows: Iterable[dict[str, Any]], bar: tqdm) -> Iterator[dict[str, Any]]:
    """The rows, each of which the progress bar counts."""
    for row in rows:
        yield row
        bar.update()


def bad_of(record: dict[str, Any]) -> np.ndarray:
    """(rows of the source, those that are bad by each of REASONS) of a shard."""
    counts = Counter(line["reason"] for line in record["bad"])
    return np.array([record["rows"] + len(record["bad"])] + [counts[reason] for reason in REASONS], np.int64)


def about_rows(run: Run, work: Work) -> dict[str, Any]:
    """What `about.json` says of all rows."""
    latents = bool(run.codecs.autoencoder)
    return {
        "num_classes": work.source.num_classes,
        "captions": bool(getattr(work.source, "captions", False)),
        "latent_channels": run.image_shape[-1] if latents else 0,
        "moments": latents and run.codecs.latents == "sample",
    }


def summary(about: dict[str, Any], folder: Path) -> str:
    """What was made, in a line or two."""
    size = estimate.told(sum(shard["bytes"] for shard in about["shards"]))
    line = f"{about['rows']:,} rows in {len(about['shards']):,} shards, {size}: train with --config.data.source=shards "
    line += f"--config.data.path={folder} --config.data.encode=False"
    bad = ", ".join(f"{reason} {count:,}" for reason, count in about["bad"].items())
    return line + (f"\nnot used: {bad}; listed in {folder / shard_files.BAD}" if bad else "")


def verify(folder: Path) -> None:
    """Compares all checksums. Raises ValueError."""
    about = shard_files.verify(folder.expanduser())
    print(f"{folder}: {about['rows']:,} rows in {len(about['shards']):,} shards, all as they were encoded")


if __name__ == "__main__":
    main()
