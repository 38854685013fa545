"""Transition Models (TiM) in JAX: one network F(x_t, t, r) that samples in any number of steps."""

from typing import Any

__version__ = "0.1.0"


def load(path: Any, **overrides: Any) -> Any:
    """A trained run that draws images: tim = load("WORKDIR"); tim("a red bicycle", steps=4, size=(512, 768), seed=0).

    See tim_jax/runs/interface.py, which is imported here, with JAX, for a light `import tim_jax`.
    """
    from tim_jax.runs import interface

    return interface.load(path, **overrides)
