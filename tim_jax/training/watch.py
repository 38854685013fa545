"""What is watched of a run besides its loss: errors by noise level and by interval, memory, and traces."""

import resource
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from etils import epath

BINS = 5  # equal ones, of noise levels in [0, 1]


class Bins:
    """Mean errors of examples by the noise level of t, and by the length of the interval in noise levels.

    Each example counts by its weight in the loss.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums, self.counts = np.zeros((2, BINS + 1)), np.zeros((2, BINS + 1))

    def add(self, per_example: Mapping[str, jax.Array]) -> None:
        """Takes the examples of a step into account.

        Args:
            per_example: What `train_step` returns of each example, arrays (B,), the same on every process.
        """
        t, r, error, weight = (
            np.asarray(per_example[name], np.float64) for name in ("level_t", "level_r", "error", "weight")
        )
        equal = np.asarray(per_example["t"]) == np.asarray(per_example["r"])
        for i, (value, last) in enumerate(((t, False), (t - r, equal))):
            place = np.where(last, BINS, np.clip(np.floor(value * BINS), 0, BINS - 1)).astype(int)
            finite = np.isfinite(error)
            self.sums[i] += np.bincount(place[finite], (error * weight)[finite], BINS + 1)
            self.counts[i] += np.bincount(place[finite], weight[finite], BINS + 1)

    def take(self) -> dict[str, float]:
        """Returns the means since the last call by name, and starts anew; bins without examples are left out."""
        edges = [f"{k / BINS:g}-{(k + 1) / BINS:g}" for k in range(BINS)]
        names = [[f"error_by_level/{edge}" for edge in edges] + [""]]
        names += [[f"error_by_interval/{edge}" for edge in edges] + ["error_by_interval/0"]]
        found = {
            name: float(total / count)
            for of, totals, counts in zip(names, self.sums, self.counts, strict=True)
            for name, total, count in zip(of, totals, counts, strict=True)
            if count
        }
        self._clear()
        return found


def of_nothing(per_example: Mapping[str, jax.Array]) -> set[str]:
    """Returns the names of a step's metrics that are means over no example, such as of r ≠ t in flow matching.

    Args:
        per_example: What `train_step` returns of each example, arrays (B,), the same on every process.
    """
    equal = np.asarray(per_example["t"]) == np.asarray(per_example["r"])
    counts = np.asarray(per_example["weight"]) > 0
    names = {"error_equal": equal, "error_moving": ~equal, "tangent_rms": ~equal}
    return {name for name, examples in names.items() if not (counts & examples).any()}


def memory() -> dict[str, float]:
    """Returns GiB by name: the peak of the host's memory, and use and peak of the first device where that is known."""
    found = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = jax.local_devices()[0].memory_stats() or {}
    for name, key in (("memory/device_gib", "bytes_in_use"), ("memory/device_peak_gib", "peak_bytes_in_use")):
        if key in stats:
            found[name] = stats[key] / 2**30
    return found


class Trace:
    """A trace of some steps for TensorBoard and XProf, in WORKDIR/profile."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None, start: int = 0):
        """Prepares a trace, or warns that there is none.

        Args:
            workdir: Of the run.
            steps: The first and the last one, counted from 1; None for no trace.
            start: The step that the run goes on from.
        """
        if steps and steps[1] <= start and jax.process_index() == 0:
            logging.warning("--profile is %d:%d, and the run goes on from step %d: no trace is written", *steps, start)
        self.folder, self.steps, self.running = str(workdir / "profile"), steps, False

    def before(self, step: int) -> None:
        """Is called before a step is launched."""
        if self.steps and not self.running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int) -> None:
        """Is called after a step is done on the devices."""
        if self.steps and self.running and step >= self.steps[1]:
            self.close()

    def close(self) -> None:
        """Ends the trace where it runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
