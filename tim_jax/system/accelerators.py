"""Accelerators that JAX may lack support for, and whether they are on this machine. Imports nothing that takes time."""

import glob
import os
import pathlib
from typing import NamedTuple


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


GPU = Accelerator(
    name="an NVIDIA GPU",
    extra="gpu",
    packages=("jax_cuda13_plugin", "jax_cuda12_plugin"),
    files=("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so*"),
)
TPU = Accelerator(
    name="a TPU",
    extra="tpu",
    packages=("libtpu",),
    files=("/dev/accel[0-9]*",),
    pci=("0x1ae0", ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")),  # from v3 to 7x
)

# With these the TPU library, where it is installed, neither asks a metadata server about a TPU that is not there nor
# complains at length that nothing answers.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


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


def quiet(root: str = "/") -> None:
    """Keeps the TPU library quiet on a machine without a TPU; before JAX starts.

    What may be a TPU of a kind that is not known here, a device that is passed through to this machine, counts as one,
    and so does JAX_PLATFORMS=tpu.
    """
    passed_through = glob.glob(str(pathlib.Path(root) / "dev/vfio/[0-9]*"))
    if not (is_there(TPU, root) or passed_through or "tpu" in os.environ.get("JAX_PLATFORMS", "")):
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
