"""What `python -m tim_jax.verify` has measured on a device, beside what is planned for such devices."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tim_jax.system.chips import CHIPS, Chip, chip_of
from tim_jax.system.reporting import table
from tim_jax.system.topologies import Topology

SPEEDS = ("flops", "memory_bandwidth", "link", "network")  # fields of Chip that may have been measured
STEPS = (
    ("step", "{step}"),
    ("GiB planned", "{planned_gib}"),
    ("measured", "{measured_gib}"),
    ("ms planned, at least", "{planned_ms:.4g}"),
    ("measured", "{measured_ms:.4g}"),
    ("ratio", "{ratio:.2f}"),
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured on a device.

    Attributes:
        device: What it calls itself.
        speeds: Those of SPEEDS that were measured, by name.
        steps: Of networks, each {"step", "seconds", "planned_seconds", "planned_bytes", "measured_bytes"}.
    """

    device: str
    speeds: dict[str, float]
    steps: Sequence[dict[str, Any]]

    def of(self, topology: Topology) -> bool:
        """Whether the chips of a topology are such devices."""
        return topology.chip == (CHIPS["cpu"] if self.device == "cpu" else chip_of(self.device))

    def chip(self, chip: Chip) -> Chip:
        """Returns a chip with what was measured in place of published figures."""
        return dataclasses.replace(chip, **self.speeds)  # type: ignore[arg-type]


def read(file: str, topologies: Sequence[Topology]) -> Measured:
    """Reads what `python -m tim_jax.verify --out=FILE` has written.

    Raises:
        ValueError: If it is no such file, or of devices that no topology has; it names --measured.
    """
    must = f"--measured is {file!r}; it must be a file that python -m tim_jax.verify --out=FILE has written"
    try:
        record = json.loads(pathlib.Path(file).expanduser().read_text())
        speeds = {name: float(record["speeds"][name]) for name in SPEEDS if name in record["speeds"]}
        found = Measured(str(record["machine"]["device"]), speeds, list(record["planned"]))
        steps_table(found.steps)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise ValueError(must) from None
    if not any(found.of(topology) for topology in topologies):
        names = ", ".join(topology.name for topology in topologies)
        raise ValueError(f"{must} on devices such as those of {names}, and it is of {found.device}")
    return found


def steps_table(steps: Sequence[dict[str, Any]]) -> str:
    """Returns what was planned and what was measured of some steps, as a table."""
    return table([_row(step) for step in steps], STEPS)


def _row(step: dict[str, Any]) -> dict[str, Any]:
    used = step["measured_bytes"]
    return {
        "step": step["step"],
        "planned_gib": f"{step['planned_bytes'] / 2**30:.3f}",
        "measured_gib": "not told" if used is None else f"{used / 2**30:.3f}",
        "planned_ms": 1e3 * step["planned_seconds"],
        "measured_ms": 1e3 * step["seconds"],
        "ratio": step["seconds"] / step["planned_seconds"],
    }
