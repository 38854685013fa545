"""The any-step table: quality of samples by number of steps, with the same noise at every step count."""

import json

import numpy as np
from etils import epath

from tim_jax.evaluation import curves, duplicates, protocol, restored
from tim_jax.evaluation.metrics import METRICS, TITLES
from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.system import files, lock

LOCK = "any_step.lock"
FLOOR = (
    "Floors are figures of real images. Halves: two halves of the training part; under held out, training part against "
    "held-out part. Halves hold half as many images, which nearly doubles the bias of their Fréchet distance: good "
    "samples can lie below it."
)
FLOOR_AT = (
    "{count:,} samples: what as many perfect samples, drawn from the very distribution of the training part, score on "
    "average against the same references"
)
HOW = {  # how a floor at the number of samples is found, for the metrics named
    (
        "frechet",
        "sfid",
    ): "Fréchet distances from disjoint parts of the training part of several sizes, by their "
    "bias in 1/samples + 1/images",
    ("mmd",): "MMD in the same way",
    ("kernel",): "the kernel distance is 0, as it has no bias, ± the standard deviation of a set of samples",
    ("precision", "recall"): "precision and recall of training images, each among others",
    ("frechet_held_out", "kernel_held_out", "precision_held_out"): "held out: training images in place of samples",
}
PLOTTED = {
    "floor": "floor: halves of the training part, half as many images",
    "floor_at_count": "floor: {count} perfect samples, expected",
}
TOLERANCE = 0.05  # a figure that is worse by more than this share counts against the verdict


def any_step_table(measure, steps, seeds, count, floor, nfe=int, progress=None, measured_by=None):
    """Measures samples by number of steps.

    The Fréchet distance of finite sets is biased upward, nearly as one over their size: the floor's halves score almost
    twice what full-sized sets would, so that good samples can lie below it. The kernel distance has no such bias. What
    perfect samples would score is beside the floor, where the caller adds "floor_at_count" (`Yardstick.floor_at`).

    Args:
        measure: maps (steps, seed) to ({name: figure} of `count` samples, seconds that sampling took). Sample i of a
            seed has the same noise and condition at every step count. Names are those of METRICS: "NAME" against the
            training part, "NAME_held_out" against the held-out part.
        steps: numbers of steps, at least 1.
        seeds: seeds of the noise, whole numbers.
        count: number of samples per step count and seed.
        floor: {name: figure} of real images (see `Yardstick.floor`).
        nfe: maps steps that were measured to network evaluations per image, which guidance doubles where it acts: a
            whole number, or the mean over images, which may take different ones, as a float.
        progress: called as progress(done, total, line) after every set of samples.
        measured_by: the `Protocol` of the figures; tables that were measured otherwise are not plotted together.

    Returns:
        A dict that JSON can hold. "rows", in ascending steps, hold steps, nfe, seconds_per_image (median over seeds)
        and, for every figure, NAME (mean over seeds), NAME_spread (standard deviation) and NAME_seeds. The others are
        floor, samples, seeds, protocol, reference (its own), and monotone (see there) of the first metric.

    Raises:
        ValueError: for an empty list, or a step count below one.
    """
    steps, seeds = sorted({int(s) for s in steps}), [int(seed) for seed in seeds]
    if not steps or steps[0] < 1:
        raise ValueError(f"steps {steps}: expected one or more step counts of at least 1")
    if not seeds:
        raise ValueError("seeds []: expected at least one seed")
    rows = []
    for s in steps:
        by_seed, seconds = [], []
        for seed in seeds:
            figures, elapsed = measure(s, seed)
            by_seed.append(figures)
            seconds.append(float(elapsed) / count)
            if progress is not None:
                name, value = next(iter(figures.items()))
                done = len(rows) * len(seeds) + len(by_seed)
                progress(done, len(steps) * len(seeds), f"{s} steps, seed {seed}: {name} {value:.4g}")
        rows.append(make_row(s, nfe(s), by_seed, seconds))
    table = {"rows": rows, "floor": dict(floor), "samples": int(count), "seeds": seeds}
    if measured_by:
        table |= {"protocol": measured_by.record(), "reference": dict(measured_by.reference)}
    first = next(name for name in METRICS if name in rows[0])
    return table | {"monotone": monotone(rows, first, long_title(table, first))}


def make_row(steps, nfe, by_seed, seconds):
    """Makes a row of the table.

    Args:
        steps: of the sampler.
        nfe: network evaluations per image; a float where it is a mean.
        by_seed: {name: figure} of each seed.
        seconds: per image, of each seed.

    Returns:
        {"steps", "nfe", "seconds_per_image", NAME, NAME_spread, NAME_seeds}; see `any_step_table`.
    """
    row = {"steps": steps, "nfe": nfe, "seconds_per_image": float(np.median(seconds))}
    for name in by_seed[0]:
        values = [float(figures[name]) for figures in by_seed]
        row[name] = float(np.mean(values))
        row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        row[f"{name}_seeds"] = values
    return row


def monotone(rows, name="frechet", title="Fréchet distance", tolerance=TOLERANCE):
    """Finds the step counts between which the mean of a metric becomes worse: more steps should never cost quality.

    Args:
        rows: of an any-step table, in ascending steps.
        name: of the metric.
        title: what to call the metric in the verdict.
        tolerance: the share by which a mean may become worse from a step count to the next without being counted.

    Returns:
        {"metric": name, "rises": [[from_steps, to_steps, ratio], ...], "verdict": one sentence}. A rise is a fall where
        higher figures are better.
    """
    higher, rises = METRICS[name].higher_is_better, []
    verb = "falls" if higher else "rises"
    for a, b in zip(rows, rows[1:]):
        margin = tolerance * abs(a[name])
        if b[name] < a[name] - margin if higher else b[name] > a[name] + margin:
            # A distance can be exactly 0, and JSON has no infinity.
            rises.append([a["steps"], b["steps"], b[name] / max(a[name], 1e-12)])
    if rises:
        where = ", ".join(f"{a} to {b} steps (×{ratio:.3g})" for a, b, ratio in rises)
        verdict = f"The {title} {verb} by more than {tolerance:.0%} from {where}."
    else:
        verdict = f"The {title} nowhere {verb} by more than {tolerance:.0%} from a step count to the next."
    return {"metric": name, "rises": rises, "verdict": verdict}


def titles(table):
    """Returns {name: title} of a table's columns: all metrics against the training part, then against the held-out."""
    features = table.get("reference", {}).get("features", "pixels").split()[0]
    own = {name: TITLES.get((features, name), metric.title) for name, metric in METRICS.items()}
    own |= {restored.NAME: restored.TITLE}
    both = own | {f"{name}{HELD_OUT}": f"{title}, held out" for name, title in own.items()}
    return {name: title for name, title in both.items() if name in table["rows"][0]}


def long_title(table, name):
    """Returns what to call a metric of a table in a sentence."""
    title = titles(table)[name]
    return f"{title} distance" if title in ("Fréchet", "kernel") else title


def to_markdown(table):
    """Returns a table as markdown: a line per step count and the floors, then the verdict and what was measured."""
    names = titles(table)
    mean = any(isinstance(row["nfe"], float) for row in table["rows"])
    header = ("steps", "mean NFE" if mean else "NFE", *names.values(), "ms per image")
    lines = [header, ["---:"] * len(header)]
    for row in table["rows"]:
        values = [_value(row[name], row[f"{name}_spread"], len(table["seeds"])) for name in names]
        lines.append([str(row["steps"]), counted(row["nfe"]), *values, f"{1000 * row['seconds_per_image']:.3g}"])
    for title, floor in floors(table).items():
        lines.append([title, "", *(_floor(floor, name) for name in names), ""])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    seeds = len(table["seeds"])
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    step = f", training step {table['step']}" if "step" in table else ""
    note = f"{table['samples']} samples per step count, {over}{step}. "
    note += "NFE: network evaluations per image" + ", the mean of those that were made." * mean + "." * (not mean)
    floor = about_floors(table)
    measured_by = f"\n{table['protocol']['line']}\n" if "protocol" in table else ""
    return f"{body}\n\n{table['monotone']['verdict']} {note} {floor}\n{measured_by}"


def counted(nfe):
    """Returns a number of network evaluations as text, to four digits where it is a mean."""
    return f"{nfe:.4g}" if isinstance(nfe, float) else str(nfe)


def floors(table):
    """Returns {title: {name: figure}} of the floors that a table has."""
    found = {"floor, halves": table["floor"]}
    if "floor_at_count" in table:
        found[f"floor, {table['samples']:,} samples"] = table["floor_at_count"]
    return found


def about_floors(table):
    """Returns a few sentences on what the floors of a table are, and on duplicates among the real images."""
    return " ".join(filter(None, [FLOOR + _how(table), duplicates.sentence(table.get("duplicates", {}))]))


def _how(table):
    """How the floor at the number of samples was found, for those metrics that have one."""
    if "floor_at_count" not in table:
        return ""
    how = [text for names, text in HOW.items() if any(name in table["floor_at_count"] for name in names)]
    return " " + ": ".join([FLOOR_AT.format(count=table["samples"]), *["; ".join(how)] * bool(how)]) + "."


def _floor(floor, name):
    spread = f" ± {floor[f'{name}_spread']:.1g}" if f"{name}_spread" in floor else ""
    return f"{floor[name]:.3g}{spread}" if name in floor else ""


def plot(tables, path):
    """Plots the first metric of some tables against the training part, by network evaluations, as PNG.

    Args:
        tables: {name: table}, of which each becomes a curve, with its floors as dashed and dotted lines. Their first
            metric is that of the first table, the Fréchet distance as a rule.
        path: where the picture is written.

    Raises:
        ValueError: naming what differs, if tables were measured by different protocols.
    """
    first = next(iter(tables))
    for name, table in tables.items():
        protocol.check_same(table, tables[first], (name, first))
    metric = next(iter(tables.values()))["monotone"].get("metric", "frechet")
    series = {
        name: tuple([row[key] for row in table["rows"]] for key in ("nfe", metric, f"{metric}_spread"))
        for name, table in tables.items()
    }
    lines = {}
    for key, label in PLOTTED.items():
        having = {name: table for name, table in tables.items() if table.get(key, {}).get(metric, 0) > 0}
        if having:
            counts = {f"{table['samples']:,}" for table in having.values()} if "{count}" in label else {""}
            title = label.format(count=counts.pop() if len(counts) == 1 else "as many")
            lines[title] = {name: table[key][metric] for name, table in having.items()}
    title = long_title(next(iter(tables.values())), metric)
    curves.curves(series, lines, path, "network evaluations per image", f"{title} to the training part")


def write(table, workdir, name=None):
    """Writes any_step.json, any_step.md and any_step.png into a workdir, each in one move.

    An earlier any_step.json that differs becomes any_step.1.json, any_step.2.json, and so on.

    Args:
        table: what `any_step_table` returned.
        workdir: the folder.
        name: of the curve in the plot; by default the folder's.
    """
    workdir = epath.Path(workdir)
    with lock.locked(workdir, name=LOCK, waiting=lambda who: None):  # of two evaluations each keeps the other's table
        _write(table, workdir, name or workdir.name)


def _write(table, workdir, name):
    text = json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = workdir / "any_step.json"
    if path.exists() and path.read_text() != text:
        number = 1
        while (workdir / f"any_step.{number}.json").exists():
            number += 1
        files.replace(workdir / f"any_step.{number}.json", path.read_bytes())
    files.replace(path, text.encode())
    files.replace(workdir / "any_step.md", to_markdown(table).encode())
    plot({name: table}, workdir / "any_step.png")


def _value(mean, spread, seeds):
    return f"{mean:.3g} ± {spread:.1g}" if seeds > 1 else f"{mean:.3g}"
