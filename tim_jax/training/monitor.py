"""What is known of a run's steps: each is waited for, counted and timed, and every so often its metrics are written."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from tim_jax.system.chips import chip_of
from tim_jax.training import ledger
from tim_jax.training.goodput import Goodput
from tim_jax.training.metrics import Progress, Writer
from tim_jax.training.nonfinite import NonFinite
from tim_jax.training.settings import TrainingSettings
from tim_jax.training.watch import Bins, Trace, memory, of_nothing
from tim_jax.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Launched:
    """A step that has been handed to the devices.

    Attributes:
        number: Of the step, from 1 on.
        metrics: Its scalar metrics, on the devices.
        per_example: What is known of each example, arrays (B,) by name, on the devices.
        index: Numbers of the examples in the source as halves, (B, 2).
    """

    number: int
    metrics: Mapping[str, jax.Array]
    per_example: Mapping[str, jax.Array]
    index: jax.Array


class Monitor(contextlib.ExitStack):
    """A context in which the steps of a run are watched.

    The step before is waited for while the devices work on the one that was launched last. Meters of time, the
    watchdog, the account of updates that are not finite and the writer of metrics are its parts.
    """

    def __init__(
        self,
        workdir: epath.Path,
        settings: TrainingSettings,
        mesh: Mesh,
        start: int,
        goodput: Goodput,
        record: Mapping,
        profile: tuple[int, int] | None = None,
        data_metrics: Callable[[], dict[str, float]] = dict,
    ):
        """Args:
        workdir: Of the run.
        settings: How often metrics are written, and when a run ends that cannot go on.
        mesh: The devices, for the share of their peak that the run reaches.
        start: Step that the run goes on from.
        goodput: Account of the start's time.
        record: What a checkpoint says of the run.
        profile: First and last step of a trace.
        data_metrics: Returns the counts of the input pipeline.
        """
        super().__init__()
        self._settings, self._data_metrics, self._first = settings, data_metrics, start + 1
        lead = jax.process_index() == 0
        peak = mesh.size * getattr(chip_of(jax.devices()[0].device_kind), "flops", math.nan)
        self.goodput = goodput
        self.nonfinite = NonFinite(workdir, settings.max_nonfinite, start)
        self.writer = Writer(workdir, lead, settings.wandb, record, start)
        self._progress = Progress(start, settings.steps, peak, active=lead)
        self._trace, self._bins = Trace(workdir, profile, start), Bins()
        self._watchdog = Watchdog(settings.hang_seconds)
        self._launched: Launched | None = None

    def __enter__(self) -> "Monitor":
        for part in (self.writer, self._progress, self._trace):
            self.enter_context(contextlib.closing(part))
        self.enter_context(self._watchdog)
        self.enter_context(self.goodput.doing("steps"))
        return self

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """A context that waits for the next batch. While the devices are at work it costs nothing, and is of steps."""
        with self._progress.waiting(), self.goodput.doing("data") as waiting:
            yield
            ahead: Any = self._launched and self._launched.metrics["nonfinite"]  # jax's types leave is_ready out
            if ahead is not None and not ahead.is_ready():
                waiting.kind = "steps"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which no step is made: saving, and within it sampling and evaluating."""
        with self._progress.paused(), self._watchdog.paused(), self.goodput.doing("save"):
            yield

    def before(self, step: int) -> None:
        """Is called before a step is launched."""
        self._trace.before(step)

    def launched(self, step: Launched, images: int, flops: int) -> None:
        """Waits for the step before, and remembers the one that has just been launched.

        Args:
            step: The new one.
            images: Examples in its batch.
            flops: The model's operations in it, over all devices.

        Raises:
            TooManyNonFinite: As `finish`.
        """
        self.finish()
        self._launched = step
        self._progress.advance(step.number, images, flops)

    def finish(self) -> None:
        """Waits for the step that was launched last, if there is one, and takes it into account.

        Raises:
            TooManyNonFinite: If too many updates in a row were left out.
        """
        done, self._launched = self._launched, None
        if done is None:
            return
        left_out = bool(done.metrics["nonfinite"])  # which waits
        self._watchdog.step()
        self._trace.after(done.number)
        self._bins.add(done.per_example)
        logged = done.number % self._settings.log_every == 0 or done.number == self._settings.steps
        if not left_out:
            self.nonfinite.streak = 0
        shown = logged or done.number == self._first
        if not (left_out or shown):
            return
        values = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
        if left_out:
            self.nonfinite.see(done.number, values, done.per_example, done.index)
        for name in of_nothing(done.per_example):
            values.pop(name, None)
        values |= self._progress.rates() if logged else {}
        if shown:
            self._progress.show(values)
        if logged:
            seconds = self.goodput.seconds()
            times = {"goodput": ledger.share(seconds)} | {f"time/{kind}": value for kind, value in seconds.items()}
            values |= {name: value for name, value in times.items() if not math.isnan(value)}
            values |= {"nonfinite": self.nonfinite.count}
            values |= self._bins.take() | memory() | self._data_metrics()
            self.writer.scalars(done.number, values)

    @property
    def finite(self) -> bool:
        """Whether the update of the step that was finished last was made."""
        return not self.nonfinite.streak
