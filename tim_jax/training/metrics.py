"""Where metrics go: one JSON line per entry in metrics.jsonl, TensorBoard events, and a progress bar."""

import contextlib
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from tim_jax.system import files, jsonl
from tim_jax.system.progress import Bar
from tim_jax.training import events
from tim_jax.training.tensorboard import Event, summary

ERRORS = {"error_equal": "r=t", "error_moving": "r<t"}  # metrics of a step's unweighted errors, and of which examples


class Writer:
    """Writes metrics and pictures of one run, and appends to what is there. Only one process of a run writes.

    Of steps that the run makes again, since it goes on from an earlier one, what is there is taken back.

    What cannot be written, on a full disk for example, is logged, and training goes on.
    """

    def __init__(
        self,
        workdir: epath.Path,
        active: bool = True,
        project: str = "",
        record: Mapping = {},
        start: int | None = None,
    ):
        """Opens the files.

        Args:
            workdir: The run's folder.
            active: Whether this process writes.
            project: Project of Weights & Biases that gets the metrics as well; "" for none.
            record: What that project learns of the run.
            start: Step that the run goes on from; None to leave all that is there.
        """
        self.workdir, self.active = workdir, active
        self._log: files.Log | None = None
        self._events = self._wandb = None
        self._flushed = time.monotonic()
        if active and project:
            import wandb  # only for those who ask for it

            folder = str(workdir) if files.is_local(workdir) else None
            name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]  # the same when the run goes on
            self._wandb = wandb.init(project=project, id=name, resume="allow", dir=folder, config=dict(record))
        with self._warned():
            if active:
                if start is not None:
                    self._take_back(start)
                self._events = events.Log(workdir / "events")
                if start is not None:
                    self._events.add(events.restart(start + 1))

    def _take_back(self, start: int) -> None:
        with self._warned():
            path = self.workdir / "metrics.jsonl"
            if start == 0 and (made := max((line.get("step", 0) for line in jsonl.read(path)), default=0)):
                logging.warning("%s: has made step %d, but has no checkpoint; starts anew", self.workdir, made)
            jsonl.keep(path, lambda line: line.get("step", 0) <= start)
            events.forget(self.workdir / "events", start)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes images and numbers by name; see `picture` and `scalars`."""
        images = {name: value for name, value in values.items() if isinstance(value, Image.Image)}
        for name, image in images.items():
            self.picture(step, name, image)
        if not images or len(images) < len(values):
            self.scalars(step, {name: value for name, value in values.items() if name not in images})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name. Those that are not finite are written as null, since JSON has no word for them."""
        if not self.active:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._warned():
            self._log = self._log or files.Log(self.workdir / "metrics.jsonl")  # which object storage may have refused
            self._log.add(json.dumps({"step": step, "time": round(time.time(), 3), **line}))
        self._add(step, [summary.scalar(name, value) for name, value in values.items()])
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Writes samples/NAME_STEP.png and shows it in TensorBoard."""
        if not self.active:
            return
        folder, png = self.workdir / "samples", io.BytesIO()
        image.save(png, "PNG")
        with self._warned():
            folder.mkdir(parents=True, exist_ok=True)
            files.replace(folder / f"{name}_{step:08d}.png", png.getvalue())
        self._add(step, [summary.image(name, np.asarray(image.convert("RGB")), dataformats="HWC")])

    def _add(self, step: int, summaries: list) -> None:
        """Adds to TensorBoard's events, not by its own writer, whose thread ends at an error and blocks its user."""
        with self._warned():
            if self._events is not None:
                for each in summaries:
                    self._events.add(Event(wall_time=time.time(), step=step, summary=each))
                if files.is_local(self.workdir) or time.monotonic() - self._flushed >= files.SECONDS:
                    self._events.flush()  # in object storage, this sends all events again
                    self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # object storage has errors of its own kinds
            logging.warning("metrics could not be written: %s; training goes on", error)

    def close(self) -> None:
        """Writes what waits, and closes the files."""
        with self._warned():
            if self._log is not None:
                self._log.close()
        with self._warned():
            if self._events is not None:
                self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class Progress:
    """A progress bar: time left, loss, unweighted errors, images per second, share of time spent waiting for data."""

    def __init__(self, start: int, total: int, peak: float = math.nan, active: bool = True):
        """Shows the bar.

        Args:
            start: Steps done before.
            total: Steps in all.
            peak: Operations per second that all devices can do; NaN where it is not known.
            active: Whether this process shows the bar.
        """
        self.peak = peak
        self.bar = Bar(total=total, initial=start, unit="step", disable=not active, dynamic_ncols=True)
        self._forget()

    def _forget(self) -> None:
        self.began, self.waited, self.images, self.flops = time.perf_counter(), 0.0, 0, 0

    def advance(self, step: int, images: int, flops: int) -> None:
        """Is called when a step has been handed to the devices.

        Args:
            step: Its number.
            images: Examples in its batch.
            flops: The model's operations in it, over all devices.
        """
        self.images += images
        self.flops += flops
        self.bar.update(step - self.bar.n)

    def rates(self) -> dict[str, float]:
        """Returns the rates since the last call.

        They are images_per_second, data_wait (a share of the time), model_tflops_per_second and, where the devices'
        peak is known, mfu, the share of it that these are.
        """
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rate, wait, flops = self.images / seconds, self.waited / seconds, self.flops / seconds
        utilisation = {} if math.isnan(self.peak) else {"mfu": flops / self.peak}
        self._forget()
        return {"images_per_second": rate, "data_wait": wait, "model_tflops_per_second": flops / 1e12} | utilisation

    def show(self, values: Mapping[str, float]) -> None:
        """Shows the metrics of a step: its loss, its unweighted errors by name in `ERRORS`, and rates, if any."""
        errors = [f"{values[name]:.4f} at {where}" for name, where in ERRORS.items() if name in values]
        parts = [f"loss {values['loss']:.4f}"] + ["error " + ", ".join(errors)] * bool(errors)
        if "images_per_second" in values:
            parts += [f"{values['images_per_second']:,.0f} images/s", f"data wait {values['data_wait']:.1%}"]
        self.bar.show(", ".join(parts))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context that waits for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context, for sampling or saving, whose time is left out of the rates."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
