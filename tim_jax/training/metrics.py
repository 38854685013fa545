"""Where metrics go: one JSON line per entry in metrics.jsonl, TensorBoard events, and a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm


class Writer:
    """Writes metrics and pictures of one run; appends to what is there. Only one process of a run writes."""

    def __init__(self, workdir: epath.Path, active: bool = True):
        self.path = workdir / "metrics.jsonl"
        self.board = SummaryWriter(str(workdir / "events")) if active else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """values: name → number. Numbers that are not finite are written as null, which JSON has a word for."""
        if self.board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **line}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Writes samples/NAME_STEP.png and shows it in TensorBoard."""
        if self.board is None:
            return
        folder = self.path.parent / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}_{step:08d}.png").open("wb") as file:
            image.save(file, "PNG")
        self.board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


class Progress:
    """A progress bar with time left, images per second and the loss; silent on all processes but one."""

    def __init__(self, start: int, total: int, batch_size: int, active: bool = True):
        self.batch_size = batch_size
        self.bar = tqdm(total=total, initial=start, unit="step", disable=not active, dynamic_ncols=True)
        self.since = (time.perf_counter(), start)

    def advance(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def show(self, step: int, loss: float) -> float:
        """Shows the loss of a step; returns images per second since the step shown before."""
        now, (then, before) = time.perf_counter(), self.since
        self.since = (now, step)
        rate = (step - before) * self.batch_size / max(now - then, 1e-9)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} images/s")
        return rate

    @contextlib.contextmanager
    def paused(self):
        """Leaves what happens within (pictures) out of the rate."""
        began = time.perf_counter()
        yield
        self.since = (self.since[0] + time.perf_counter() - began, self.since[1])

    def close(self) -> None:
        self.bar.close()
