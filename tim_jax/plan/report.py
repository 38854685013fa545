"""The report of the planner, as text and as JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.plan.bounds import Bounds, bounds, network_bytes
from tim_jax.plan.collectives import Collective
from tim_jax.plan.compile import Step
from tim_jax.plan.measured import Measured, steps_table
from tim_jax.system.reporting import table
from tim_jax.system.topologies import Topology
from tim_jax.training.mesh import mesh_text

DAY = 86_400
COMPARISON = (
    ("topology", "{topology}"),
    ("mesh", "{mesh}"),
    ("examples", "{batch_size}"),
    ("fits", "{fits}"),
    ("GiB a chip", "{gib:.2f} of {capacity:.1f}"),
    ("parameters", "{parameters:.3f}"),
    ("optimizer", "{optimizer:.3f}"),
    ("EMAs", "{emas:.3f}"),
    ("teachers", "{teachers:.3f}"),
    ("activations", "{activations:.2f}"),
    ("compute ms", "{compute:.1f}"),
    ("memory ms", "{memory:.1f}"),
    ("interconnect ms", "{interconnect:.1f}"),
    ("images/s", "{images_per_second:,.0f}"),
    ("days", "{days:.2f}"),
    ("compiled in s", "{seconds:.0f}"),
)


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """All that is known of a configuration on a topology.

    Attributes:
        topology: the devices.
        step: compiled for them.
        collectives: of the step; none if the compiler refused it.
        bounds: how fast the step can be at best; None if the compiler refused it.
        steps: that are trained.
        largest: examples in the largest batch that fits, where the step's does not; 0 if none does.
        measured: what was measured on such devices, if it was.
    """

    topology: Topology
    step: Step
    collectives: Sequence[Collective]
    bounds: Bounds | None
    steps: int
    largest: int | None = None
    measured: Measured | None = None

    @property
    def bounds_measured(self) -> Bounds | None:
        """The bounds at the speeds that were measured; None if none were, or the compiler refused the step."""
        if self.measured is None or self.bounds is None:
            return None
        chip = self.measured.chip(self.topology.chip)
        return bounds(self.step, dataclasses.replace(self.topology, chip=chip), self.collectives)

    @property
    def fits(self) -> bool:
        """Whether the step was compiled and fits into the memory of a chip."""
        return self.step.text is not None and self.step.memory.total <= self.topology.chip.memory

    @property
    def images_per_second(self) -> float:
        """At most; NaN if the compiler refused the step."""
        return self.step.batch_size / self.bounds.step if self.bounds else float("nan")

    @property
    def days(self) -> float:
        """Of training, at least; NaN if the compiler refused the step."""
        return self.steps * self.bounds.step / DAY if self.bounds else float("nan")


def show(plan: PlanReport) -> str:
    """Returns the report as lines of text."""
    step, topology, memory = plan.step, plan.topology, plan.step.memory
    chips, capacity = len(topology.devices), topology.chip.memory
    chosen = " (mesh.fsdp was chosen)" if step.chosen else ""
    lines = [
        f"{topology.name}: {chips} chips, mesh {mesh_text(step.mesh)}{chosen}; {step.batch_size} examples a step, "
        f"{step.parameters:,} parameters; compiled in {step.seconds:.0f} s",
        "",
        "memory of a chip, GiB",
        *(f"  {name:12} {gib(size):9.3f}" for name, size in dataclasses.asdict(memory).items()),
        f"  {'total':12} {gib(memory.total):9.3f} of {gib(capacity):.2f}: {'fits' if plan.fits else 'DOES NOT FIT'}",
    ]
    if step.mesh.shape["fsdp"] > 1 and step.unsharded > step.parameters / 10:
        lines.append(
            f"  {step.unsharded:,} of {step.parameters:,} parameters are whole on every chip: mesh.fsdp "
            f"({step.mesh.shape['fsdp']}) does not divide their widths; mesh.data=-1 mesh.fsdp=0 chooses one that does"
        )
    if plan.largest is not None:
        lines.append(
            f"  the largest batch that fits, compiled to be sure: {plan.largest} examples"
            if plan.largest
            else "  no batch fits on this mesh: shard further (mesh.fsdp, mesh.tensor) or recompute (model.remat)"
        )
    lines += [
        "",
        f"operations of a step, all chips: {step.executed_flops:.4g} executed, {step.model_flops:.4g} by the model",
    ]
    if plan.bounds is None:
        return "\n".join(lines)
    lines += ["", "collectives of a step, bytes received by a chip"]
    columns, rows = COLLECTIVES, collective_rows(plan)
    if topology.islands > 1:
        columns = (*columns, ("over the network", "{network:,.0f}"))
        rows.append({"kind": "all", "axes": "", "dtype": "", "count": ""} | network_total(rows))
    lines += [f"  {line}" for line in table(rows, columns).splitlines()]
    if topology.islands > 1:
        crossing = rows[-1]["network"] * topology.island
        lines.append(f"  {crossing:,.0f} bytes a step reach each of {topology.islands} slices or nodes from the others")
    best, at_measured, chip = plan.bounds, plan.bounds_measured, topology.chip
    lines += ["", "a step takes at least, ms" + ("; planned, and at measured speeds" if at_measured else "")]
    for name, seconds in dataclasses.asdict(best).items():
        beside = f" {1e3 * getattr(at_measured, name):9.2f}" if at_measured else ""
        lines.append(f"  {name:12} {1e3 * seconds:9.2f}{beside}")
    lines.append(
        f"at most {plan.images_per_second:,.0f} images/s, bound by {best.name}; model FLOPs utilisation at most "
        f"{step.model_flops / chips / chip.flops / best.step:.0%}; {plan.steps:,} steps in {plan.days:.2f} days"
    )
    if plan.measured is not None and plan.measured.steps:
        lines += ["", f"steps that were measured on {plan.measured.device}"]
        lines += [f"  {line}" for line in steps_table(plan.measured.steps).splitlines()]
    return "\n".join(lines)


COLLECTIVES: tuple[tuple[str, str], ...] = (
    ("kind", "{kind}"),
    ("axes", "{axes}"),
    ("type", "{dtype}"),
    ("a step", "{count}"),
    ("bytes", "{bytes:,.0f}"),
)


def collective_rows(plan: PlanReport) -> list[dict[str, Any]]:
    """Returns the collectives summed by kind, mesh axes and type, those with the most bytes first."""
    rows: dict[tuple, dict[str, Any]] = {}
    for c in plan.collectives:
        axes = "+".join(c.axes(plan.step.mesh)) or "none"
        row = rows.setdefault(
            (c.kind, axes, c.dtype),
            {"kind": c.kind, "axes": axes, "dtype": c.dtype, "count": 0, "bytes": 0.0, "network": 0.0},
        )
        row["count"] += c.count
        row["bytes"] += c.bytes * c.count
        row["network"] += network_bytes(c, plan.topology.island) * c.count
    return sorted(rows.values(), key=lambda row: -row["bytes"])


def network_total(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the bytes of all collectives, and those of them that come over the network."""
    return {name: sum(row[name] for row in rows) for name in ("bytes", "network")}


def compare(plans: Sequence[PlanReport]) -> str:
    """Returns a table with a line per report: memory in GiB, times of a step at least, images a second at most."""
    rows = []
    for plan in plans:
        memory, bounds = plan.step.memory, plan.bounds
        rows.append(
            {
                "topology": plan.topology.name,
                "mesh": mesh_text(plan.step.mesh),
                "batch_size": plan.step.batch_size,
                "fits": "yes" if plan.fits else f"no; {plan.largest} examples do" if plan.largest else "no",
                "gib": gib(memory.total),
                "capacity": gib(plan.topology.chip.memory),
                "images_per_second": plan.images_per_second,
                "days": plan.days,
                "seconds": plan.step.seconds,
                **{name: gib(size) for name, size in dataclasses.asdict(memory).items()},
                **{
                    name: 1e3 * getattr(bounds, name) if bounds else float("nan")
                    for name in ("compute", "memory", "interconnect")
                },
            }
        )
    return table(rows, COMPARISON)


def write(file: pathlib.Path, plans: Sequence[PlanReport]) -> None:
    """Writes a list of reports as JSON: bytes, seconds and operations as plain numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([record(plan) for plan in plans], indent=2) + "\n")


def record(plan: PlanReport) -> dict[str, Any]:
    """Returns a report as JSON holds it; "rows" are the examples in a batch."""
    step = plan.step
    return {
        "topology": plan.topology.name,
        "chips": len(plan.topology.devices),
        "mesh": dict(step.mesh.shape),
        "rows": step.batch_size,
        "parameters": step.parameters,
        "fits": plan.fits,
        "largest_batch": plan.step.batch_size if plan.fits else plan.largest,
        "memory": dataclasses.asdict(step.memory) | {"total": step.memory.total, "chip": plan.topology.chip.memory},
        "executed_flops": step.executed_flops,
        "model_flops": step.model_flops,
        "slices": plan.topology.islands,
        "collectives": collective_rows(plan),
        "bounds": dataclasses.asdict(plan.bounds) | {"step": plan.bounds.step} if plan.bounds else None,
        "bounds_measured": dataclasses.asdict(plan.bounds_measured) if plan.bounds_measured else None,
        "images_per_second": plan.images_per_second if plan.bounds else None,
        "days": plan.days if plan.bounds else None,
        "compile_seconds": step.seconds,
    }


def gib(size: float) -> float:
    """Returns bytes as GiB."""
    return size / 2**30
