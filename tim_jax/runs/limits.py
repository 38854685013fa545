"""What other formats of an export cannot do, a table for each: the keys of a run, and what their values must be."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tim_jax.config.build import build
from tim_jax.config.overrides import override
from tim_jax.config.run import Run
from tim_jax.runs import workdir
from tim_jax.runs.conversion import Exported

# A key, whether a run's value of it can be had, and what it must be. A later one may count on those before it.
Limit: TypeAlias = tuple[str, Callable[[Any], bool], str]


def run_of(exported: Exported, overrides: dict[str, str] = {}) -> Run:
    """The run that exported weights are of, on this machine, with {"section.key": text} changed."""
    return build(override(workdir.restored(dict(exported.origin.config), exported.workdir), overrides))


def check(run: Run, limits: Sequence[Limit], name: str) -> None:
    """Raises ValueError, naming key and value, for a run that the format of that name cannot have."""
    for key, fits, must in limits:
        if not fits(run):
            value: Any = run.config
            for part in key.split("."):
                value = value[part]
            raise ValueError(f"{key} is {value!r}; it must be {must} with --to={name}")
