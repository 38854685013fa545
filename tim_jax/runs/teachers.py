"""Teachers: frozen models that an objective learns from, found, checked against the run and handed to its step.

A teacher is any run with the same kind of examples and conditions; its network and its transport are of its own
configuration, and one of another transport is asked as `transitions/change_of_transport.py` says.
Nothing but `FrozenModel.params` reads weights, and only training asks for those: a student samples without its teacher.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from tim_jax.config.keys import flatten
from tim_jax.config.network import check_heads, check_tokens, initialiser
from tim_jax.config.network import make_network as make_whole_network
from tim_jax.config.objective import make_objective, make_transport, resolved
from tim_jax.config.run import Run
from tim_jax.networks import Transformer
from tim_jax.runs import rewards, workdir
from tim_jax.runs.rewards import find_classifier
from tim_jax.training import checkpoints, checksums, names, sharding, warm_start
from tim_jax.training.nets import frozen_net
from tim_jax.training.warm_start import Saved
from tim_jax.transitions.change_of_transport import in_transport
from tim_jax.transitions.coupling import Coupling
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.preference import FlowDPO
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.prediction import tells_times
from tim_jax.types import DTYPES

# Name of a network that an objective calls -> the keys of `teacher` for its checkpoint and its EMA.
KEYS = {"teacher": ("checkpoint", "ema"), "weaker": ("weak_checkpoint", "weak_ema")}
OF_TRANSPORT = tuple(
    f"transport.{name}" for name in ("name", "sigma_d", "noise_std", "shared_below", "shared_intervals")
)
SHORT = 12  # digits of a fingerprint that an error shows


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """Where a teacher comes from.

    Attributes:
        where: what names it, to begin an error with: "KEY is VALUE".
        config: its own configuration, resolved.
        saved: the checkpoint with its weights; None for a model that is only planned with.
        ema: which weights: "online" or the name of an EMA.
        fingerprint: tells the checkpoint from others; "" without one.
    """

    where: str
    config: ConfigDict
    saved: Saved | None = None
    ema: str = ""
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A network that the objective calls and nothing changes.

    Attributes:
        source: where it comes from.
        net: parameters → network on a tuple of Queries.
        network: the module.
        abstract: shapes, types and shardings of its parameters.
    """

    source: TeacherSource
    net: Callable
    network: Transformer
    abstract: Any

    @property
    def width(self) -> int:
        """That of its hidden states."""
        return self.network.width

    @functools.cached_property
    def params(self) -> Any:
        """Its parameters on the mesh, cast as they are read; read once."""
        assert self.source.saved is not None, "a model with weights"
        return warm_start.read_network(self.source.saved, self.source.ema, self.abstract)


def with_teachers(run: Run) -> Run:
    """The run with the teachers that its objective learns from, and a reward's classifier; all processes must call it.

    Reads the records of their checkpoints, and all files for their checksums; weights come later.

    Raises:
        ValueError: naming the key, for what is not there or does not fit the run.
    """
    return with_models(run, find_teachers(run))


def _teachers_of(run: Run) -> tuple[str, ...]:
    """The names of the teachers that the run's objective learns from."""
    return _objective(run).teachers


def _objective(run: Run) -> Objective:
    return cast(Objective, run.trainer.step.objective)


def starts_from_teacher(run: Run) -> bool:
    """Whether the teacher is what the run starts from: the reference of preferences, where no other is named."""
    config = run.config
    compares = isinstance(run.trainer.step.objective, FlowDPO) and not config.teacher.checkpoint
    return compares and bool(config.start.checkpoint)


def find_teachers(run: Run) -> dict[str, TeacherSource]:
    """{name: source} of every teacher that the run's objective learns from. Raises ValueError, naming the key."""
    start = run.config.start
    if starts_from_teacher(run):
        return {"teacher": find_frozen(start.checkpoint, "start.checkpoint", start.ema, "start.ema")}
    return {name: _find(run.config, *KEYS[name]) for name in _teachers_of(run)}


def _find(config: ConfigDict, key: str, ema_key: str) -> TeacherSource:
    path = config.teacher[key]
    if not path:
        raise ValueError(
            f"teacher.{key} is {path!r}; it must be a workdir or one of its checkpoints, as objective.name "
            f"{config.objective.name!r}{_terms(config)} learns from a teacher"
        )
    return find_frozen(path, f"teacher.{key}", config.teacher[ema_key], f"teacher.{ema_key}")


def _terms(config: ConfigDict) -> str:
    """What an error says of a term that asks the teacher beside the objective."""
    weight = config.objective.matching.weight
    return f" with objective.matching.weight {weight}" if weight else ""


def find_frozen(path: str, key: str, ema: str = "", ema_key: str = "") -> TeacherSource:
    """The source of a frozen network.

    Args:
        path: a workdir, or one of its checkpoints.
        key: that names it.
        ema: which weights; "" for `sampling.ema` of its own configuration.
        ema_key: that names those.

    Raises:
        ValueError: naming the key, if it is not there, or not whole.
    """
    where = f"{key} is {path!r}"
    saved = warm_start.find(path, key)
    fingerprint = checksums.fingerprint(saved.directory / str(saved.step))
    if fingerprint is None:
        raise ValueError(
            f"{where}; it must be a checkpoint with checksums, and there are {checkpoints.NO_MANIFEST} in {saved}"
        )
    try:
        own = workdir.restored(warm_start.record(saved)["config"], saved.directory.parent)
    except ValueError as error:
        raise ValueError(f"{where}; it must be of a run that can be built: {error}") from None
    ema = ema or own.sampling.ema
    warm_start.find_weights(saved, ema, ema_key or key)
    return TeacherSource(where, own, saved, ema, fingerprint)


def planned_teachers(run: Run, config: ConfigDict, where: str) -> dict[str, TeacherSource]:
    """{name: source} of teachers without weights, to plan with.

    Args:
        run: the student's.
        config: of every teacher.
        where: what names it, to begin an error with.

    Raises:
        ValueError: if the run's objective learns from no teacher.
    """
    teachers = _teachers_of(run)
    if not teachers:
        raise ValueError(
            f"{where}; it must be left out, as objective.name {run.config.objective.name!r} learns from no teacher"
        )
    return dict.fromkeys(teachers, TeacherSource(where, resolved(config)))


def with_models(run: Run, sources: Mapping[str, TeacherSource]) -> Run:
    """The run with these teachers and a reward's classifier. Raises ValueError for what does not fit the run."""
    for source in sources.values():
        if _made_with(source, run).prediction_input:
            raise ValueError(
                f"{source.where}; it must be a model of data, and a refiner corrects another's predictions"
            )
    teachers = {name: make_teacher(run, source) for name, source in sources.items()}
    check_heads(_objective(run), {name: teacher.network for name, teacher in teachers.items()})
    frozen = teachers | find_classifier(run)
    return dataclasses.replace(run, trainer=run.trainer.with_frozen(frozen)) if frozen else run


def make_teacher(run: Run, source: TeacherSource) -> FrozenModel:
    """A teacher on the run's mesh, sharded as the student is. Raises ValueError if it does not fit the run."""
    check(run, source)
    try:
        network, own = make_network(run, source.config), make_transport(source.config)
    except ValueError as error:
        raise ValueError(f"{source.where}; it must be of a run that can be built: {error}") from None
    init, dtype = initialiser(source.config, network), DTYPES[run.config.teacher.dtype]
    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes = nn.unbox(boxed)
    abstract = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=placed),
        shapes,
        sharding.shardings(run.mesh, boxed, shapes),
    )
    if source.saved is not None:
        there = warm_start.find_weights(source.saved, source.ema, source.where)
        for name, leaf in names.by_name(shapes).items():
            if there.get(name) != leaf.shape:
                shapes_of = f"is {leaf.shape} by its own configuration and {there.get(name)} there"
                raise ValueError(f"{source.where}; it must be a checkpoint of its own run, and {name} {shapes_of}")
    plain = (1.0, own.T_min, own.T_max)  # guidance is the objective's business
    net = frozen_net(network, plain, functools.partial(sharding.apply_on_mesh, run.mesh, init))
    if not other_transport(run, source):
        return FrozenModel(source, net, network, abstract)
    return FrozenModel(source, lambda params: in_transport(net(params), own, run.transport), network, abstract)


def other_transport(run: Run, source: TeacherSource) -> str:
    """The first key by which the transport of a frozen network is another than the run's; "" if it is the same."""
    here, there = flatten(run.config), flatten(source.config)
    return next((key for key in OF_TRANSPORT if here[key] != there[key]), "")


def make_network(run: Run, config: ConfigDict) -> Transformer:
    """The network of a teacher's configuration, without what only training needs."""
    objective = make_objective(config, make_transport(config), shards=1)
    return make_whole_network(config, objective).clone(
        dtype=DTYPES[run.config.teacher.dtype],
        attention=run.config.model.attention,
        remat="none",
        dropout=0.0,
        z_dim=0,
        output_heads=(),
    )


def check(run: Run, source: TeacherSource) -> None:
    """Raises ValueError, naming the key, if a teacher does not fit the run that is to learn from it."""
    config, own = run.config, source.config
    text = ["data.text_width", "codecs.text_states", "codecs.text_escapes", "model.use_text_mask"]
    condition = {"class": ["model.num_classes"], "text": text}
    keys = ["data.height", "data.width", "data.channels", "model.condition", *condition[config.model.condition]]
    keys += ["transport.gamma", "transport.augmented_dimensions"]
    if all(one.data.encode and one.codecs.autoencoder for one in (config, own)):
        keys.append("codecs.latents")
    keys += [f"objective.coupling.{field.name}" for field in dataclasses.fields(Coupling)]
    here, there = flatten(config), flatten(own)
    for key in keys:
        if there[key] != here[key]:
            raise ValueError(f"{source.where}; it must have this run's {key}, {here[key]!r}, and has {there[key]!r}")
    scales = (config.data.latent_scale, own.data.latent_scale)
    if all(scales) and scales[0] != scales[1]:
        raise ValueError(f"{source.where}; it must have this run's data.latent_scale, {scales[0]}, and has {scales[1]}")
    check_transport(run, source)
    if own.model.slices > 1:
        raise ValueError(f"{source.where}; it must have model.slices=1, as one call has times of several slices")
    if _made_with(source, run).transition_head:
        raise ValueError(f"{source.where}; it must predict a velocity, and one of {own.objective.name} draws it")
    if own.times.share_equal == 0:
        raise ValueError(
            f"{source.where}; it must have seen r = t, or it has no velocity, and its times.share_equal is 0"
        )
    reasons = {
        "data.condition_dropout is above 0 here": config.data.condition_dropout > 0,
        "teacher.guidance is not 1": config.teacher.guidance != 1 and not config.teacher.weak_checkpoint,
    }
    needed = [reason for reason, true in reasons.items() if true]
    if own.data.condition_dropout == 0 and needed:
        raise ValueError(
            f"{source.where}; it must have seen the null condition, since {needed[0]}, and its data.condition_dropout "
            "is 0"
        )
    patch = own.model.patch_size
    if run.inputs.bucketing and config.model.patch_size % patch:
        raise ValueError(
            f"{source.where}; it must have a model.patch_size that divides this run's, {config.model.patch_size}, with "
            f"buckets, and has {patch}"
        )
    check_tokens(f"{source.where}; its examples are", run.image_shape[:2], patch, run.mesh)


def check_transport(run: Run, source: TeacherSource) -> None:
    """Raises ValueError, naming the key, if the transport is another where it must be the run's."""
    if not (key := other_transport(run, source)):
        return
    reasons = {
        "transport.gamma is above 0": run.transport.gamma > 0,
        "transport.shared_below is above 0 here": run.transport.shared_below > 0,
        "time_of_c_noise here does not invert c_noise": not tells_times(run.transport),
        "a refiner goes with its teacher": _objective(run).prediction_input or _made_with(source, run).prediction_input,
    }
    for reason in (reason for reason, true in reasons.items() if true):
        here, there = (flatten(config)[key] for config in (run.config, source.config))
        raise ValueError(f"{source.where}; it must have this run's {key}, {here!r}, since {reason}, and has {there!r}")


def _made_with(source: TeacherSource, run: Run) -> Objective:
    """The objective that a frozen network was trained with, as its name gives it."""
    return OBJECTIVES[source.config.objective.name](run.transport)


def record(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run's teachers, {"teachers": {name: {"path", "which", "fingerprint"}}} or {}.

    And what it says of a reward's classifier, see `rewards.record`.
    """
    frozen = run.trainer.frozen
    sources = {name: cast(FrozenModel, frozen[name]).source for name in KEYS if name in frozen}
    teachers = {
        name: {"path": str(source.saved), "which": source.ema, "fingerprint": source.fingerprint}
        for name, source in sources.items()
    }
    return ({"teachers": teachers} if teachers else {}) | rewards.record(run)


def check_same(run: Run, recorded: dict[str, Any], student: Saved) -> None:
    """Checks that a checkpoint of the student has learnt from the run's teachers and classifier, wherever they lie now.

    Args:
        run: with its teachers.
        recorded: what the checkpoint says.
        student: the checkpoint.

    Raises:
        ValueError: naming the key, if it names others.
    """
    rewards.check_same(run, recorded, student)
    before, now = recorded.get("teachers"), record(run).get("teachers", {})
    if before is None:  # imported weights have learnt from none
        return
    for name in KEYS:
        then, this = before.get(name), now.get(name)
        if (then and then["fingerprint"]) == (this and this["fingerprint"]):
            continue
        line = f"teacher.{KEYS[name][0]} is {_describe(this)}, but {student} learnt from {_describe(then)}"
        if then and this and _folder(then) == _folder(this):
            raise ValueError(f"{line}: the teacher has trained on since; name that checkpoint itself")
        raise ValueError(f"{line}: give that, or another workdir")


def _describe(teacher: dict[str, str] | None) -> str:
    return f"{teacher['path']} (fingerprint {teacher['fingerprint'][:SHORT]})" if teacher else "''"


def _folder(teacher: dict[str, str]) -> str:
    return teacher["path"].rpartition("/")[0]
