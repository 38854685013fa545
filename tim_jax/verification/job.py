"""Runs checks, one after another, on every process of a run; gathers what all of them found."""

import dataclasses
import gc
import importlib
import json
import platform
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from tim_jax.system import timing
from tim_jax.system.progress import Activity
from tim_jax.system.user_errors import one_line
from tim_jax.verification import CHECKS
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import WRONG, LeftOut, Line

# Packages without which a machine trains, or at least steps: a check that needs one is left out where it is missing.
OPTIONAL = {
    "array_record", "grain", "ml_collections", "PIL", "pyarrow", "scipy", "skimage", "sklearn", "tensorflow",
    "tensorflow_datasets",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Host:
    """What one process found.

    Attributes:
        process: Its index.
        name: Of its machine.
        versions: Of Python and packages.
        machine: What was measured on, see `timing.machine`.
        lines: (check, line) of all that was checked.
        left_out: (check, what was left out).
        seconds: Of each check.
    """

    process: int
    name: str
    versions: dict[str, str]
    machine: dict[str, Any]
    lines: tuple[tuple[str, Line], ...]
    left_out: tuple[tuple[str, LeftOut], ...]
    seconds: dict[str, float]


def run(checks: Sequence[str], setup: Setup) -> Host:
    """Runs checks by name on this process; all processes must run the same. The first one shows each line at once."""
    lines: list[tuple[str, Line]] = []
    left_out: list[tuple[str, LeftOut]] = []
    seconds: dict[str, float] = {}
    quiet = jax.process_index() > 0
    with Activity(f"checking {checks[0]}", len(checks), after=0, disable=quiet) as activity:
        for number, check in enumerate(checks):
            if number:
                activity.next(f"checking {check}")
            began = time.perf_counter()
            for found in results(check, setup):
                activity.note(f"{check}, {found}")
                if isinstance(found, Line):
                    lines.append((check, found))
                else:
                    left_out.append((check, found))
            seconds[check] = time.perf_counter() - began
            gc.collect()  # the arrays of one check must not take the memory of the next
    return Host(
        jax.process_index(),
        platform.node(),
        timing.versions(),
        timing.machine(),
        tuple(lines),
        tuple(left_out),
        seconds,
    )


def results(check: str, setup: Setup) -> Iterable[Line | LeftOut]:
    """Yields what a check finds. An error in it is a wrong line, a package that is not installed leaves it out."""
    try:
        yield from importlib.import_module(CHECKS[check]).run(setup)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            yield failed(error)
        else:
            yield LeftOut("all that follows", f"{package} is not installed")
    except Exception as error:  # of whatever kind: the next check may still say something
        yield failed(error)


def failed(error: Exception) -> Line:
    """Returns the line of a check that did not come to its end."""
    logging.debug("the check failed", exc_info=error)
    return Line("the check itself", f"{type(error).__name__}: {one_line(error)[:300]}", "comes to its end", WRONG)


def gather(host: Host) -> list[Host]:
    """Returns what all processes found, in their order; all must call it."""
    if jax.process_count() == 1:
        return [host]
    text = np.frombuffer(json.dumps(dataclasses.asdict(host)).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32)).ravel()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [read(json.loads(bytes(text[:length]))) for text, length in zip(texts, lengths, strict=True)]


def read(record: dict[str, Any]) -> Host:
    """Returns the host of its record as JSON holds it."""
    lines = tuple((check, Line(**line)) for check, line in record["lines"])
    left_out = tuple((check, LeftOut(**left)) for check, left in record["left_out"])
    return Host(**record | {"lines": lines, "left_out": left_out})
