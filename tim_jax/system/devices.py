"""What a command computes on, which it says in its first line, and accelerators that are there and left idle."""

import glob
import importlib.util
import os
import pathlib
import sys
from typing import NamedTuple, TextIO

import jax
from absl import logging


class Accelerator(NamedTuple):
    """A kind of accelerator that JAX may lack support for.

    Attributes:
        name: What people call it.
        extra: The extra of this package that installs the support.
        packages: Those of which one brings it.
        files: Patterns of files that are there where its driver is.
        pci: Its numbers (vendor, devices) on the PCI bus; () where the files say enough.
    """

    name: str
    extra: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    pci: tuple[str, tuple[str, ...]] | tuple[()] = ()


ACCELERATORS = (
    Accelerator(
        "an NVIDIA GPU",
        "gpu",
        ("jax_cuda13_plugin", "jax_cuda12_plugin"),
        ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so*"),
    ),
    Accelerator(
        "a TPU",
        "tpu",
        ("libtpu",),
        ("/dev/accel[0-9]*",),
        ("0x1ae0", ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")),  # from v3 to 7x
    ),
)


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
    for kind in ACCELERATORS:
        if is_there(kind):
            if any(importlib.util.find_spec(package) for package in kind.packages):
                return f"{kind.name} is on this machine, but JAX could not use it and runs on the CPU; see its driver"
            return (
                f"{kind.name} is on this machine, but JAX has no support for it and runs on the CPU: "
                f'pip install "tim-jax[{kind.extra}]" installs it'
            )
    return None


def is_there(kind: Accelerator, root: str = "/") -> bool:
    """Returns whether an accelerator is on this machine, whose files lie below `root`."""
    at = pathlib.Path(root)
    if any(glob.glob(str(at / pattern.lstrip("/"))) for pattern in kind.files):
        return True
    if not kind.pci:
        return False
    vendor, devices = kind.pci
    return any(
        (card / "vendor").read_text().strip() == vendor and (card / "device").read_text().strip() in devices
        for card in at.glob("sys/bus/pci/devices/*")
    )
