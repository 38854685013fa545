"""How objectives are made of one another, and which of their keys speak of the target F*."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from tim_jax.transitions.objective import Objective
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport
from tim_jax.transitions.weights import AdaptiveWeight, TimeWeight

DIAGONAL = Times(share_equal=1.0, share_min=0.0)
WHATEVER_F_LEARNS = (
    "coupling", "velocity", "refresh", "teacher", "shards", "slices", "name", "rollout", "matching", "adversary",
    "reward",
)  # fmt: skip
Kind = TypeVar("Kind", bound=Objective)


def unweighted(transport: Transport, times: Times) -> Objective:
    """Returns an objective without any weight, and without the direction term."""
    weight, adaptive = TimeWeight("constant"), AdaptiveWeight(power=0.0)
    return Objective(transport, times, weight=weight, adaptive=adaptive, direction="none")


def of_kind(kind: type[Kind], objective: Objective) -> Kind:
    """Returns the same choices in an objective of another kind."""
    return kind(**{field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)})


def _keys(thing: Any, path: str) -> Iterator[str]:
    for field in dataclasses.fields(thing):
        if field.default is not dataclasses.MISSING and field.name not in WHATEVER_F_LEARNS:
            name = f"{path}.{field.name}"
            yield from _keys(field.default, name) if dataclasses.is_dataclass(field.default) else (name,)


TARGET_KEYS = tuple(_keys(Objective, "objective"))  # of F* and its weight: without effect where there is no F*
