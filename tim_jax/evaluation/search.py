"""Rewards of searches by network evaluations: a table, a plot and a file."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from tim_jax.evaluation import figures
from tim_jax.system import files

NAMES = ("search.json", "search.md", "search.png")


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the table, a line for each search and a column for each number of evaluations; found: see `write`."""
    methods = found["methods"]
    counts = sorted({row["evaluations"] for rows in methods.values() for row in rows})
    lines = [["evaluations", *map(str, counts)], ["---", *["---:"] * len(counts)]]
    for name, rows in methods.items():
        values = {row["evaluations"]: f"{row['reward']:.4g} ± {row['error']:.1g}" for row in rows}
        lines.append([f"`{name}`", *(values.get(count, "") for count in counts)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    stochastic = f", stochasticity {found['stochasticity']:g}" * bool(found["stochasticity"])
    return (
        f"{table}\n\nMean {found['reward']['reward']} of {found['samples']} samples ± its standard error: "
        f"{found['sampler']} in {found['steps']} steps{stochastic}, guidance {found['guidance']:g}, weights "
        f"{found['weights']} of training step {found['training_step']:,}, seed {found['seed']}.\n"
    )


def plot(found: Mapping[str, Any], path: epath.Path) -> None:
    """Draws the mean reward by evaluations, as PNG; found: see `write`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # slow to import

    figure = figures.new(7, 4)
    axes = figure.subplots()
    for i, (name, rows) in enumerate(found["methods"].items()):
        x, y, error = ([row[key] for row in rows] for key in ("evaluations", "reward", "error"))
        style = {"color": figures.COLOURS[i], "marker": figures.MARKERS[i]}
        axes.errorbar(x, y, yerr=error, label=name, lw=1.8, ms=6, mec="white", mew=0.8, capsize=3, **style)
    axes.set_xscale("log", base=2)
    counts = {row["evaluations"] for rows in found["methods"].values() for row in rows}
    axes.xaxis.set_major_locator(FixedLocator(figures.thinned(counts)))
    axes.xaxis.set_major_formatter(FuncFormatter(figures.plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations per image")
    axes.set_ylabel(f"mean {found['reward']['reward']}")
    axes.grid(color="#dddddd", lw=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figures.legend_below(figure, *axes.get_legend_handles_labels())
    figures.save(figure, path)


def write(found: Mapping[str, Any], folder: epath.Path) -> None:
    """Writes NAMES into a folder.

    Args:
        found: "methods" {name: rows with "budget", "evaluations", "reward" and its standard "error"}, "reward" (what
            says which), and how it was measured.
        folder: where the files are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / NAMES[0], (json.dumps(found, indent=2) + "\n").encode())
    files.replace(folder / NAMES[1], as_markdown(found).encode())
    plot(found, folder / NAMES[2])
