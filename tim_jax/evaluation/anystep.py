"""The any-step table: quality of samples by number of steps, with the same noise at every step count."""

import json

import numpy as np
from etils import epath

from tim_jax.evaluation import curves, references
from tim_jax.evaluation.metrics import METRICS, TITLES
from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.system import files, lock

LABELS = {
    "data": ", labels as often as in the data",
    "balanced": ", every label alike",
    "captions": ", captions of the data",
}
LOCK = "any_step.lock"
TOLERANCE = 0.05  # a figure that is worse by more than this share counts against the verdict


def any_step_table(measure, steps, seeds, count, floor, nfe=int, progress=None, reference=None):
    """Measures samples by number of steps.

    The Fréchet distance of finite sets is biased upward, nearly as one over their size: the floor's halves score almost
    twice what full-sized sets would, so that good samples can lie below it. The kernel distance has no such bias.

    Args:
        measure: maps (steps, seed) to ({name: figure} of `count` samples, seconds that sampling took). Sample i of a
            seed has the same noise and condition at every step count. Names are those of METRICS: "NAME" against the
            training part, "NAME_held_out" against the held-out part.
        steps: numbers of steps, at least 1.
        seeds: seeds of the noise, whole numbers.
        count: number of samples per step count and seed.
        floor: {name: figure} of real images (see `Yardstick.floor`).
        nfe: maps steps to network evaluations per image, which guidance doubles where it acts.
        progress: called as progress(done, total, line) after every set of samples.
        reference: fingerprint of what the figures are against; tables of different ones are not plotted together.

    Returns:
        A dict that JSON can hold. "rows", in ascending steps, hold steps, nfe, seconds_per_image (median over seeds)
        and, for every figure, NAME (mean over seeds), NAME_spread (standard deviation) and NAME_seeds. The others are
        floor, samples, seeds, reference, and monotone (see there) of the first metric.

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
        row = {"steps": s, "nfe": nfe(s), "seconds_per_image": float(np.median(seconds))}
        for name in by_seed[0]:
            values = [float(figures[name]) for figures in by_seed]
            row[name] = float(np.mean(values))
            row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row[f"{name}_seeds"] = values
        rows.append(row)
    table = {"rows": rows, "floor": dict(floor), "samples": int(count), "seeds": seeds}
    table |= {"reference": dict(reference)} if reference else {}
    first = next(name for name in METRICS if name in rows[0])
    return table | {"monotone": monotone(rows, first, long_title(table, first))}


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
    both = own | {f"{name}{HELD_OUT}": f"{title}, held out" for name, title in own.items()}
    return {name: title for name, title in both.items() if name in table["rows"][0]}


def long_title(table, name):
    """Returns what to call a metric of a table in a sentence."""
    title = titles(table)[name]
    return f"{title} distance" if title in ("Fréchet", "kernel") else title


def to_markdown(table):
    """Returns a table as markdown: a line per step count and the floor, then the verdict and what was measured."""
    names = titles(table)
    header = ("steps", "NFE", *names.values(), "ms per image")
    lines = [header, ["---:"] * len(header)]
    for row in table["rows"]:
        values = [_value(row[name], row[f"{name}_spread"], len(table["seeds"])) for name in names]
        lines.append([str(row["steps"]), str(row["nfe"]), *values, f"{1000 * row['seconds_per_image']:.3g}"])
    floor = table["floor"]
    lines.append(["floor", "", *(f"{floor[name]:.3g}" if name in floor else "" for name in names), ""])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    seeds = len(table["seeds"])
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    step = f", training step {table['step']}" if "step" in table else ""
    note = f"{table['samples']} samples per step count{LABELS.get(table.get('labels'), '')}, {over}{step}. "
    note += "NFE: network evaluations per image."
    floor = (
        "Floor: two halves of the training part; under held out, training part against held-out part. Halves hold half "
        "as many images, which nearly doubles the bias of their Fréchet distance: good samples can lie below it."
    )
    of = table.get("reference")
    floor += f" Compared by {of['features']} with {of['images']:,} images of {of['data']}, {of['split']}." if of else ""
    return f"{body}\n\n{table['monotone']['verdict']} {note} {floor}\n"


def plot(tables, path):
    """Plots the first metric of some tables against the training part, by network evaluations, as PNG.

    Args:
        tables: {name: table}, of which each becomes a curve, with its floor as a dashed line. Their first metric is
            that of the first table, the Fréchet distance as a rule.
        path: where the picture is written.

    Raises:
        ValueError: naming what differs, if tables were measured against different references.
    """
    known = {name: table["reference"] for name, table in tables.items() if "reference" in table}
    for name, fingerprint in known.items():
        references.check_same(fingerprint, next(iter(known.values())), f"the reference of {name}")
    metric = next(iter(tables.values()))["monotone"].get("metric", "frechet")
    series = {
        name: tuple([row[key] for row in table["rows"]] for key in ("nfe", metric, f"{metric}_spread"))
        for name, table in tables.items()
    }
    floor = {name: table["floor"][metric] for name, table in tables.items() if metric in table["floor"]}
    title = long_title(next(iter(tables.values())), metric)
    labels = ("network evaluations per image", f"{title} to the training part")
    curves.curves(series, floor, path, *labels, floor_label="floor: halves of the training part, half as many images")


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
