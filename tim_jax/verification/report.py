"""The report of a verification, as text and as JSON."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from tim_jax.plan.measured import steps_table
from tim_jax.system.reporting import table
from tim_jax.verification.job import Host
from tim_jax.verification.verdicts import OK, VERDICTS, WRONG, LeftOut, Line, worst

COLUMNS = (
    ("check", "{check}"),
    ("what", "{what}"),
    ("measured", "{measured}"),
    ("limit", "{limit}"),
    ("verdict", "{verdict}"),
)
VERSIONS = Line("versions of all hosts", "the same", "the same", OK)


def lines_of(hosts: Sequence[Host]) -> Iterator[tuple[str, Line]]:
    """Yields (check, line): all of the first host, and what is not ok on others, with the host's number."""
    yield from hosts[0].lines
    for host in hosts[1:]:
        for check, line in host.lines:
            if line.verdict != OK:
                yield f"{check}, host {host.process}", line
    if len(hosts) > 1:
        different = [str(host.process) for host in hosts if host.versions != hosts[0].versions]
        measured = f"other ones on {', '.join(different)}" if different else VERSIONS.measured
        yield "machine", Line(VERSIONS.what, measured, VERSIONS.limit, WRONG if different else OK)


def left_out_of(hosts: Sequence[Host]) -> Iterator[tuple[str, LeftOut]]:
    """Yields (check, what was left out): all of the first host, and what others alone left out."""
    yield from hosts[0].left_out
    for host in hosts[1:]:
        for check, left in host.left_out:
            if (check, left) not in hosts[0].left_out:
                yield f"{check}, host {host.process}", left


def verdict(hosts: Sequence[Host]) -> str:
    """Returns the worst verdict of all hosts."""
    return worst(line.verdict for _, line in lines_of(hosts))


def planned(lines: Sequence[tuple[str, Line]]) -> list[dict[str, Any]]:
    """Returns the figures of the steps that the planner said something of."""
    return [dict(line.figures) for _, line in lines if "planned_seconds" in line.figures]


def show(hosts: Sequence[Host]) -> str:
    """Returns the report as text."""
    lines = list(lines_of(hosts))
    rows = [
        {"check": check, "what": line.what, "measured": line.measured, "limit": line.limit, "verdict": line.verdict}
        for check, line in lines
    ]
    text = [table(rows, COLUMNS)] if rows else []
    if steps := planned(lines):
        text += ["", steps_table(steps)]
    text += [f"left out: {check}, {left.what}: {left.why}" for check, left in left_out_of(hosts)]
    counts = ", ".join(f"{sum(row['verdict'] == name for row in rows)} {name}" for name in VERDICTS)
    where = f" of {len(hosts)} processes" if len(hosts) > 1 else ""
    text += ["", f"{verdict(hosts)}: {counts}{where}; in {sum(hosts[0].seconds.values()):.0f} s"]
    return "\n".join(text)


def record(hosts: Sequence[Host]) -> dict[str, Any]:
    """Returns the report as JSON holds it, in SI units."""
    lines = list(lines_of(hosts))
    return {
        "verdict": verdict(hosts),
        "seconds": hosts[0].seconds,
        "machine": hosts[0].machine,
        "versions": hosts[0].versions,
        "speeds": speeds(lines),
        "planned": planned(lines),
        "lines": [as_json(check, line) for check, line in lines],
        "left_out": [{"check": check, "what": left.what, "why": left.why} for check, left in left_out_of(hosts)],
        "hosts": [
            {
                "process": host.process,
                "name": host.name,
                "verdict": worst(line.verdict for _, line in host.lines),
                "lines": [as_json(check, line) for check, line in host.lines],
            }
            for host in hosts
        ],
    }


def as_json(check: str, line: Line) -> dict[str, Any]:
    """Returns a line as JSON holds it."""
    about = {"check": check, "what": line.what, "measured": line.measured, "limit": line.limit}
    return about | {"verdict": line.verdict, "figures": dict(line.figures)}


def speeds(lines: Sequence[tuple[str, Line]]) -> dict[str, float]:
    """Returns what the planner can take in place of published figures, by the names of `Chip`."""
    found: dict[str, float] = {}
    for check, line in lines:
        figures = line.figures
        if check == "products" and "exact" in figures:
            found["flops"] = min(figures["flops"], found.get("flops", figures["flops"]))
        elif check == "products" and "memory_bandwidth" in figures:
            found["memory_bandwidth"] = figures["memory_bandwidth"]
        elif check == "collectives" and "bandwidth" in figures:
            found[figures["over"]] = max(figures["bandwidth"], found.get(figures["over"], 0.0))
    return found


def write(file: pathlib.Path, hosts: Sequence[Host]) -> None:
    """Writes the report as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record(hosts), indent=2) + "\n")
