"""Where metrics go: one JSON line per entry in metrics.jsonl, TensorBoard events, and a progress bar."""

import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tqdm import tqdm


class Writer:
    """Writes metrics and pictures of one run; appends to what is there. Only one process of a run writes.

    What cannot be written, on a full disk for example, is told; training goes on. project: of Weights & Biases, which
    gets the metrics as well; "": none. record: what it is told of the run.
    """

    def __init__(self, workdir: epath.Path, active: bool = True, project: str = "", record: Mapping = {}):
        self.path, self.active = workdir / "metrics.jsonl", active
        self._events = self._wandb = None
        if active and project:
            import wandb  # only for those who ask for it

            name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]  # the same when the run goes on
            self._wandb = wandb.init(project=project, id=name, resume="allow", dir=str(workdir), config=dict(record))
        with self._told():
            if active:
                (workdir / "events").mkdir(parents=True, exist_ok=True)
                self._events = EventsWriter(str(workdir / "events" / "events"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """values: name → number. Numbers that are not finite are written as null, which JSON has a word for."""
        if not self.active:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._told(), self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **line}) + "\n")
        self._add(step, [summary.scalar(name, value) for name, value in values.items()])
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Writes samples/NAME_STEP.png and shows it in TensorBoard."""
        if not self.active:
            return
        folder = self.path.parent / "samples"
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{name}_{step:08d}.png").open("wb") as file:
                image.save(file, "PNG")
        self._add(step, [summary.image(name, np.asarray(image.convert("RGB")), dataformats="HWC")])

    def _add(self, step: int, summaries: list) -> None:
        """Adds to TensorBoard's events. (Its own writer's thread ends at the first error, and then blocks its user.)"""
        with self._told():
            if self._events is not None:
                for each in summaries:
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=each))
                self._events.flush()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except OSError as error:
            print(f"\nwarning: metrics could not be written: {error}; training goes on", file=sys.stderr, flush=True)

    def close(self) -> None:
        with self._told():
            if self._events is not None:
                self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class Progress:
    """A progress bar with time left, the loss, images per second and the share of time spent waiting for data.

    Silent on all processes but one.
    """

    def __init__(self, start: int, total: int, active: bool = True):
        self.bar = tqdm(total=total, initial=start, unit="step", disable=not active, dynamic_ncols=True)
        self._forget()

    def _forget(self) -> None:
        self.began, self.waited, self.images = time.perf_counter(), 0.0, 0

    def advance(self, step: int, images: int) -> None:
        """A step of so many images has been handed to the devices."""
        self.images += images
        self.bar.update(step - self.bar.n)

    def show(self, step: int, loss: float) -> dict[str, float]:
        """Shows the loss of a step; returns images_per_second and data_wait (a share) since it was called before."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rate, wait = self.images / seconds, self.waited / seconds
        self._forget()
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} images/s, data wait {wait:.1%}")
        return {"images_per_second": rate, "data_wait": wait}

    @contextlib.contextmanager
    def waiting(self):
        """What happens within is waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self):
        """Leaves what happens within (pictures) out of the rates."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def close(self) -> None:
        self.bar.close()
