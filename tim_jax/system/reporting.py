"""The rows of a benchmark as a table in the terminal and as JSON."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.system import timing


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Returns a table as aligned text.

    Args:
        rows: The fields of each row.
        columns: (heading, format of a row's fields, such as "{seconds:.3f} ± {spread:.3f}").
    """
    lines = [[heading for heading, _ in columns]] + [[form.format_map(row) for _, form in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> None:
    """Prints the table, and below it the machine and the versions."""
    print(table(rows, columns))
    for title, facts in (("machine", timing.machine()), ("versions", timing.versions())):
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value != ""))


def write(file: pathlib.Path, bench: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Writes a benchmark as JSON: "bench", "rows", "machine", "versions" and the settings.

    Args:
        file: To be written.
        bench: Name of the benchmark.
        rows: The fields of each row; those of a lone row stand on the top level as well.
        settings: What the command line said.
    """
    record = {
        "bench": bench,
        **{name: value for name, value in settings.items() if name != "json"},
        "machine": timing.machine(),
        "versions": timing.versions(),
        "rows": list(rows),
        **(rows[0] if len(rows) == 1 else {}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
