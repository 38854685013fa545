"""The sections of a configuration: the dataclasses whose fields are its keys.

Key path = attribute path: `objective.adaptive.offset` is `Objective.adaptive.offset`. Names, types, defaults and
comments of keys are those of the dataclasses. This file says which dataclasses these are, and `page.py` writes
configs/base.py from it.
"""

import dataclasses
import functools
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.config.keys import check_left, flatten
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.networks import NETWORKS, SIZED, Size
from tim_jax.training.optimizer import OptimizerSettings
from tim_jax.training.settings import (
    CheckpointSettings,
    MeshSettings,
    PosthocEMASettings,
    StartSettings,
    TrainingSettings,
)
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport, ot_fm

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class Section(NamedTuple):
    """A section of a configuration.

    Attributes:
        heading: what it is about, for configs/base.py.
        kinds: the dataclasses whose fields are its keys.
        defaults: where the default of a key is not that of the field.
        omit: fields that are no keys.
        placeholders: the default of every other key is None: as the named objective has it.
    """

    heading: str
    kinds: tuple[type, ...]
    defaults: Mapping[str, Any] = {}
    omit: tuple[str, ...] = ()
    placeholders: bool = False


# The fields of a transport that are keys.
OF_TRANSPORT = (
    "name", "sigma_d", "noise_std", "augmented_dimensions", "shared_below", "shared_intervals", "prediction",
    "prediction_clip", "gamma",
)  # fmt: skip
SEED = (0, "of initialisation, data order, noise, times and dropout")
PLUGIN: tuple[tuple[str, ...], str] = (
    (), "Python files of one's own that add to the tables of objectives, transports, samplers, …"
)  # fmt: skip


def objective_section() -> Section:
    """The section `objective`, whose keys are the fields of all objectives that there are."""
    return Section(
        "The loss of an example. Here and in `times`, keys that are None are as the named objective has them.",
        tuple(dict.fromkeys([Objective, *(type(make(ot_fm())) for make in OBJECTIVES.values())])),
        {"name": "tim"},
        ("transport", "times", "teacher", "shards", "slices", "patch"),
        placeholders=True,
    )


SECTIONS = {
    "data": Section("What is trained on. Examples are (height, width, channels) images in [-1, 1], or latents.",
                    (DataSettings,)),
    "codecs": Section("Pretrained encoders and decoders, as folders of published files: a path, or "
                      "hf://owner/repository.", (CodecSettings,)),
    "loader": Section("How examples are read; no number that a run gives depends on it.", (LoaderSettings,)),
    "model": Section(
        "The network (tim_jax.networks.NETWORKS).",
        (Size, *NETWORKS.values()),
        dict.fromkeys(SIZED, 0) | {"num_classes": 10, "remat": "dots", "dtype": "float32"},
        ("channels", "z_dim", "text_width", "guidance_input", "prediction_input", "image_channels", "slice_ends",
         "transition_head", "output_heads", "to_F", "read", "tokens", "unroll", "parent", "name"),
    ),
    "transport": Section(
        "The path between data and noise (tim_jax.transitions.TRANSPORTS).",
        (Transport,),
        {"name": "ot_fm", "sigma_d": 0.5},
        tuple(field.name for field in dataclasses.fields(Transport) if field.name not in OF_TRANSPORT),
    ),
    "objective": objective_section(),
    "teacher": Section("The model that some objectives learn from: any run with examples and conditions like this "
                       "run's, of whatever transport.", (Teacher,)),
    "times": Section("The distribution of (t, r).", (Times,), placeholders=True),
    "optimizer": Section("The optimizer.", (OptimizerSettings,)),
    "ema": Section("Exponential moving averages (EMAs) of the weights, by names of your own: decay per step.", (),
                   {"slow": 0.9999}),
    "posthoc_ema": Section("Post-hoc EMAs (arXiv 2312.02696): power-function EMAs, tracked and stored so that those of "
                           "other lengths can be made afterwards; \"sigma_rel:0.13\" names one, wherever an EMA is "
                           "named.", (PosthocEMASettings,)),
    "start": Section("What the first step starts from: the weights of another run, or, by default, scratch.",
                     (StartSettings,)),
    "mesh": Section("Devices per mesh axis; -1: all the rest.", (MeshSettings,)),
    "training": Section("The training loop.", (TrainingSettings,)),
    "checkpoint": Section("Checkpoints.", (CheckpointSettings,)),
    "sampling": Section("How samples are drawn.", (Sampling,), {"sampler": "default"},
                        ("optimal_times", "learned", "guidance_input", "transition_head")),
    "evaluation": Section("How samples are measured, by python -m tim_jax.evaluate and while training.",
                          (EvaluationSettings,)),
}  # fmt: skip


class Key(NamedTuple):
    """A key, or a group of keys, and where it is defined. kind: the dataclass. group: that of the keys below it."""

    name: str
    kind: type
    field: dataclasses.Field[Any]
    type: Any
    group: type | None


@functools.cache  # asked of every class for every configuration that is built
def keys_of(*kinds: type) -> tuple[Key, ...]:
    """The keys that dataclasses define, `name` first, each under the class that defines it."""
    found: dict[str, Key] = {}
    for kind in kinds:
        types = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name not in found:
                owner = next(
                    base for base in reversed(kind.__mro__) if field.name in vars(base).get("__annotations__", ())
                )
                group = types[field.name] if dataclasses.is_dataclass(types[field.name]) else None
                found[field.name] = Key(field.name, owner, field, types[field.name], group)
    return tuple(sorted(found.values(), key=lambda key: key.name != "name"))


def unused() -> dict[tuple[str, ...], tuple[str, Callable[[ConfigDict], Any]]]:
    """The rules beside the dataclasses: keys → why they have no effect, and whether that is so in a configuration."""
    rules: dict[tuple[str, ...], tuple[str, Callable[[ConfigDict], Any]]] = {}
    for module in dict.fromkeys(base.__module__ for kind in _classes() for base in kind.__mro__):
        rules |= getattr(sys.modules[module], "UNUSED", {})
    return rules


def check_unused(config: ConfigDict, default: ConfigDict) -> None:
    """Raises ValueError for a key that differs from the default configuration but has no effect in this one."""
    given, right = flatten(config), flatten(default)
    for keys, (reason, has_none) in unused().items():
        if has_none(config):
            check_left(keys, reason, given, right)


def _classes() -> Iterator[type]:
    waiting = [kind for section in SECTIONS.values() for kind in section.kinds]
    while waiting:
        yield (kind := waiting.pop(0))
        waiting += [key.group for key in keys_of(kind) if key.group]


def read(thing: T | type[T], section: Mapping[str, Any], **changes: Any) -> T:
    """A frozen dataclass with the values of a section in place of its own; groups likewise.

    Args:
        thing: an instance, or a class that has defaults for all its fields.
        section: {name: value, or a section of a group}. None leaves what is there.
        changes: further fields.
    """
    whole = thing() if isinstance(thing, type) else thing
    for name, value in section.items():
        if isinstance(value, Mapping | ConfigDict):
            if any(leaf is not None for leaf in value.values()):
                changes[name] = read(getattr(whole, name), value)
        elif value is not None:
            changes[name] = value
    return dataclasses.replace(whole, **changes)
