"""Folders of shards that a command makes, each process its share: what tim_jax.encode and tim_jax.pairs have in common.

Stopped or killed, the same command goes on: shards that are there and right stay, and all others are made.
"""

import argparse
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from tim_jax import data
from tim_jax.config import identity
from tim_jax.config.keys import flatten, nested
from tim_jax.config.renames import renamed
from tim_jax.data import shard_files
from tim_jax.data.bad_records import MIN_EXAMPLES, REASONS, check_share
from tim_jax.runs.workdir import restored, to_json
from tim_jax.system import cluster, lock, paths
from tim_jax.system.progress import Bar
from tim_jax.system.user_errors import failures, user_errors
from tim_jax.training.preemption import Stop

Row = dict[str, Any]


class Job(Protocol):
    """What shards are made of."""

    @property
    def doing(self) -> str:
        """What is done to examples, to be shown beside progress, such as "encoding"."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that the bytes of the shards depend on, as JSON has it."""
        ...

    @property
    def former(self) -> Mapping[str, Any]:
        """What earlier versions recorded in place of settings, by flat names, such as "weights.checkpoint"."""
        ...

    @property
    def counts(self) -> Sequence[int]:
        """How many examples each shard is made of, bad records included."""
        ...

    @property
    def counted_by(self) -> str:
        """What sets the number of examples, as it is typed, such as "--examples=100"."""
        ...

    @property
    def max_bad_share(self) -> float:
        """The largest share of examples that cannot be used."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """What about.json says of all examples."""
        ...

    @property
    def null(self) -> dict[str, np.ndarray]:
        """Features and mask of the empty prompt; {} without texts."""
        ...

    @property
    def train_with(self) -> str:
        """The argument that training on the shards needs."""
        ...

    def size_in_bytes(self) -> int:
        """About how many bytes all shards have."""
        ...

    def make(self, shards: Sequence[int], progress: Callable[[], Any]) -> Iterator[tuple[list[Row], list[Row]]]:
        """Makes one shard after another.

        Args:
            shards: their numbers.
            progress: called after every example.

        Yields:
            The shard's examples as `shard_files.pack` takes them, and its lines of bad records.
        """
        ...


def execute(args: argparse.Namespace, open_job: Callable[[], Job]) -> None:
    """Makes shards, or verifies those that are there.

    Args:
        args: the arguments of the command, as `shard_arguments.check` has checked them.
        open_job: returns what is to be made; raises ValueError for mistakes of the user.
    """
    with user_errors():
        if args.verify is not None:
            folder = Path(paths.given(args.verify, "--verify", ()))
            try:
                return verify(folder)
            except ValueError as error:
                raise ValueError(f"--verify is {args.verify!r}; it must be whole: {error}") from None
        shard_files.check_local("--out", args.out)
        folder = Path(paths.given(args.out, "--out", ()))
        if not finished(folder):
            paths.check_folder(folder, "--out")
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop(lambda: "shards that are finished stay"):
        with user_errors():
            job = open_job()
        run(job, folder)


def run(job: Job, folder: Path) -> None:
    """Makes all shards of a folder, or the rest of them, and prints what there is.

    Raises:
        SystemExit: with code 2 if the folder holds something else or too many records are bad, with code 1 if a file
            cannot be written.
    """
    lead = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with user_errors():
            begun = compare(folder, job.settings, job.former)
            if begun and finished(folder):
                return print_once(f"{folder}: was made before; nothing is left to do")
            check_room(job, folder)
            stack.enter_context(lock.locked(folder, lead, jax.process_count(), "--out"))
            begun = compare(folder, job.settings, job.former)  # again: the folder may have been another's first
            if lead and not begun:
                with shard_files.appearing(folder / shard_files.SETTINGS) as new:
                    new.write_text(json.dumps(job.settings, indent=1) + "\n")
        with user_errors(data.TooManyBadRecords), failures(OSError):
            make_shards(job, folder)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("all shards are written")
            if lead:
                with user_errors():
                    about = shard_files.finish(folder, len(job.counts), job.about, job.null)
                print_once(summary(job, about, folder))


def print_once(line: str) -> None:
    """Prints a line once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def compare(folder: Path, settings: dict[str, Any], former: Mapping[str, Any] = {}) -> bool:
    """Compares the settings with those that a folder of shards was begun with.

    Args:
        folder: of the shards.
        settings: today's.
        former: what earlier versions recorded in place of some of them, by flat names.

    Returns:
        Whether the folder was begun before.

    Raises:
        ValueError: naming the first setting that differs, or what else the folder holds.
    """
    path = folder / shard_files.SETTINGS
    try:
        before = _renamed(json.loads(path.read_bytes()), folder)
    except FileNotFoundError:
        others = [file.name for file in sorted(folder.iterdir())] if folder.is_dir() else []
        others = [name for name in others if name != lock.NAME and not name.startswith(".")]
        if others or folder.exists() and not folder.is_dir():
            raise ValueError(f"--out={folder}: holds {others[0] if others else 'a file'}; give a new folder") from None
        return False
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"--out={folder}: its {path.name} cannot be read ({error}); give a new folder") from None
    now = flatten(settings)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) not in (now.get(key), former.get(key, now.get(key))):
            raise ValueError(
                f"--out={folder}: was begun with {key} {before.get(key)!r}, and now it is {now.get(key)!r}: go on with "
                "what it was, or give a new folder"
            )
    return True


def _renamed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recorded settings of a folder, flat, with the keys of configurations as they would be recorded today."""
    of_run = identity.of(to_json(restored(nested(settings.pop("run")), folder))) if "run" in settings else {}
    of_run = {f"run.{key}": value for key, value in of_run.items()}
    sampling = renamed({f"sampling.{key}": value for key, value in settings.pop("sampling", {}).items()})
    return flatten(settings) | of_run | sampling


def finished(folder: Path) -> bool:
    """Whether all shards are there."""
    try:
        return bool(shard_files.check_sizes(folder))
    except ValueError:
        return False


def check_room(job: Job, folder: Path) -> None:
    """Prints what will be made. Raises ValueError, on all processes, if the disk has no room for it."""
    lacking = np.zeros(1, np.int64)  # bytes
    if jax.process_index() == 0:
        size, shards = job.size_in_bytes(), len(job.counts)
        records = (shard_files.read_record(folder, shard) for shard in range(shards))
        there, left = sum(record["bytes"] for record in records if record), free(folder)
        print_once(
            f"{sum(job.counts):,} examples in {shards:,} shards, about {in_words(size)}, of which {in_words(there)} "
            f"are there; free: {in_words(left)}"
        )
        lacking[:] = max(size - there - left, 0)
    missing = int(cluster.summed(lacking)[0])
    if missing:
        raise ValueError(
            f"--out={folder}: the disk lacks about {in_words(missing)} for all shards of {job.counted_by}; give another"
        )


def make_shards(job: Job, folder: Path) -> None:
    """Makes this process's share of the shards, but for those that are there and right.

    Raises:
        TooManyBadRecords: on all processes after the same shard.
    """
    index, count = jax.process_index(), jax.process_count()
    mine = range(index, len(job.counts), count)
    checked = Bar(mine, desc="checking shards", unit=" shards", disable=index > 0, leave=False)
    records = ((shard, shard_files.read_verified_record(folder, shard)) for shard in checked)
    complete = {shard: counts_of(record) for shard, record in records if record}
    left = [shard for shard in mine if shard not in complete]
    everything, counts = sum(job.counts[shard] for shard in mine), np.zeros(1 + len(REASONS), np.int64)
    done = everything - sum(job.counts[shard] for shard in left)
    title = f"{job.doing}, 1 of {count} processes" if count > 1 else job.doing
    with Bar(total=everything, initial=done, desc=title, unit=" examples", disable=index > 0) as bar:
        made = job.make(left, bar.update)
        for first in range(0, len(job.counts), count):
            shard = first + index
            if shard in complete:
                counts += complete[shard]
            elif shard in mine:
                counts += counts_of(shard_files.write_shard(folder, shard, *next(made)))
            total, *bad = cluster.summed(counts).tolist()
            found = dict(zip(REASONS, bad, strict=True))
            check_share(found, max(total, MIN_EXAMPLES), job.max_bad_share, f"{folder}/rows-*.json")


def counts_of(record: dict[str, Any]) -> np.ndarray:
    """(1 + len(REASONS),) how many examples a shard is made of, and how many of them are bad for each reason."""
    bad = Counter(line["reason"] for line in record["bad"])
    return np.array([record["rows"] + len(record["bad"])] + [bad[reason] for reason in REASONS], np.int64)


def summary(job: Job, about: dict[str, Any], folder: Path) -> str:
    """What was made, in a line or two."""
    size = in_words(sum(shard["bytes"] for shard in about["shards"]))
    line = f"{about['rows']:,} examples in {len(about['shards']):,} shards, {size}: train with "
    line += f"--config.data.source=shards --config.data.path={folder} {job.train_with}"
    bad = ", ".join(f"{reason} {count:,}" for reason, count in about["bad"].items())
    return line + (f"\nnot used: {bad}; listed in {folder / shard_files.BAD}" if bad else "")


def verify(folder: Path) -> None:
    """Compares the checksums of all shards with their files. Raises ValueError, naming the first that differs."""
    about = shard_files.verify(folder)
    print(f"{folder}: {about['rows']:,} examples in {len(about['shards']):,} shards, all as they were written")


def free(folder: Path) -> int:
    """Bytes that are free where the folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def in_words(size: float) -> str:
    """A size in words: "1.23 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1e3:.1f} kB"
