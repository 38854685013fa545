"""Learning rates of an ablation: each variant takes the best of the same few, so that none is ahead by its rate alone.

The sweep is an ablation of its own, in the folder learning_rates: every variant with every rate, one run each, with a
seed that no other run has and as many steps as the variant takes. A variant's rate is that with the smallest mean
logarithm of the distances to the held-out part, over all numbers of network evaluations.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from tim_jax.ablation import runs
from tim_jax.ablation.settings import MAX_SEEDS, RATE, Ablation, Member
from tim_jax.config import keys

FOLDER = "learning_rates"
TITLE = "{}: learning rates"


def folder_of(folder: epath.Path) -> epath.Path:
    """Returns where the sweep of an ablation lies."""
    return folder / FOLDER


def label(name: str, rate: float) -> str:
    """Returns the name of a variant with a rate: "tim_8e_03" for 0.008."""
    return f"{name}_{rate:g}".replace(".", "_").replace("-", "_").replace("+", "_")


def sweep(ablation: Ablation, planned: Mapping[str, Any]) -> Ablation:
    """Returns the ablation of every variant that has been planned with every rate.

    Args:
        ablation: the ablation.
        planned: its budget, see `budget.make`.
    """
    base = ablation.base.copy_and_resolve_references()
    base.seed += MAX_SEEDS
    before = keys.flatten(base)
    variants: dict[str, dict[str, Any]] = {}
    for name in ablation.variants:
        if "steps" not in planned["variants"].get(name, {}):
            continue
        config = ablation.config(name, steps=planned["variants"][name]["steps"])
        changed = {
            key: value for key, value in keys.flatten(config).items() if key != "seed" and value != before.get(key)
        }
        variants |= {label(name, rate): changed | {RATE: rate} for rate in ablation.learning_rates}
    return dataclasses.replace(
        ablation, base=base, variants=variants, equal="steps", seeds=1, emas=(), baselines={}, learning_rates=()
    )


def score(result: Mapping[str, Any] | None) -> float | None:
    """Returns by what rates are compared: the mean logarithm of a run's distances to the held-out part.

    It is infinite where the run failed or a distance is not finite, and None where it is not finished.
    """
    if result is None:
        return None
    values = [row["frechet_held_out"] for row in result.get("table", {}).get("rows", [])]
    return float(np.mean(np.log(values))) if values and all(map(math.isfinite, values)) else math.inf


def scores(ablation: Ablation, folder: epath.Path, name: str) -> dict[float, float | None]:
    """Returns {rate: score} of a variant in an ablation's folder."""
    place = folder_of(folder)
    return {
        rate: score(runs.read(place / str(Member(label(name, rate), 0)))) for rate in ablation.learning_rates
    }  # fmt: skip


def best(ablation: Ablation, folder: epath.Path, name: str) -> float | None:
    """Returns the rate of a variant; None where there are no rates, a run is missing, or each failed."""
    found = scores(ablation, folder, name)
    if not found or any(value is None for value in found.values()):
        return None
    rate = min(found, key=lambda rate: found[rate] or 0.0)
    return rate if math.isfinite(found[rate] or 0.0) else None


def chosen(ablation: Ablation, folder: epath.Path) -> dict[str, float]:
    """Returns {variant: its rate} of those whose rates have all been tried."""
    found = {name: best(ablation, folder, name) for name in ablation.variants}
    return {name: rate for name, rate in found.items() if rate is not None}


def tuned(ablation: Ablation, rates: Mapping[str, float]) -> Ablation:
    """Returns the ablation with these rates of its variants."""
    variants = {
        name: {**changes, RATE: rates[name]} if name in rates else changes
        for name, changes in ablation.variants.items()
    }
    return dataclasses.replace(ablation, variants=variants)


def note(ablation: Ablation) -> str:
    """Returns the sentence of a table on where its rates come from."""
    given = ", ".join(f"{rate:g}" for rate in ablation.learning_rates)
    return (
        f"Learning rates: for each variant the best of {given}, by one run of each with a seed of its own and the mean "
        f"logarithm of the distances to the held-out part ({FOLDER}/ablation.md)."
    )
