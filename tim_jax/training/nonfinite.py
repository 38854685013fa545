"""The account of updates that were left out because their loss or gradient was not finite."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from tim_jax.system import cluster, int64, jsonl
from tim_jax.system.user_errors import few

LISTED = 8  # examples that a warning names; the file has all


class TooManyNonFinite(RuntimeError):
    """Too many updates in a row were left out; the message says where they are listed."""


class NonFinite:
    """Counts updates that were left out, and lists their examples, times and intervals in nonfinite.jsonl.

    Attributes:
        count: Updates left out up to now, those of earlier starts included.
        streak: The latest of them in a row, which the caller sets to 0 when an update is made.
    """

    def __init__(self, workdir: epath.Path, max_streak: int, start: int = 0):
        """Reads what earlier starts have listed.

        Args:
            workdir: Of the run.
            max_streak: Updates left out in a row that end the run.
            start: The step that the run goes on from.
        """
        self.path, self.max_streak, self.streak = workdir / "nonfinite.jsonl", max_streak, 0
        self.count = len({line.get("step") for line in jsonl.read(self.path) if _before(line, start)})
        if jax.process_index() == 0:
            jsonl.keep(self.path, lambda line: _before(line, start))  # later steps are made again

    def see(
        self, step: int, metrics: Mapping[str, float], per_example: Mapping[str, jax.Array], index: jax.Array
    ) -> None:
        """Takes an update that was left out into account; all processes must call it.

        Args:
            step: Of the update.
            metrics: Numbers on the host, "loss" and "grad_norm" among them.
            per_example: "t", "r", "loss" and more, global arrays (B,).
            index: Numbers of the examples in the source as halves, global (B, 2).

        Raises:
            TooManyNonFinite: If as many in a row were left out as may not be.
        """
        self.count, self.streak = self.count + 1, self.streak + 1
        examples = {name: cluster.gathered(per_example[name]) for name in ("t", "r", "loss")}
        examples["index"] = int64.from_halves(cluster.gathered(index))
        if jax.process_index() == 0:
            self._write(step, metrics, examples)
        if self.streak >= self.max_streak:
            raise TooManyNonFinite(
                f"{self.streak} updates in a row, up to step {step}, had a loss or gradient that is not finite "
                f"(training.max_nonfinite); {self.path} lists their examples; the last good checkpoint is kept"
            )

    def _write(self, step: int, metrics: Mapping[str, float], examples: dict[str, np.ndarray]) -> None:
        wrong = np.flatnonzero(~np.isfinite(examples["loss"]))
        of = "examples"
        if not wrong.size:  # every loss is finite and a gradient is not: it may be that of any of them
            wrong, of = np.arange(len(examples["loss"])), "all examples"
        listed = [{name: _json(values[i]) for name, values in examples.items()} for i in wrong]
        t, r, index = (examples[name][wrong] for name in ("t", "r", "index"))
        texts = [f"{k} (t {a:.4g}, t − r {a - b:.4g})" for k, a, b in zip(index, t, r, strict=True)]
        loss, gradient = metrics["loss"], metrics["grad_norm"]
        logging.warning(
            "step %d: loss %g, gradient %g: update left out; %s %s", step, loss, gradient, of, few(texts, LISTED)
        )
        jsonl.add(self.path, {"step": step, "loss": _json(loss), "grad_norm": _json(gradient), "rows": listed})


def _before(line: Mapping[str, Any], start: int) -> bool:
    return isinstance(line.get("step"), int) and line["step"] <= start


def _json(value: Any) -> float | int | None:
    """Returns a number as JSON has it, which has no word for what is not finite: null."""
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None
