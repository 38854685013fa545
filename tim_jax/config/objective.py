"""The transport and the objective of a configuration: what is named, and what the sections change of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from tim_jax.config.keys import check_left, flatten
from tim_jax.config.sections import read
from tim_jax.training.power_ema import name_of
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.objective import VELOCITIES, Objective
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.objectives.transition_matching import TransitionMatching
from tim_jax.transitions.objectives.twinflow import TwinFlow
from tim_jax.transitions.prediction import check
from tim_jax.transitions.rewards import OF_SCORES
from tim_jax.transitions.transports import Transport, with_noise_std, with_shared_times
from tim_jax.types import DTYPES, averages


def make_transport(config: ConfigDict) -> Transport:
    """The transport of `transport`. Raises ValueError for an unknown one, and for settings that do not suit it."""
    name, sigma_d, augmented = (config.transport[key] for key in ("name", "sigma_d", "augmented_dimensions"))
    if name not in TRANSPORTS:
        raise ValueError(f"transport.name is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    if sigma_d <= 0:
        raise ValueError(f"transport.sigma_d is {sigma_d}; it must be above 0")
    if (noise_std := config.transport.noise_std) <= 0:
        raise ValueError(f"transport.noise_std is {noise_std}; it must be above 0")
    if config.transport.gamma < 0:
        raise ValueError(f"transport.gamma is {config.transport.gamma}; it must be at least 0")
    if augmented < 0:
        raise ValueError(f"transport.augmented_dimensions is {augmented}; it must be at least 0")
    if augmented and config.data.paired_noise:
        raise ValueError(
            f"transport.augmented_dimensions is {augmented}; it must be 0 with data.paired_noise, whose noise is normal"
        )
    below, intervals = config.transport.shared_below, config.transport.shared_intervals
    if not 0 <= below <= 1:
        raise ValueError(f"transport.shared_below is {below}; it must lie in [0, 1]")
    if intervals < 1:
        raise ValueError(f"transport.shared_intervals is {intervals}; it must be at least 1")
    if below and config.transport.prediction != "F":
        raise ValueError(
            f"transport.shared_below is {below}; it must be 0 with transport.prediction "
            f"{config.transport.prediction!r}, which is turned into F by the time that the network is told"
        )
    transport = TRANSPORTS[name](sigma_d) if name == "edm" else TRANSPORTS[name]()
    if noise_std != 1:
        transport = with_noise_std(transport, noise_std)
    if below:
        transport = with_shared_times(transport, below, intervals)
    own = {key: config.transport[key] for key in ("prediction", "prediction_clip", "gamma", "augmented_dimensions")}
    transport = dataclasses.replace(transport, **own)
    check(transport)
    return transport


def resolved(config: ConfigDict) -> ConfigDict:
    """The configuration with the named objective's own values in place of None.

    Raises ValueError for an unknown name.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name](make_transport(config))
    config = ConfigDict(config.to_dict())
    _fill(config.objective, objective)
    _fill(config.times, objective.times)
    return config


def _fill(section: ConfigDict, thing: Any) -> None:
    """Puts the attributes of a thing in place of None; what it does not have stays None."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            _fill(value, getattr(thing, name, None))
        elif value is None:
            section[name] = getattr(thing, name, None)


def make_objective(config: ConfigDict, transport: Transport, shards: int) -> Objective:
    """The objective of a resolved configuration, for examples that lie on `shards` devices. Raises ValueError."""
    name = config.objective.name
    objective = OBJECTIVES[name](transport)
    check_parts(config.objective, objective, name)
    objective = read(
        objective,
        {key: value for key, value in config.objective.items() if hasattr(objective, key)},
        times=read(objective.times, config.times),
        teacher=read(objective.teacher, config.teacher),
        shards=shards,
        slices=config.model.slices,
    )
    if isinstance(objective, TransitionMatching):
        objective = dataclasses.replace(objective, patch=config.model.patch_size)
    check_networks(objective, config.ema, tuple(map(name_of, config.posthoc_ema.sigma_rel)))
    if objective.alignment_weight and not config.data.features_width:
        raise ValueError(
            f"objective.alignment_weight is {objective.alignment_weight}; it must be 0 without image features "
            "(data.features_width is 0)"
        )
    objective.check()
    check_reward(config, objective)
    objective = objective.following(config.training.steps)
    for key, uses_null in (
        ("objective.guidance", objective.guidance.uses_null),
        ("objective.input_guidance", objective.input_guidance.active),
    ):
        if uses_null:
            check_null(config, f"{key} makes targets with the null condition")
    return objective


def are_images(config: ConfigDict) -> bool:
    """Whether examples are images, and no latents."""
    return not config.codecs.autoencoder and config.data.channels in (1, 3)


def check_reward(config: ConfigDict, objective: Objective) -> None:
    """Raises ValueError for a reward that cannot judge the examples of a configuration."""
    reward = objective.reward
    if reward.networks and config.model.condition != "class":
        raise ValueError(
            f"objective.reward.name is {reward.name!r}; it must be another one with model.condition "
            f"{config.model.condition!r}, as a classifier judges by labels"
        )
    if reward.weight and not reward.networks and not are_images(config):
        raise ValueError(
            f"objective.reward.name is {reward.name!r}; it must be one of {', '.join(OF_SCORES)} where examples are "
            "latents, which a classifier of latents judges"
        )


def inputs_of(config: ConfigDict) -> tuple[str, ...]:
    """What examples must bring besides data and condition, see `Objective.inputs`."""
    return OBJECTIVES[config.objective.name](make_transport(config)).inputs


def make_memory(config: ConfigDict, objective: Objective) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of what the objective remembers. Raises ValueError for examples that it cannot remember."""
    data, classes = config.data, config.model.num_classes
    memory = objective.memory((data.height, data.width, data.channels), classes)
    if memory and config.model.condition != "class":
        raise ValueError(
            f"model.condition is {config.model.condition!r}; it must be 'class' where objective.name is "
            f"{config.objective.name!r}, which remembers examples by class"
        )
    if memory and (data.buckets.table or data.buckets.area):
        key = "table" if data.buckets.table else "area"
        raise ValueError(
            f"data.buckets.{key} is {data.buckets[key]}; it must be left out where objective.name is "
            f"{config.objective.name!r}, which remembers examples of one shape"
        )
    return memory


def check_null(config: ConfigDict, reason: str) -> None:
    """Raises ValueError if the null condition is never trained, and is used for that reason."""
    dropout = config.data.condition_dropout
    if dropout == 0:
        raise ValueError(
            f"data.condition_dropout is {dropout}; it must be above 0, or the null condition is never trained, since "
            f"{reason}"
        )


def check_parts(section: ConfigDict, objective: Objective, name: str) -> None:
    """Raises ValueError for a value of what an objective does not have, such as `contrast`."""
    for key, value in flatten(section).items():
        if value is not None and not hasattr(objective, key.split(".")[0]):
            raise ValueError(
                f"objective.{key} is {value!r}; it must be None, since it has no effect where objective.name is "
                f"{name!r}"
            )


def check_networks(objective: Objective, emas: Mapping[str, float], power: tuple[str, ...] = ()) -> None:
    """Raises ValueError for a name that means none of the networks that there are. power: power-function EMAs."""
    known = ("online", *emas, *power)
    names = {
        "objective.bootstrap.ema": (objective.bootstrap.ema, known),
        "objective.velocity": (objective.velocity, (*VELOCITIES, *known)),
    }
    if isinstance(objective, TwinFlow):
        names["objective.twin.ema"] = objective.twin.ema, known
    if objective.guidance.active:
        names["objective.guidance.ema"] = objective.guidance.ema, known
    for key, (value, choices) in names.items():
        if value not in choices:
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(choices)}")
    for name in emas:
        own = (*objective.teachers, *objective.auxiliary, *objective.reward.networks)
        if name in (*own, *averages(objective.auxiliary)):
            raise ValueError(
                f"ema.{name} is {emas[name]}; it must have another name, since the objective {objective.name!r} has a "
                f"network called {name!r}"
            )


def check_coupling(config: ConfigDict, objective: Objective) -> None:
    """Raises ValueError where examples cannot be coupled with noise, or the objective draws noise of its own."""
    coupling, data = objective.coupling, config.data
    coupling.check_shape(data.height, data.width, data.channels)
    if not coupling.active:
        return
    for key, value, right in (
        ("data.paired_noise", data.paired_noise, False),
        ("data.buckets.table", data.buckets.table, ()),
        ("data.buckets.area", data.buckets.area, 0),
        ("model.condition", config.model.condition, "class"),
        ("sampling.stochasticity", config.sampling.stochasticity, 0.0),
        ("codecs.autoencoder", config.codecs.autoencoder, ""),
    ):
        if value != right:
            raise ValueError(f"{key} is {value!r}; it must be {right!r} where objective.coupling.task is not 'none'")
    if objective.auxiliary or objective.prediction_input:
        raise ValueError(
            f"objective.coupling.task is {coupling.task!r}; it must be 'none' for {config.objective.name!r}, which "
            "draws noise of its own or refines samples"
        )


def check_teacher(config: ConfigDict, default: ConfigDict, objective: Objective) -> None:
    """Raises ValueError for what `teacher` says by itself; its files are not touched."""
    if not objective.teachers:
        name, velocity = config.objective.name, config.objective.velocity
        reason = f"objective.name is {name!r} with velocity {velocity!r}, which learns from no teacher"
        check_left([f"teacher.{key}" for key in config.teacher], reason, flatten(config), flatten(default))
    elif type(objective).teachers is Objective.teachers and not objective.asks_teacher:
        keys = [f"teacher.{key}" for key in config.teacher if key.startswith(("guidance", "weak"))]
        reason = "the teacher's predictions are not asked for, only its hidden states"
        check_left(keys, reason, flatten(config), flatten(default))
    if config.teacher.guidance_channels > config.data.channels:
        raise ValueError(
            f"teacher.guidance_channels is {config.teacher.guidance_channels}; it must be at most data.channels, "
            f"{config.data.channels}"
        )
    if config.teacher.dtype not in DTYPES:
        raise ValueError(f"teacher.dtype is {config.teacher.dtype!r}; it must be one of {', '.join(DTYPES)}")
