"""The any-step table: quality of samples by number of steps, with the same noise at every step count."""

import json

import numpy as np
from etils import epath

from tim_jax import files
from tim_jax.evaluation import METRICS, pictures

TOLERANCE = 0.05  # a rise of the distance beyond this share counts against the verdict


def any_step_table(sample, steps, seeds, count, reference, held_out, features, nfe=int, progress=None):
    """Distances of samples to the training part and to the held-out part, by number of steps.

    sample: (steps, seed, count) -> (images (count, h, w, C) in [-1, 1], seconds). Image i of a seed has the same noise
        and condition at every step count. Seconds are those of sampling, without compilation.
    steps, seeds: whole numbers. count: samples per step count and seed. reference, held_out: images (n, h, w, C).
    features: images -> (n, d). nfe: steps -> network evaluations per image, which guidance doubles where it acts.
    progress: called as progress(done, total, line) after every set of samples.

    Returns a dict that JSON can hold. rows, in ascending steps: steps, nfe, seconds_per_image (median over seeds) and,
    for every metric, NAME (mean over seeds), NAME_spread (standard deviation), NAME_seeds and the same three for
    NAME_held_out. floor: real images against real images, NAME (two random halves of the training part, mean over one
    split per seed) and NAME_held_out (training part against held-out part). The Fréchet distance of finite sets is
    biased upward, nearly as one over their size: halves score almost twice what full-sized sets would, so good samples
    can lie below that floor. The kernel distance has no such bias. samples, seeds, monotone (see `monotone`).

    ValueError for steps below one, an empty list, a count below two, and samples that are not finite or have another
    shape than the reference.
    """
    steps, seeds = sorted({int(s) for s in steps}), [int(seed) for seed in seeds]
    if not steps or steps[0] < 1:
        raise ValueError(f"steps {steps}: expected one or more step counts of at least 1")
    if not seeds:
        raise ValueError("seeds []: expected at least one seed")
    if count < 2:
        raise ValueError(f"count {count}: expected at least 2 samples")

    reference_features = features(reference)
    parts = {"": _summaries(reference_features), "_held_out": _summaries(features(held_out))}
    rows = []
    for s in steps:
        by_seed, seconds = [], []
        for seed in seeds:
            images, elapsed = sample(s, seed, count)
            summaries = _summaries(features(_checked(images, count, reference, s, seed)))
            by_seed.append(_distances(summaries, parts))
            seconds.append(float(elapsed) / count)
            if progress is not None:
                done = len(rows) * len(seeds) + len(by_seed)
                progress(done, len(steps) * len(seeds), f"{s} steps, seed {seed}: frechet {by_seed[-1]['frechet']:.4g}")
        row = {"steps": s, "nfe": nfe(s), "seconds_per_image": float(np.median(seconds))}
        for name in by_seed[0]:
            values = [distances[name] for distances in by_seed]
            row[name] = float(np.mean(values))
            row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row[f"{name}_seeds"] = values
        rows.append(row)
    return {
        "rows": rows,
        "floor": _floor(reference_features, parts, seeds),
        "samples": int(count),
        "seeds": seeds,
        "monotone": monotone(rows),
    }


def monotone(rows, tolerance=TOLERANCE):
    """Whether more steps never cost quality: the step counts between which the mean Fréchet distance rises.

    rows: in ascending steps. Returns {"rises": [[from_steps, to_steps, ratio], ...], "verdict": one sentence}; a rise
    is one beyond `tolerance` from a step count to the next.
    """
    rises = []
    for a, b in zip(rows, rows[1:]):
        if b["frechet"] > (1 + tolerance) * a["frechet"]:
            # A distance can be exactly 0, and JSON has no infinity.
            rises.append([a["steps"], b["steps"], b["frechet"] / max(a["frechet"], 1e-12)])
    if rises:
        where = ", ".join(f"{a} to {b} steps (×{ratio:.3g})" for a, b, ratio in rises)
        return {"rises": rises, "verdict": f"The Fréchet distance rises by more than {tolerance:.0%} from {where}."}
    verdict = f"The Fréchet distance nowhere rises by more than {tolerance:.0%} from a step count to the next."
    return {"rises": rises, "verdict": verdict}


def to_markdown(table):
    """The table as markdown: one line per step count, then the floor, the verdict and what it was measured on."""
    names = ("frechet", "kernel", "frechet_held_out", "kernel_held_out")
    header = ("steps", "NFE", "Fréchet", "kernel", "Fréchet, held out", "kernel, held out", "ms per image")
    lines = [header, ["---:"] * len(header)]
    for row in table["rows"]:
        values = [_value(row[name], row[f"{name}_spread"], len(table["seeds"])) for name in names]
        lines.append([str(row["steps"]), str(row["nfe"]), *values, f"{1000 * row['seconds_per_image']:.3g}"])
    lines.append(["floor", "", *(f"{table['floor'][name]:.3g}" for name in names), ""])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    seeds = len(table["seeds"])
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    step = f", training step {table['step']}" if "step" in table else ""
    note = f"{table['samples']} samples per step count, {over}{step}. NFE: network evaluations per image."
    floor = (
        "Floor: two halves of the training part; under held out, training part against held-out part. Halves hold half "
        "as many images, which nearly doubles the bias of their Fréchet distance: good samples can lie below it."
    )
    return f"{body}\n\n{table['monotone']['verdict']} {note} {floor}\n"


def plot(tables, path):
    """Fréchet distance to the training part by network evaluations, one curve per table, the floor dashed. PNG.

    tables: {name: table}.
    """
    series = {
        name: tuple([row[key] for row in table["rows"]] for key in ("nfe", "frechet", "frechet_spread"))
        for name, table in tables.items()
    }
    floor = {name: table["floor"]["frechet"] for name, table in tables.items()}
    labels = ("network evaluations per image", "Fréchet distance to the training part")
    pictures.curves(series, floor, path, *labels, floor_label="floor: halves of the training part, half as many images")


def write(table, workdir, name=None):
    """Writes any_step.json, any_step.md and any_step.png into a workdir, each in one move.

    An earlier any_step.json is kept as any_step.1.json, any_step.2.json, ... name: of the curve; the workdir's if None.
    """
    workdir = epath.Path(workdir)
    text = json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = workdir / "any_step.json"
    if path.exists() and path.read_text() != text:
        number = 1
        while (workdir / f"any_step.{number}.json").exists():
            number += 1
        files.replace(workdir / f"any_step.{number}.json", path.read_bytes())
    files.replace(path, text.encode())
    files.replace(workdir / "any_step.md", to_markdown(table).encode())
    plot({name or workdir.name: table}, workdir / "any_step.png")


def _summaries(features):
    return {name: metric.summarise(features) for name, metric in METRICS.items()}


def _distances(summaries, parts):
    return {
        name + suffix: metric.distance(summaries[name], part[name])
        for name, metric in METRICS.items()
        for suffix, part in parts.items()
    }


def _floor(features, parts, seeds):
    splits = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(features))
        a, b = (_summaries(features[half]) for half in np.array_split(order, 2))
        splits.append({name: metric.distance(a[name], b[name]) for name, metric in METRICS.items()})
    held_out = _distances(parts[""], {"_held_out": parts["_held_out"]})
    return {name: float(np.mean([split[name] for split in splits])) for name in METRICS} | held_out


def _checked(images, count, reference, steps, seed):
    images, shape = np.asarray(images), (count, *np.shape(reference)[1:])
    if images.shape != shape:
        raise ValueError(f"samples at {steps} steps, seed {seed} of shape {images.shape}: expected {shape}")
    broken = count - int(np.isfinite(images).reshape(count, -1).all(axis=1).sum())
    if broken:
        raise ValueError(f"samples at {steps} steps, seed {seed}: {broken} of {count} are not finite")
    return images


def _value(mean, spread, seeds):
    return f"{mean:.3g} ± {spread:.1g}" if seeds > 1 else f"{mean:.3g}"
