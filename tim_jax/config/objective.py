"""The objective of a configuration: its name, and what `times` and `objective` change of it."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives import OBJECTIVES
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.transports import Transport

# Key -> where it stands in an Objective. A key that is None is as the named objective has it.
FIELDS = {
    **{f"times.{name}": f"times.{name}" for name in (
        "distribution", "P_mean", "P_std", "share_equal", "share_min", "intervals", "shift_reference",
    )},
    **{f"objective.{name}": name for name in (
        "consistency", "velocity", "derivative", "epsilon", "learned_weight", "direction", "direction_weight",
        "head_weight", "alignment_weight", "trajectory_points",
    )},
    **{f"objective.weight.{name}": f"weight.{name}" for name in ("kernel", "scale", "difference", "sigma_d")},
    **{f"objective.adaptive.{name}": f"adaptive.{name}" for name in ("power", "offset", "total")},
    **{f"objective.{part}.{name}": f"{part}.{name}" for part, names in {
        "tangent": ("normalise", "bounded", "warmup_steps", "max_share", "differentiate_steps"),
        "bootstrap": ("ema", "split", "min_interval", "solver_steps"),
        "guidance": ("w_cond", "w_gt", "t_low", "t_high", "start_step", "ema"),
        "input_guidance": ("max_scale", "power"),
        "contrast": ("share", "max_time", "temperature", "weight"),
        "score": ("weight", "max_jumps"),
    }.items() for name in names},
}  # fmt: skip


def make_transport(config: ConfigDict) -> Transport:
    """The transport of `transport`. Raises ValueError for an unknown one."""
    name, sigma_d = config.transport.name, config.transport.sigma_d
    if name not in TRANSPORTS:
        raise ValueError(f"transport.name is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    if sigma_d <= 0:
        raise ValueError(f"transport.sigma_d is {sigma_d}; it must be above 0")
    return TRANSPORTS[name](sigma_d) if name == "edm" else TRANSPORTS[name]()


def resolved(config: ConfigDict) -> ConfigDict:
    """The configuration with the named objective's own values in place of None.

    Raises ValueError for an unknown name.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name](make_transport(config))
    config = ConfigDict(config.to_dict())
    for key, field in FIELDS.items():
        *sections, last = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        if section[last] is None:
            section[last] = get(objective, field)
    return config


def make_objective(config: ConfigDict, transport: Transport, shards: int) -> Objective:
    """The objective of a resolved configuration, for rows that lie on `shards` devices. Raises ValueError."""
    asked = config.teacher
    teacher = Teacher(asked.guidance, asked.guidance_low, asked.guidance_high, weaker=bool(asked.weak_checkpoint))
    objective = dataclasses.replace(OBJECTIVES[config.objective.name](transport), shards=shards, teacher=teacher)
    for key, field in FIELDS.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value is not None:
            objective = put(objective, field, value)
    known = ("online", *config.ema)
    names = [("bootstrap.ema", objective.bootstrap.ema, known)]
    names.append(("velocity", objective.velocity, ("data", "target", "head", "teacher", *known)))
    if objective.guidance.active:
        names.append(("guidance.ema", objective.guidance.ema, known))
    for key, value, choices in names:
        if value not in choices:
            raise ValueError(f"objective.{key} is {value!r}; it must be one of {', '.join(choices)}")
    if objective.alignment_weight and not config.data.features_width:
        raise ValueError(
            f"objective.alignment_weight is {objective.alignment_weight}; without image features "
            "(data.features_width is 0) it must be 0"
        )
    objective.check()
    return objective


def get(thing: Any, field: str) -> Any:
    """thing.a.b for "a.b"; None for a part that it does not have."""
    for name in field.split("."):
        thing = getattr(thing, name, None)
    return thing


def put(thing: Any, field: str, value: Any) -> Any:
    """A copy of frozen dataclasses with thing.a.b = value for "a.b". Raises ValueError for a part that is not there."""
    name, _, rest = field.partition(".")
    if not hasattr(thing, name):
        raise ValueError(f"objective.{field} is {value!r}, but this objective has no {name}: leave it")
    return dataclasses.replace(thing, **{name: put(getattr(thing, name), rest, value) if rest else value})
