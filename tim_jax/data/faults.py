"""Rows that cannot be used: their reasons, their account, and the point at which a run stops."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from tim_jax.system import files

REASONS = (
    "missing",  # there is no such file, or not any more
    "outside root",  # a manifest names a path that leaves the manifest's folder
    "empty",
    "unreadable",  # not an image, or not the file that its name says
    "truncated",
    "too many pixels",  # a decompression bomb
    "mode",  # pixels of a kind that has no right conversion, such as floats of unknown range
    "channels",
    "not finite",  # a latent with NaN or infinity
    "label",  # missing, not a whole number or out of range
    "caption",  # missing, empty or not text
    "metadata",  # the line or file beside the image is not what it should be
    "size",  # other than the index or the manifest says
    "features",  # features that do not lie on the bucket's token grid, or are not finite
    "shard",  # a shard that is cut short or cannot be opened: its rows from there on are unknown
)

# A share of few rows says little: until this many rows have been drawn, the limit is that share of this many.
FEWEST_ROWS = 1000


class BadRecord(Exception):
    """A row that cannot be used. reason: one of REASONS; detail: for the list of bad records."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        assert reason in REASONS, reason
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class TooManyBadRecords(ValueError):
    """More bad records than the configuration allows: a user's error, for which every process stops."""


def encode(faults: list[tuple[int, str, BadRecord]]) -> np.ndarray:
    """Faults (row, identity, error) as the unicode array (n, 4) that travels in a batch under "bad"."""
    rows = [(str(index), identity, error.reason, error.detail) for index, identity, error in faults]
    return np.array(rows, np.str_) if rows else np.zeros((0, 4), "<U1")


def check_share(counts: dict[str, int], rows: int, limit: float, where: str) -> None:
    """Raises TooManyBadRecords if more than `limit` of `rows` rows are bad. counts: reason -> number of rows."""
    bad = sum(counts.values())
    if bad > limit * rows:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if count)
        raise TooManyBadRecords(
            f"bad records: {bad} of {rows} rows ({listed}), more than the share loader.max_bad_share {limit:g}; "
            f"they are listed in {where}"
        )


class Account:
    """Counts the bad records that batches report, and writes each of them to one file per process.

    folder: where `bad_records-<process>.jsonl` is appended to; made on the first bad record. limit: the share of rows
    drawn in this run that may be bad. gather: this process's int64 (reasons + 1,) counts -> their sum over all
    processes; the default is right for one process.
    """

    def __init__(
        self,
        folder: Any,
        process_index: int = 0,
        limit: float = 0.01,
        gather: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
    ):
        self.path = epath.Path(folder) / f"bad_records-{process_index}.jsonl"
        self.limit, self.gather = limit, gather
        self._log = files.Log(self.path)
        self.rows, self.counts = 0, Counter()
        self.metrics: dict[str, float] = {}  # as of the last check

    def take(self, step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch of `step` without its report of bad records, which is entered into the account."""
        batch = dict(batch)
        bad = batch.pop("bad", ())
        self.rows += len(batch["index"])
        lines = []
        for index, identity, reason, detail in bad:
            self.counts[str(reason)] += 1
            record = {"step": step, "row": int(index), "identity": str(identity), "reason": str(reason)}
            lines.append(json.dumps(record | ({"detail": str(detail)} if detail else {})))
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._log.add("\n".join(lines))
        return batch

    def totals(self) -> tuple[int, dict[str, int]]:
        """(rows drawn, {reason: bad rows}) over all processes; every process must call it at the same step."""
        mine = np.array([self.rows] + [self.counts[reason] for reason in REASONS], np.int64)
        rows, *counts = np.asarray(self.gather(mine)).tolist()
        return rows, {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}

    def check(self) -> dict[str, float]:
        """Metrics {"bad/<reason>": rows}, kept as `metrics`; every process must call it at the same step.

        Raises TooManyBadRecords, on all processes alike, if the share of bad rows is above the limit.
        """
        self._log.close()
        rows, counts = self.totals()
        check_share(counts, max(rows, FEWEST_ROWS), self.limit, f"{self.path.parent}/bad_records-*.jsonl")
        self.metrics = {f"bad/{reason.replace(' ', '_')}": float(count) for reason, count in counts.items()}
        return self.metrics


def watched(batches: Iterator, account: Account, start_step: int, every: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches from `start_step` on, entered into the account, which is checked every `every` steps."""
    for step, batch in enumerate(batches, start_step):
        taken = account.take(step, batch)
        if step % every == 0:
            account.check()
        yield taken
