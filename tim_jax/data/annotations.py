"""Labels and captions of a source as often as training sees them, for samples that are to be like the data.

Examples are taken in one fixed shuffle, in which those of a mixture come by its weights. So nothing here depends on the
order in which a data set is stored.
"""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.interleave import Interleave
from tim_jax.data.order import index_at, uniform
from tim_jax.data.sources.base import Source, digest
from tim_jax.system.progress import Bar

SEED = 0  # of the shuffle
MAX_READ = 50_000  # examples whose labels are counted, of a source that has to read an example to know its label
CHUNK = 1024
NO_CAPTION = "a picture"  # that of an example without one


def shuffled(source: Source, start: int, stop: int) -> np.ndarray:
    """The examples (stop - start,) at these positions of the fixed shuffle, which goes on epoch after epoch."""
    counts = [count for count, _ in source.parts]
    parts, ranks = Interleave(tuple(n * passes for n, passes in source.parts), SEED).at(np.arange(start, stop))
    found, first = np.empty(len(parts), np.int64), 0
    for part, count in enumerate(counts):
        here = parts == part
        found[here] = first + index_at(ranks[here], count, (SEED, part))
        first += count
    return found


def label_counts(source: Source, num_classes: int, directory: Any, threads: int = 8) -> np.ndarray:
    """How often training sees each label.

    All labels are counted where they are at hand, of others those of at most MAX_READ examples. Examples of a mixture
    count by its weights, and those that cannot be used not at all.

    Args:
        source: of examples that have labels.
        num_classes: labels lie below it.
        directory: the folder that the counts are written below, and read from where they are there already.
        threads: how many threads read.

    Returns:
        (num_classes,) int64.
    """
    count = len(source) if source.labels_at_hand else min(len(source), MAX_READ)
    state = digest("labels 1", source.fingerprint(), num_classes, count)
    folder = epath.Path(directory).expanduser() / f"labels-{state}"
    if tables.exists(folder):
        return np.array(tables.Table(folder)["count"])
    found = _count(source, num_classes, count, threads)
    with contextlib.suppress(OSError), tables.writing(folder, count=np.int64) as writer:
        writer.append(count=found)
    return found


def _count(source: Source, num_classes: int, count: int, threads: int) -> np.ndarray:
    """(num_classes,) how often each label comes among the first examples of the shuffle."""
    found = np.zeros(num_classes, np.int64)
    whole = count == len(source) and len(source.parts) == 1  # in whatever order
    part = np.arange if whole else functools.partial(shuffled, source)
    chunks = (part(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    title = f"labels of {source.name}"
    threads = 1 if source.labels_at_hand else threads
    with ThreadPoolExecutor(threads) as pool, Bar(total=count, desc=title, unit=" examples", delay=1) as progress:
        for labels in pool.map(source.labels, chunks):
            found += np.bincount(labels[(0 <= labels) & (labels < num_classes)], minlength=num_classes)
            progress.update(len(labels))
    return found


def proportional_labels(counts: np.ndarray, number: int) -> np.ndarray:
    """Labels in the proportions of some counts, in an order in which every beginning has them as nearly as can be.

    After k labels, class i has come fewer than one time more or less often than k countsᵢ / Σ counts (Tijdeman, The
    chairman assignment problem, 1980). So Σ counts labels have exactly the counts, and equal counts give every class in
    turn.

    Args:
        counts: (K,), not all of them 0; a class of count 0 never comes.
        number: how many labels.

    Returns:
        int32 (number,).
    """
    present = np.flatnonzero(counts)
    shares = counts[present] / counts[present].sum()
    slack = 1 / max(2 * len(present) - 2, 1)
    labels, given = np.empty(number, np.int32), np.zeros(len(present))
    for k in range(number):
        owed = shares * (k + 1) - given
        due = np.where(owed >= slack, (1 - slack - owed) / shares, np.inf)
        chosen = int(np.argmin(due))
        labels[k] = present[chosen]
        given[chosen] += 1
    return labels


def first_caption(source: Source, example: int) -> str:
    """The first caption of an example; NO_CAPTION where it has none."""
    try:
        return source.annotations(example).get("captions", (NO_CAPTION,))[0]
    except BadRecord:
        return NO_CAPTION


def caption_at(source: Source, position: int) -> str:
    """A caption of the example at a position of the fixed shuffle, one of its captions at random.

    Where that example cannot be used it is the next that can.

    Raises:
        ValueError: if none can be used.
    """
    for at in range(position, position + 2 * len(source)):  # two epochs hold every example after any position
        (example,), (draw,) = shuffled(source, at, at + 1).tolist(), uniform(SEED, 0, np.array([at])).tolist()
        try:
            texts = source.annotations(example)["captions"]
        except BadRecord:
            continue
        return texts[int(draw * len(texts))]
    raise ValueError(f"{source.name}: none of its examples can be used")
