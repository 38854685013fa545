"""What the checks run on: devices, drivers, versions, flags."""

import os
import pathlib
from collections.abc import Iterator

import jax

from tim_jax.system import devices, timing
from tim_jax.verification.peaks import memory_of
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import OK, LeftOut, Line, slow_unless

FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "NCCL_DEBUG", "JAX_PLATFORMS")
NVIDIA = pathlib.Path("/proc/driver/nvidia/version")


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields lines that are all ok, but for an accelerator that lies idle."""
    here = jax.local_devices()
    kinds = ", ".join(sorted({device.device_kind for device in here}))
    idle = devices.idle()
    limit = "no accelerator that lies idle"
    figures = {"devices": jax.device_count(), "local_devices": len(here), "processes": jax.process_count()}
    described = devices.describe() + (f"; {idle}" if idle else "")
    yield Line("devices", described, limit, slow_unless(idle is None), figures | {"kinds": kinds})
    yield Line("driver", driver(), "", OK)
    if memory := memory_of(here[0]):
        yield Line("memory of a device", f"{memory[1] / 2**30:.2f} GiB", "", OK, {"bytes": memory[1]})
    yield Line("versions", ", ".join(f"{name} {version}" for name, version in timing.versions().items()), "", OK)
    flags = {name: value for name in FLAGS if (value := os.environ.get(name))}
    yield Line("flags", " ".join(f"{name}={value}" for name, value in flags.items()) or "none", "", OK, flags)


def driver() -> str:
    """Returns what is between JAX and the devices, in one line."""
    found = [" ".join(jax.local_devices()[0].client.platform_version.split())]
    if NVIDIA.exists():
        found.append(NVIDIA.read_text().splitlines()[0].partition(":")[2].strip())
    return "; ".join(found)
