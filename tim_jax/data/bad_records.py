"""Examples that cannot be used: their reasons, how they are counted and listed, and when a run stops."""

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
    "shard",  # a shard that is cut short or cannot be opened: its examples from there on are unknown
)

# A share of few examples says little: until this many have been drawn, the limit is that share of this many.
MIN_EXAMPLES = 1000


class BadRecord(Exception):
    """An example that cannot be used.

    Args:
        reason: one of REASONS.
        detail: more about it, for the list of bad records.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        assert reason in REASONS, reason
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class TooManyBadRecords(ValueError):
    """There are more bad records than loader.max_bad_share allows: a user's error, for which every process stops."""


def encode(found: list[tuple[int, str, BadRecord]]) -> np.ndarray:
    """Bad records (index, identity, error) as the unicode array (n, 4) that travels in a batch under "bad"."""
    lines = [(str(index), identity, error.reason, error.detail) for index, identity, error in found]
    return np.array(lines, np.str_) if lines else np.zeros((0, 4), "<U1")


def check_share(counts: dict[str, int], examples: int, limit: float, where: str) -> None:
    """Checks the share of bad records.

    Args:
        counts: reason -> number of bad records.
        examples: how many examples were looked at, good or bad.
        limit: the share of them that may be bad, loader.max_bad_share.
        where: the files that list the bad records, for the message.

    Raises:
        TooManyBadRecords: more than this share is bad.
    """
    bad = sum(counts.values())
    if bad > limit * examples:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if count)
        again = "; if images were replaced since their sizes were read, delete sizes-* below loader.directory"
        raise TooManyBadRecords(
            f"loader.max_bad_share is {limit:g}; it must be at least the share of bad records, which are {bad} of "
            f"{examples} examples ({listed}) and are listed in {where}{again if counts.get('size') else ''}"
        )


class Account:
    """Counts the bad records that batches report, and lists each of them in one file per process.

    Args:
        folder: the folder that `bad_records-<process>.jsonl` is appended to; made on the first bad record.
        process_index: the number of this process.
        limit: the share of the examples drawn in this run that may be bad.
        gather: sums int64 counts (reasons + 1,) over all processes; the default is right for one process.
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
        self.examples = 0
        self.counts: Counter[str] = Counter()
        self.metrics: dict[str, float] = {}  # as of the last check

    def take(self, step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Counts and lists the bad records of the batch of `step`, and returns the batch without them."""
        batch = dict(batch)
        bad = batch.pop("bad", ())
        self.examples += len(batch["index"])
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
        """(examples drawn, {reason: bad records}) over all processes, which must all call it at the same step."""
        mine = np.array([self.examples] + [self.counts[reason] for reason in REASONS], np.int64)
        examples, *counts = np.asarray(self.gather(mine)).tolist()
        return examples, {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}

    def check(self) -> dict[str, float]:
        """The metrics {"bad/<reason>": count}, which stay in `metrics`; all processes must call it at the same step.

        Raises:
            TooManyBadRecords: the share of bad records is above the limit; raised on all processes alike.
        """
        self._log.close()
        examples, counts = self.totals()
        check_share(counts, max(examples, MIN_EXAMPLES), self.limit, f"{self.path.parent}/bad_records-*.jsonl")
        self.metrics = {f"bad/{reason.replace(' ', '_')}": float(count) for reason, count in counts.items()}
        return self.metrics


def count_bad_records(
    batches: Iterator, account: Account, start_step: int, every: int
) -> Iterator[dict[str, np.ndarray]]:
    """Passes batches on without their bad records, which go to the account.

    Args:
        batches: those of `start_step` and after.
        account: what counts them.
        start_step: the step of the first batch.
        every: steps between checks of the account.

    Raises:
        TooManyBadRecords: see `Account.check`.
    """
    for step, batch in enumerate(batches, start_step):
        taken = account.take(step, batch)
        if step % every == 0:
            account.check()
        yield taken
