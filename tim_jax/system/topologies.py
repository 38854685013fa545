"""Devices that are not there: TPU slices and GPU clusters as their compilers see them, and the CPU's own.

A topology is written CHIP:SHAPE. TPU slices go by their torus (v5e:16x16, v5p:4x4x8) or accelerator type (v5e-256,
v5p-256), several of them over the data-centre network by their number as well (2xv5p-256); GPU clusters by nodes × GPUs
per node (h100:4x8), the CPU by its number of host devices (cpu:8). JAX is imported by the functions that need it, so
that names are checked at once.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re

from tim_jax.system.accelerators import NO_TPU
from tim_jax.system.chips import CHIPS, Chip
from tim_jax.system.slices import named_slice

EXAMPLES = ("v5e:16x16", "v5p:4x4x8", "v6e:16x16", "v5p-64", "2xv5p-64", "a100:4x8", "h100:4x8", "h200:4x8", "cpu:8")
TPUS = {"v5e": 2, "v5p": 3, "v6e": 2}  # dimensions of the torus
COMPILERS = {"TPU": ("libtpu",), "GPU": ("jax_cuda13_plugin", "nvidia")}  # the packages that bring them
# What XLA's GPU compiler wants to know of a GPU: (compute capability, cores, clock in GHz, arithmetic units per core,
# shared memory per core and the most of it that one block may have, second-level cache), sizes in bytes.
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 8, 108, 1.41, 64, 167_936, 166_912, 41_943_040),
    "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 128, 233_472, 232_448, 52_428_800),
    "h200": ("NVIDIA H200 141GB HBM3e", 9, 132, 1.98, 128, 233_472, 232_448, 52_428_800),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that programs are compiled for and that need not be there.

    Attributes:
        name: As it was written.
        chip: Figures of one of its chips.
        devices: To compile for.
        island: How many devices are joined by fast links; they are consecutive in `devices`.
    """

    name: str
    chip: Chip
    devices: list
    island: int

    @property
    def islands(self) -> int:
        """How many slices or nodes there are, between which the network is."""
        return len(self.devices) // self.island


def topology(name: str) -> Topology:
    """Returns the topology called `name`. Raises ValueError as `check`, and for a slice that no compiler knows."""
    kind, sizes, count = check(name)
    if kind in TPUS:
        devices = _tpus(name, kind, sizes, count)
        return Topology(name, CHIPS[kind], devices, len(devices) // count)
    if kind in GPUS:
        return Topology(name, CHIPS[kind], _gpus(kind, sizes), sizes[-1])
    return Topology(name, CHIPS[kind], _cpus(name, sizes), sizes[0])


def check(name: str) -> tuple[str, tuple[int, ...], int]:
    """Returns the chip, the sizes and the number of slices that a topology's name means. Imports nothing.

    Raises:
        ValueError: If there is no such topology, or if what it needs is not installed.
    """
    several = re.fullmatch(r"([1-9]\d*)x([a-z].*)", name)
    count, one = (int(several[1]), several[2]) if several else (1, name)
    try:
        found = named_slice(one)
    except ValueError as error:
        raise ValueError(f"--topology has {name!r}; {error}") from None
    kind, shape = found or (one.partition(":")[0], one.partition(":")[2])
    if found and kind not in CHIPS:
        raise ValueError(f"--topology has {name!r}; it must have one of the chips {', '.join(CHIPS)}")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"--topology has {name!r}; it must be CHIP:SHAPE, such as {', '.join(EXAMPLES)}")
    sizes = tuple(int(size) for size in shape.split("x"))
    if kind in TPUS and len(sizes) != TPUS[kind]:
        raise ValueError(f"--topology has {name!r}; its shape must have {TPUS[kind]} sizes, such as {_like(kind)}")
    if several and kind not in TPUS:
        raise ValueError(f"--topology has {name!r}; it must be one such as {_like(kind)}: only TPU slices are counted")
    if kind in GPUS and len(sizes) != 2:
        raise ValueError(f"--topology has {name!r}; it must be nodes × GPUs per node, such as {_like(kind)}")
    missing = {package for package in COMPILERS.get(_maker(kind), ()) if importlib.util.find_spec(package) is None}
    if missing:
        maker = _maker(kind)
        raise ValueError(
            f'--topology has {name!r}, which needs the {maker} compiler: pip install "tim-jax[{maker.lower()}-planner]"'
        )
    return kind, sizes, count


def _maker(kind: str) -> str:
    return "TPU" if kind in TPUS else "GPU" if kind in GPUS else "CPU"


def host_devices(names: list[str]) -> None:
    """Makes room for the CPU devices of the topologies `names`, before JAX has started."""
    import jax

    counts = [int(count) for count in re.findall(r"\bcpu:(\d+)", ",".join(names))]
    jax.config.update("jax_platforms", "cpu")
    if counts and max(counts) > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(counts))


def _tpus(name: str, kind: str, sizes: tuple[int, ...], count: int) -> list:
    import jax
    from jax.experimental import topologies

    # There is no TPU here and no metadata server to ask about one; several planners may run beside one another.
    for key, value in (NO_TPU | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}).items():
        os.environ.setdefault(key, value)
    try:
        shape, more = "x".join(map(str, sizes)), {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}
        return list(topologies.get_topology_desc(f"{kind}:{shape}", "tpu", num_slices=count, **more).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology has {name!r}; the TPU compiler has no such slice ({error})") from None


def _gpus(kind: str, sizes: tuple[int, ...]) -> list:
    from jax.experimental import topologies

    _find_cuda_tools()
    return list(
        topologies.get_topology_desc(
            kind, "cuda", target_config=gpu_description(kind), topology=f"1x{sizes[0]}x{sizes[1]}"
        ).devices
    )


def _find_cuda_tools() -> None:
    """Puts the assembler of the nvidia-cuda-nvcc package on the path of this process."""
    package = importlib.util.find_spec("nvidia")
    for folder in (package and package.submodule_search_locations) or ():
        for assembler in pathlib.Path(folder).glob("cu*/bin/ptxas"):
            if str(assembler.parent) not in os.environ["PATH"].split(os.pathsep):
                os.environ["PATH"] = f"{assembler.parent}{os.pathsep}{os.environ['PATH']}"


def gpu_description(kind: str) -> str:
    """Returns a GPU in the text form of XLA's GpuTargetConfigProto."""
    title, capability, cores, clock, units, shared, shared_most, cache = GPUS[kind]
    chip = CHIPS[kind]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared_most,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "core_count": cores,
        "fpus_per_core": units,
        "clock_rate_ghz": clock,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "l2_cache_size": cache,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "device_memory_size": chip.memory,
    }
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {capability} }} }} "
        f'platform_name: "CUDA" runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }} '
        f'device_description_str: "{title}"'
    )


def _cpus(name: str, sizes: tuple[int, ...]) -> list:
    import jax

    devices = jax.devices("cpu")
    if len(sizes) != 1 or math.prod(sizes) > len(devices):
        raise ValueError(f"--topology has {name!r}; it must be a number of host devices, here up to {len(devices)}")
    return devices[: sizes[0]]


def _like(kind: str) -> str:
    return next(example for example in EXAMPLES if example.startswith(f"{kind}:"))
