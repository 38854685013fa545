"""Images per second at several step counts, against bare passes of the network."""

from collections.abc import Iterator

from tim_jax.bench.sample import UNSTEERED, measure_case
from tim_jax.transitions.sampling.steering import Steering
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import LeftOut, Line, slow_unless

STEPS = (1, 4, 32)
OF_BARE = 0.7  # share of the speed of bare passes of the network below which sampling is slow


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields a line for each number of steps."""
    case = setup.sizes.sampling
    for row in measure_case(case, 1.0, list(STEPS), [UNSTEERED], Steering(), setup.sizes.repeats):
        rate, bare = 1 / row["seconds_per_image"], 1 / row["bare_seconds_per_image"]
        yield Line(
            f"{case.name}, {row['steps']} steps, batch {case.batch}",
            f"{rate:.4g} images/s",
            f"at least {OF_BARE * bare:.3g}, {OF_BARE:.0%} of bare passes",
            slow_unless(rate >= OF_BARE * bare),
            {"images_per_second": rate, "bare": bare, "steps": row["steps"], "batch": case.batch},
        )
