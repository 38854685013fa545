"""Bits per dimension of parts of the data: figures of single images put together, in a table and in a file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from tim_jax.system import files

NAMES = ("bits_per_dim.json", "bits_per_dim.md")


def summary(bits: np.ndarray) -> dict[str, Any]:
    """Puts figures together.

    Args:
        bits: bits per dimension (seeds, n) of n images, each with the dequantisation and the probes of some seeds.

    Returns:
        {"images": n, "bits_per_dim": their mean, "error": its standard error over images, 0 for a single one, "seeds":
        the mean of each seed}.
    """
    own = bits.mean(axis=0)
    error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else 0.0
    means = bits.mean(axis=1).tolist()
    return {"images": len(own), "bits_per_dim": float(own.mean()), "error": float(error), "seeds": means}


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the table of all parts, and how it was measured in one line.

    Args:
        found: what `write` takes.
    """
    lines = ["| part | images | bits per dimension |", "| --- | ---: | ---: |"]
    for name, part in found["parts"].items():
        lines.append(f"| {name} | {part['images']:,} | {part['bits_per_dim']:.3f} ± {part['error']:.2g} |")
    return "\n".join([*lines, "", found["line"]]) + "\n"


def how(steps: int, probes: int, seeds: Sequence[int], weights: str, step: int) -> str:
    """Returns in one line how bits per dimension were measured; the arguments are what was chosen."""
    vectors = f"{probes} Rademacher vector{'s' * (probes > 1)} an image" if probes else "the exact divergence"
    return (
        "Upper bounds by uniform dequantisation of 256 levels, ± the standard error over images; probability-flow ODE "
        f"of F at r = t without guidance, {steps} steps of the Runge–Kutta method ({4 * steps} evaluations), "
        f"{vectors}, the mean of {len(seeds)} seed{'s' * (len(seeds) > 1)}; weights {weights}, training step {step}."
    )


def write(found: Mapping[str, Any], folder: epath.Path) -> None:
    """Writes NAMES into a folder; found: {"parts": {name: `summary`}, "line": `how`}, and what else is to be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(NAMES, (json.dumps(found, indent=2) + "\n", as_markdown(found)), strict=True):
        files.replace(folder / name, text.encode())
