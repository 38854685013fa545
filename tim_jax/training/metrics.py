"""Where metrics go: one JSON line per entry in metrics.jsonl, TensorBoard events, and a progress bar."""

import contextlib
import io
import json
import math
import time
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from tim_jax import files


class Writer:
    """Writes metrics and pictures of one run; appends to what is there. Only one process of a run writes."""

    def __init__(self, workdir: epath.Path, active: bool = True):
        self.workdir = workdir
        self.log = files.Log(workdir / "metrics.jsonl")
        self.board = SummaryWriter(str(workdir / "events")) if active else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """values: name → number. Numbers that are not finite are written as null, which JSON has a word for."""
        if self.board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.log.add(json.dumps({"step": step, "time": round(time.time(), 3), **line}))
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Writes samples/NAME_STEP.png and shows it in TensorBoard."""
        if self.board is None:
            return
        folder = self.workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        png = io.BytesIO()
        image.save(png, "PNG")
        files.replace(folder / f"{name}_{step:08d}.png", png.getvalue())
        self.board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self.board is not None:
            self.log.close()
            self.board.close()


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
