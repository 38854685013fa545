"""What an export puts into the file in place of this: the numbers of the run, and its network."""

from typing import Any

from tim_jax.runs.pytorch.tim import TiM as Network

__all__ = ["RUN", "Network"]

RUN: dict[str, Any] = {}
