"""The input pipeline against bare decoding and resizing of the same images, with as many threads."""

import os
from collections.abc import Iterator

from tim_jax.bench import data as bench
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import LeftOut, Line, slow_unless

OF_BARE = 0.5  # share of the speed of bare decoding below which the pipeline is slow
MOST_WORKERS = 8


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields one line."""
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    found = bench.measure(workers, rounds=setup.sizes.rounds)
    rate, bare = found["rows_per_second"], found["bare_rows_per_second"]
    yield Line(
        f"JPEG files to 256 × 256, {workers} threads",
        f"{rate:.4g} images/s",
        f"at least {OF_BARE * bare:.3g}, {OF_BARE:.0%} of bare decoding",
        slow_unless(rate >= OF_BARE * bare),
        {"images_per_second": rate, "bare": bare, "workers": workers},
    )
