"""What is watched of a run besides its loss: errors by noise level and interval, memory, traces."""

import resource
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

BINS = 5  # equal ones, of noise levels in [0, 1]


class Bins:
    """Mean unweighted row errors by the noise level of t and by the length of the interval, in noise levels."""

    def __init__(self):
        self.sums, self.counts = np.zeros((2, BINS + 1)), np.zeros((2, BINS + 1))

    def add(self, per_example: Mapping[str, jax.Array]) -> None:
        """Takes the rows of a step into account; per_example: `BY_ROW` of a step, the same on every process."""
        t, r, error = (np.asarray(per_example[name], np.float64) for name in ("level_t", "level_r", "error"))
        equal = np.asarray(per_example["t"]) == np.asarray(per_example["r"])
        for i, (value, last) in enumerate(((t, False), (t - r, equal))):
            place = np.where(last, BINS, np.clip(np.floor(value * BINS), 0, BINS - 1)).astype(int)
            kept = np.isfinite(error)
            self.sums[i] += np.bincount(place[kept], error[kept], BINS + 1)
            self.counts[i] += np.bincount(place[kept], minlength=BINS + 1)

    def take(self) -> dict[str, float]:
        """The means since this was called before, by name; bins without rows are left out."""
        edges = [f"{k / BINS:g}-{(k + 1) / BINS:g}" for k in range(BINS)]
        names = [[f"error_by_level/{edge}" for edge in edges] + [""]]
        names += [[f"error_by_interval/{edge}" for edge in edges] + ["error_by_interval/0"]]
        found = {
            name: float(total / count)
            for of, totals, counts in zip(names, self.sums, self.counts, strict=True)
            for name, total, count in zip(of, totals, counts, strict=True)
            if count
        }
        self.__init__()
        return found


def memory() -> dict[str, float]:
    """GiB in use on this process's first device and at most so far, where it tells, and at most of the host's."""
    found = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = jax.local_devices()[0].memory_stats() or {}
    for name, key in (("memory/device_gib", "bytes_in_use"), ("memory/device_peak_gib", "peak_bytes_in_use")):
        if key in stats:
            found[name] = stats[key] / 2**30
    return found


class Trace:
    """A trace of the steps first … last for TensorBoard and XProf, in WORKDIR/profile; None: no steps."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None):
        self.folder, self.steps, self.running = str(workdir / "profile"), steps, False

    def before(self, step: int) -> None:
        """Before a step is handed to the devices."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int) -> None:
        """After a step is done on the devices."""
        if self.running and step >= self.steps[1]:
            self.close()

    def close(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
