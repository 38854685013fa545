"""How things are measured: time interleaved in one run, memory from the compiled program."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long something takes.

    Attributes:
        seconds: Median of the repeats.
        spread: Half the distance between their quartiles, in seconds.
    """

    seconds: float
    spread: float


def interleaved(
    calls: Mapping[Any, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, Timing]:
    """Returns timings of several functions, called in turn, so that whatever else the machine does falls on all alike.

    Args:
        calls: Functions without arguments by name, whose results are waited for. Every round starts with another one.
        repeats: Rounds that count.
        warmup: Rounds before them.
        clock: Returns seconds.
    """
    names = list(calls)
    seconds: dict[Any, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            jax.block_until_ready(calls[name]())
            if turn >= warmup:
                seconds[name].append(clock() - began)
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> Timing:
    """Returns median and spread of some repeats."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return Timing(float(middle), float(high - low) / 2)


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program needs besides arguments and results."""
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)


def machine() -> dict[str, Any]:
    """Returns what the measurements were made on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that matter."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
