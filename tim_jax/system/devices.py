"""What a command computes on, which it says in its first line; accelerators that are there and left idle."""

import importlib.util
import os
import sys
from typing import TextIO

import jax
from absl import logging

from tim_jax.system.accelerators import GPU, TPU, is_there


def announce(file: TextIO | None = None) -> None:
    """Writes what this process and those of its run compute on, once, and warns of an accelerator that is left idle.

    Args:
        file: Where to; by default standard output. Where that holds a table, standard error.
    """
    if jax.process_index() == 0:
        print(f"on {describe()} (JAX {jax.__version__})", file=file or sys.stdout, flush=True)
        if reason := idle():
            logging.warning("%s", reason)


def describe() -> str:
    """Returns the devices in words: "8 NVIDIA H100 80GB HBM3 of 2 processes", "the CPU, 2 cores"."""
    count, processes = jax.device_count(), jax.process_count()
    if jax.default_backend() == "cpu":
        devices = f"the CPU, {len(os.sched_getaffinity(0))} cores" + (f" as {count} devices" if count > 1 else "")
    else:
        devices = f"{count} {jax.devices()[0].device_kind}"
    return devices + (f" of {processes} processes" if processes > 1 else "")


def idle() -> str | None:
    """Returns what to say of an accelerator that is on this machine while JAX has only the CPU, which nobody chose."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return None
    for kind in (GPU, TPU):
        if is_there(kind):
            if any(importlib.util.find_spec(package) for package in kind.packages):
                return f"{kind.name} is on this machine, but JAX could not use it and runs on the CPU; see its driver"
            return (
                f"{kind.name} is on this machine, but JAX has no support for it and runs on the CPU: "
                f'pip install "tim-jax[{kind.extra}]" installs it'
            )
    return None
