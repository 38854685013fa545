"""Frozen models that an objective learns from: found, checked against the run, handed to its step, told to checkpoints.

A teacher is any run of the same rows, transport and conditions; its network is of its own configuration. Nothing but
`FrozenModel.params` reads weights, and only training asks for those: a student samples without its teacher.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from tim_jax.config.keys import flatten
from tim_jax.config.network import check_tokens, initialiser
from tim_jax.config.network import make_network as make_whole_network
from tim_jax.config.objective import make_objective, make_transport, resolved
from tim_jax.config.run import Run
from tim_jax.networks import TiM
from tim_jax.runs import workdir
from tim_jax.training import checkpoints, checksums, names, sharding, warm_start
from tim_jax.training.nets import frozen_net
from tim_jax.training.warm_start import Saved
from tim_jax.types import DTYPES

# Name of a network that an objective asks -> the keys of `teacher` that say where its weights are, and which.
KEYS = {"teacher": ("checkpoint", "ema"), "weaker": ("weak_checkpoint", "weak_ema")}
SHORT = 12  # digits of a fingerprint that an error shows


@dataclasses.dataclass(frozen=True)
class Found:
    """A model that can teach. said: what names it, to begin an error with. config: its own, resolved. saved, which,
    fingerprint: its weights and what tells its checkpoint from others; None and "" of one that is only planned with."""

    said: str
    config: ConfigDict
    saved: Saved | None = None
    which: str = ""
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A network that a step asks. net: params → network on a tuple of Queries. abstract: shapes, types and shardings of
    its parameters."""

    found: Found
    net: Callable
    abstract: Any

    @functools.cached_property
    def params(self) -> Any:
        """Its parameters on the mesh, cast as they are read; read once."""
        return warm_start.read_network(self.found.saved, self.found.which, self.abstract)


def with_teachers(run: Run) -> Run:
    """The run with the frozen networks that its objective asks; the run itself where that asks none.

    To be called by all processes. Reads the records of their checkpoints, and all files for their checksums; weights
    come later. Raises ValueError, naming the key.
    """
    return asking(run, find(run)) if run.trainer.step.objective.teachers else run


def find(run: Run) -> dict[str, Found]:
    """{name: what the configuration means by it} of every frozen network that its objective asks. Raises ValueError."""
    return {name: _find(run.config, *KEYS[name]) for name in run.trainer.step.objective.teachers}


def _find(config: ConfigDict, key: str, which_key: str) -> Found:
    path, which = config.teacher[key], config.teacher[which_key]
    said = f"teacher.{key} is {path!r}"
    if not path:
        raise ValueError(
            f"{said}; objective.name {config.objective.name!r} learns from a teacher: it must be a workdir or one of "
            "its checkpoints"
        )
    saved = warm_start.find(path, f"teacher.{key}")
    fingerprint = checksums.fingerprint(saved.directory / str(saved.step))
    if fingerprint is None:
        raise ValueError(f"{said}; {checkpoints.NO_MANIFEST} in {saved}: it must be a checkpoint that has them")
    found = warm_start.weights_of(saved)
    if which not in found:
        raise ValueError(f"teacher.{which_key} is {which!r}; it must be one of {', '.join(found)}, which {saved} has")
    try:
        own = workdir.restored(warm_start.record(saved)["config"])
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None
    return Found(said, own, saved, which, fingerprint)


def stand_ins(run: Run, config: ConfigDict, said: str) -> dict[str, Found]:
    """A configuration in place of every model that the objective asks, to plan with. said: what names it.

    Raises ValueError if none is asked.
    """
    asked = run.trainer.step.objective.teachers
    if not asked:
        raise ValueError(f"{said}, but objective.name {run.config.objective.name!r} asks no teacher: leave it out")
    return dict.fromkeys(asked, Found(said, resolved(config)))


def asking(run: Run, found: Mapping[str, Found]) -> Run:
    """The run whose step asks these models. Raises ValueError for one that does not fit the run."""
    teachers = {name: make_teacher(run, model) for name, model in found.items()}
    return dataclasses.replace(run, trainer=run.trainer.with_frozen(teachers))


def make_teacher(run: Run, found: Found) -> FrozenModel:
    """A model on the run's mesh, by the rules that place the student. Raises ValueError if it does not fit the run."""
    check(run, found)
    try:
        network = make_network(run, found.config)
    except ValueError as error:
        raise ValueError(f"{found.said}: {error}") from None
    init, dtype = initialiser(found.config, network), DTYPES[run.config.teacher.dtype]
    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes = nn.unbox(boxed)
    abstract = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=placed),
        shapes,
        sharding.shardings(run.mesh, boxed, shapes),
    )
    if found.saved is not None:
        there = warm_start.weights_of(found.saved)[found.which]
        for name, leaf in names.by_name(shapes).items():
            if there.get(name) != leaf.shape:
                own = f"is {leaf.shape} by its own configuration and {there.get(name)} there"
                raise ValueError(f"{found.said}; {name} {own}: the checkpoint must be one of that run")
    plain = (1.0, run.transport.T_min, run.transport.T_max)  # guidance is the objective's business
    apply = functools.partial(sharding.apply_on_mesh, run.mesh, init)
    return FrozenModel(found, frozen_net(network, plain, apply), abstract)


def make_network(run: Run, config: ConfigDict) -> TiM:
    """The network of a teacher's configuration as the run asks it: without what training alone needs."""
    objective = make_objective(config, make_transport(config), shards=1)
    return make_whole_network(config, objective).clone(
        dtype=DTYPES[run.config.teacher.dtype],
        attention=run.config.model.attention,
        remat="none",
        dropout=0.0,
        z_dim=0,
        output_heads=(),
    )


def check(run: Run, found: Found) -> None:
    """Raises ValueError, naming the key, if a model does not fit the run that is to learn from it."""
    config, own = run.config, found.config
    condition = {"class": ["model.num_classes"], "text": ["data.text_width", "codecs.text_states"]}
    keys = ["transport.name", "data.height", "data.width", "data.channels", "model.condition"]
    keys += condition[config.model.condition] + ["transport.sigma_d"] * (config.transport.name == "edm")
    if all(one.data.encode and one.codecs.autoencoder for one in (config, own)):
        keys.append("codecs.latents")
    here, there = flatten(config), flatten(own)
    for key in keys:
        if there[key] != here[key]:
            raise ValueError(f"{found.said}; its {key} is {there[key]!r}: it must be {here[key]!r}, as this run's")
    if own.times.share_equal == 0:
        raise ValueError(
            f"{found.said}; its times.share_equal is 0: it must be above, since a model that never saw r = t has no "
            "velocity"
        )
    reasons = {
        "data.condition_dropout is above 0 here": config.data.condition_dropout > 0,
        "teacher.guidance is not 1": config.teacher.guidance != 1 and not config.teacher.weak_checkpoint,
    }
    asked = [reason for reason, true in reasons.items() if true]
    if own.data.condition_dropout == 0 and asked:
        raise ValueError(
            f"{found.said}; its data.condition_dropout is 0: it must have seen the null condition, since {asked[0]}"
        )
    patch = own.model.patch_size
    if run.inputs.bucketing and config.model.patch_size % patch:
        raise ValueError(
            f"{found.said}; its model.patch_size is {patch}: with buckets it must divide this run's "
            f"({config.model.patch_size})"
        )
    check_tokens(f"{found.said}; its rows are", run.image_shape[:2], patch, run.mesh)


def record(run: Run) -> dict[str, Any]:
    """What a checkpoint of the run says of its teachers: {"teachers": {name: …}}, or nothing without any."""
    found = {name: teacher.found for name, teacher in run.trainer.frozen.items()}
    teachers = {
        name: {"path": str(model.saved), "which": model.which, "fingerprint": model.fingerprint}
        for name, model in found.items()
    }
    return {"teachers": teachers} if teachers else {}


def check_same(run: Run, recorded: dict[str, Any], student: Saved) -> None:
    """Raises ValueError if a checkpoint of the student names other teachers than the run has.

    recorded: what that checkpoint says. Where a teacher lies does not matter.
    """
    before, now = recorded.get("teachers"), record(run).get("teachers", {})
    for name in KEYS if before is not None else ():
        then, this = before.get(name), now.get(name)
        if (then and then["fingerprint"]) == (this and this["fingerprint"]):
            continue
        line = f"teacher.{KEYS[name][0]} is {_told(this)}, but {student} learnt from {_told(then)}"
        if then and this and _folder(then) == _folder(this):
            raise ValueError(f"{line}: the teacher has trained on since; name that checkpoint itself")
        raise ValueError(f"{line}: give that, or another workdir")


def _told(teacher: dict[str, str] | None) -> str:
    return f"{teacher['path']} (fingerprint {teacher['fingerprint'][:SHORT]})" if teacher else "''"


def _folder(teacher: dict[str, str]) -> str:
    return teacher["path"].rpartition("/")[0]
