"""What one chip of each kind can do, for the planner and for the utilisation of the chips that are there."""

import dataclasses

GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
        memory: Bytes that programs may use.
        flops: bfloat16 operations per second.
        memory_bandwidth: Bytes per second.
        link: Bytes per second that a chip can receive from its island, over all of its links together. An island is a
            TPU slice (ICI) or the GPUs of one node (NVLink).
        network: Bytes per second that a chip can receive from other islands.
    """

    memory: int
    flops: float
    memory_bandwidth: float
    link: float
    network: float


CHIPS = {
    "v5e": Chip(int(15.75 * GiB), 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip(int(95.74 * GiB), 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(int(31.25 * GiB), 918e12, 1640e9, 448e9, 12.5e9),
    "a100": Chip(85_100_068_864, 312e12, 2039e9, 300e9, 25e9),
    "h100": Chip(84_942_979_072, 989e12, 3352e9, 450e9, 50e9),
    "h200": Chip(151_397_597_184, 989e12, 4800e9, 450e9, 50e9),
    "cpu": Chip(16 * GiB, 1e12, 50e9, 10e9, 1e9),  # round numbers, not a machine: to try the planner without a compiler
}

# What devices call themselves.
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that a device is, by its `device_kind`, or None where that is not known."""
    found = [kind for kind in KINDS if device_kind.startswith(kind)]
    return CHIPS[KINDS[max(found, key=len)]] if found else None
