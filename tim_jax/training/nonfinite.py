"""The account of updates that were left out because their loss or gradient was not finite."""

import json
import math
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import files, int64

LISTED = 8  # rows told on standard error; the file has all


class TooManyNonFinite(RuntimeError):
    """Too many updates in a row were left out; the message says where they are listed."""


class NonFinite:
    """Counts left-out updates and lists their rows, times and intervals in nonfinite.jsonl.

    workdir: of the run. most: in a row; more end the run. start: the step that the run goes on from.
    count: left-out updates up to now, those of earlier starts included. streak: the latest of them in a row, which the
    caller sets to 0 when an update is made.
    """

    def __init__(self, workdir: epath.Path, most: int, start: int = 0):
        self.path, self.most, self.streak = workdir / "nonfinite.jsonl", most, 0
        self.log = files.Log(self.path)
        lines = self.path.read_text().splitlines() if self.path.exists() else ()
        self.count = len({step for step in (json.loads(line)["step"] for line in lines) if step <= start})

    def see(self, step: int, metrics: Mapping[str, float], by_row: Mapping[str, jax.Array], index: jax.Array) -> None:
        """Takes a left-out update into account; to be called by all processes.

        metrics: numbers on the host. by_row: "t", "r", "loss" and more, global (B,). index: the rows' numbers in
        the source as halves, global (B, 2). Raises TooManyNonFinite.
        """
        self.count, self.streak = self.count + 1, self.streak + 1
        rows = {name: _global(by_row[name]) for name in ("t", "r", "loss")}
        rows["index"] = int64.from_halves(_global(index))
        if jax.process_index() == 0:
            self._write(step, metrics, rows)
        if self.streak >= self.most:
            raise TooManyNonFinite(
                f"{self.streak} updates in a row, up to step {step}, had a loss or gradient that is not finite "
                f"(training.max_nonfinite); {self.path} lists their rows; the last good checkpoint is kept"
            )

    def _write(self, step: int, metrics: Mapping[str, float], rows: dict[str, np.ndarray]) -> None:
        wrong = np.flatnonzero(~np.isfinite(rows["loss"]))
        told = "rows"
        if not wrong.size:  # finite rows with a gradient that is not: it may be any of them
            wrong, told = np.arange(len(rows["loss"])), "all rows"
        listed = [{name: _json(values[i]) for name, values in rows.items()} for i in wrong]
        line = {"step": step, "loss": _json(metrics["loss"]), "grad_norm": _json(metrics["grad_norm"]), "rows": listed}
        few = ", ".join(
            f"{row['index']} (t {row['t']:.4g}, t − r {row['t'] - row['r']:.4g})" for row in listed[:LISTED]
        )
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        loss, gradient = metrics["loss"], metrics["grad_norm"]
        listing = f"{told} {few}{more}"
        logging.warning("step %d: loss %g, gradient %g: update left out; %s", step, loss, gradient, listing)
        try:
            self.log.add(json.dumps(line))
            self.log.close()
        except OSError as error:
            logging.warning("%s could not be written: %s", self.path, error)


def _global(values: jax.Array) -> np.ndarray:
    """The rows of all processes, in the batch's order."""
    return np.asarray(multihost_utils.process_allgather(values, tiled=True) if jax.process_count() > 1 else values)


def _json(value) -> float | int | None:
    """JSON has no word for what is not finite: null."""
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None
