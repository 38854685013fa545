"""Folders that a report is made of: a run and an ablation, with figures that a test can look for in the page."""

import json
import shutil

import numpy as np
from etils import epath

from tim_jax.config.command_line import load_config
from tim_jax.report.drawing import Drawn, Path
from tim_jax.runs import workdir

NASTY = '<img src=x onerror="alert(1)">&amp;</script>'  # a name that a class, a caption or a value may have
STEPS = (1, 2, 4)
NAMES = ("frechet", "kernel", "precision", "frechet_held_out", "kernel_held_out", "precision_held_out")


def any_step(rng):
    """An any-step table of two seeds, with a figure and an entry that nothing here knows."""
    rows = []
    for steps in STEPS:
        row = {"steps": steps, "nfe": 2 * steps, "seconds_per_image": float(rng.uniform(1e-4, 1e-2))}
        for name in (*NAMES, "novel"):
            values = [float(value) for value in rng.uniform(0.1, 2, 2)]
            row |= {name: float(np.mean(values)), f"{name}_spread": float(np.std(values, ddof=1))}
            row |= {f"{name}_seeds": values}
        rows.append(row)
    return {
        "rows": rows, "floor": {name: float(rng.uniform(0.1, 1)) for name in NAMES}, "samples": 500, "seeds": [0, 1],
        "floor_at_count": {"frechet": float(rng.uniform(0.1, 1)), "kernel": 0.0, "kernel_spread": 0.002},
        "reference": {"data": f"digits {NASTY}", "features": "pixels", "images": 1442}, "labels": "data", "step": 40,
        "monotone": {"metric": "frechet", "rises": [], "verdict": "The Fréchet distance nowhere rises."},
        "protocol": {"resize": "none", "saved as": ["uint8", NASTY], "guidance interval": [0.1, 0.9]},
    }  # fmt: skip


def diagnostics(rng, nodes=4):
    """What diagnose writes, of random figures."""

    def matrix():
        return [[float(rng.uniform(0.1, 3)) if r <= t else None for r in range(nodes)] for t in range(nodes)]

    curves = {step: [float(value) for value in rng.uniform(1e-4, 1, nodes)] for step in ("0.005", "0.05")}
    return {
        "levels": [i / (nodes - 1) for i in range(nodes)], "error": matrix(), "tangent": matrix(), "step": 40,
        "rows": 64, "derivative": {by: {"float32": curves} for by in ("interval", "time")},
    }  # fmt: skip


def metrics(rng, lines=30):
    """Lines of metrics.jsonl."""
    found = []
    for i in range(lines):
        line = {"step": 10 * (i + 1), "time": 1.8e9 + i}
        for name in ("loss", "error_equal", "error_moving", "grad_norm", "learning_rate", "goodput", "data_wait",
                     "error_by_level/0-0.2", "error_by_level/0.2-0.4", "novel"):  # fmt: skip
            line[name] = float(np.float32(rng.uniform(0.1, 1)))
        found.append(line | {"tangent_rms": None if i % 7 == 3 else 1.0})
    return found


def fill(folder, rng):
    """Writes figures of a run into its workdir; returns {file: what is in it}."""
    found = {"any_step.json": any_step(rng), "diagnostics.json": diagnostics(rng), "metrics.jsonl": metrics(rng)}
    first = workdir.first_start(epath.Path(folder))
    found["goodput.jsonl"] = [
        {"began": first + at, "seen": first + at + 100, "carried": carried, "seconds": {"compile": 40, "steps": 60}}
        for at, carried in ((0, 0.0), (250, 45.0))
    ]
    found["classes.json"] = ["zero", NASTY, *"23456789"]
    for name, content in found.items():
        lines = content if name.endswith("jsonl") else [content]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def undrawn_run(folder, rng, **changes):
    """A workdir whose run has been started and has written figures, and has no checkpoint; returns these."""
    folder.mkdir()
    workdir.record_start(folder, load_config("digits_tiny", changes))
    workdir.record_start(folder, load_config("digits_tiny", changes | {"training.steps": "300"}))
    return fill(folder, rng)


def drawn(rng, count=3):
    """What might be drawn of a run: noise."""

    def images(*shape):
        return rng.integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)

    samples = {name: {steps: images(count) for steps in STEPS} for name in ("flow_map", "heun")}
    nfe = {"flow_map": {steps: steps for steps in STEPS}, "heun": {steps: 2 * steps for steps in STEPS}}
    paths = {steps: Path(np.linspace(1, 0, steps + 1), images(steps + 1, 2)) for steps in (2, 4)}
    nearest = (images(count), images(count), np.arange(count) + 0.5)
    return Drawn(40, "slow", "flow_map", ["zero", NASTY, "2"], samples, nfe, paths, nearest)


def ablation(folder, rng, seeds=2):
    """An ablation of two variants, one run of which failed, and a baseline; returns {run: its result}."""
    definition = {"objective.name": "tim", "model.width": 64, "training.steps": 40, "sampler_steps": [1, 4]}
    plan = {
        "equal": "flops", "reference": "tim", "machine": {"device": "cpu", "cores": 2},
        "variants": {
            "tim": {"steps": 40, "cost": 1.0, "definition": definition},
            "wide": {"steps": 20, "cost": 2.0, "definition": definition | {"model.width": 128, "training.steps": 20}},
        },
    }  # fmt: skip
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan))
    found = {}
    for name in ("tim", "wide", "teacher"):
        for seed in range(seeds):
            rows = []
            for steps in (1, 4):
                row = {"steps": steps, "nfe": steps}
                for figure in ("frechet", "frechet_held_out"):
                    value = float(rng.uniform(0.1, 3))
                    row |= {figure: value, f"{figure}_spread": 0.0, f"{figure}_seeds": [value]}
                rows.append(row)
            floor = {figure: float(rng.uniform(0.05, 0.1)) for figure in ("frechet", "frechet_held_out")}
            result = {"seconds": 9.0, "table": {"rows": rows, "floor": floor, "samples": 500}}
            if name == "teacher":
                result["baseline"] = {"checkpoint": NASTY, "ema": "slow", "steps": 9, "fingerprint": "f"}
            else:
                result["train_seconds"] = 5.0
            if (name, seed) == ("wide", 1):
                result = {"failure": f"ValueError: no luck {NASTY}"}
            place = folder / name / f"seed_{seed}"
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(result))
            if name != "teacher":
                (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(rng, 5)))
                (place / "config.json").write_text("{}")
            found[f"{name}/seed_{seed}"] = result
    return found


def copied(folder, to):
    """A copy of a folder that may be changed."""
    return shutil.copytree(folder, to)
