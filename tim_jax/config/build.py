"""The one place that reads a configuration: checks it and builds frozen objects from the rooms' tables."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.config import loading
from tim_jax.config.keys import check_keys, check_left, check_unused
from tim_jax.config.objective import make_objective, make_transport, resolved
from tim_jax.data.settings import DataSettings
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.networks import SIZES, TiM
from tim_jax.networks.attention.pallas import has_kernels
from tim_jax.training import names, sharding
from tim_jax.training.loop import Trainer
from tim_jax.training.nets import class_conditions, make_nets, text_conditions
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.settings import CheckpointSettings, TrainingSettings
from tim_jax.training.step import StepSettings
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.sampler import Sampling
from tim_jax.transitions.transports import Transport
from tim_jax.types import Query

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a configuration says, built and checked.

    image_shape: (h, w, C) of a row, or of samples where rows differ. sampling_ema: "online" or the name of an
    average. rows_multiple: what the rows of a batch are a multiple of. Of an objective that learns from a teacher the
    trainer takes no step before `teachers.with_teachers` has found it; sampling needs none.
    """

    config: ConfigDict
    mesh: Mesh
    network: TiM
    transport: Transport
    trainer: Trainer
    training: TrainingSettings
    checkpoint: CheckpointSettings
    sampling: Sampling
    sampling_ema: str
    image_shape: tuple[int, int, int]
    data: DataSettings
    rows_multiple: int
    codecs: CodecSettings
    evaluation: EvaluationSettings

    @property
    def shows_images(self) -> bool:
        """Whether rows are images, or latents that an autoencoder decodes."""
        return bool(self.codecs.autoencoder) or self.image_shape[-1] in (1, 3)

    def net(self, params: Any) -> Callable:
        """The network with given parameters, as samplers take it."""
        return lambda queries: sharding.apply_by_rows(self.mesh, self.trainer.init, self.network, params, queries)

    def weights(self, state: Any, name: str = "") -> Any:
        """The parameters of that name: "online" or an average; those that `sampling.ema` names by default."""
        name = name or self.sampling_ema
        return state.params["online"] if name == "online" else state.emas[name]


def build(config: ConfigDict, devices: list | None = None) -> Run:
    """Objects for a configuration. Raises ValueError with one line that names key, value and what would be right."""
    check_keys(config)
    default = loading.load("base").get_config()
    default.objective.name, default.transport.name = config.objective.name, config.transport.name
    config, default = resolved(config), resolved(default)
    check_unused(config, default)
    data, model = config.data, config.model
    for name in ("height", "width", "channels", "batch_size"):
        if data[name] < 1:
            raise ValueError(f"data.{name} is {data[name]}; it must be at least 1")
    if not 0 <= data.condition_dropout <= 1:
        raise ValueError(f"data.condition_dropout is {data.condition_dropout}; it must lie in [0, 1]")
    for name in ("height", "width"):
        if model.patch_size < 1 or data[name] % model.patch_size:
            raise ValueError(f"model.patch_size is {model.patch_size}; it must divide data.{name} ({data[name]})")
    mesh = sharding.make_mesh(dict(config.mesh), devices)
    shards = sharding.batch_shards(mesh)
    check_tokens("data.height, width are", (data.height, data.width), model.patch_size, mesh)
    optimizer = OptimizerSettings(**config.optimizer)
    optimizer.check()
    transport = make_transport(config)
    objective = make_objective(config, transport, shards)
    check_teacher(config, default, objective)
    rows_multiple = shards * optimizer.accumulation * objective.row_group
    if not data.buckets.tokens and data.batch_size % rows_multiple:
        groups = f" × {objective.row_group} rows of a group" if objective.row_group > 1 else ""
        raise ValueError(
            f"data.batch_size is {data.batch_size}; it must be a multiple of {shards} devices × "
            f"{optimizer.accumulation} microbatches{groups}"
        )
    codecs = CodecSettings(**config.codecs)
    codecs.check()
    settings = DataSettings.read(
        data.to_dict(),
        config.loader.to_dict(),
        factor=codecs.factor_of_images(data.encode, model.condition, data.features_width),
        side=model.patch_size,
        rows_multiple=rows_multiple,
        tokens_multiple=mesh.shape["sequence"],
        num_classes=model.num_classes if model.condition == "class" else 0,
    )
    network = make_network(config, objective)
    device = mesh.devices.flat[0]
    if model.attention == "pallas" and not has_kernels(device, network.width // network.heads):
        warn_once(f"model.attention is 'pallas', which has no kernels for {device.device_kind}; it runs as 'blockwise'")
    for name, decay in config.ema.items():
        if not 0 <= decay < 1:
            raise ValueError(f"ema.{name} is {decay}; it must lie in [0, 1)")
        if name in objective.learns_from + objective.parts:
            raise ValueError(f"ema.{name}: objective.name {config.objective.name!r} has another network of that name")
    training, checkpoint = TrainingSettings(**config.training), CheckpointSettings(**config.checkpoint)
    training.check()
    checkpoint.check()
    init = initialiser(config, network)
    by_rows = functools.partial(sharding.apply_by_rows, mesh, init)

    def nets(network):
        return make_nets(network, objective.alignment_weight > 0, by_rows, optimizer.frozen)

    step = StepSettings(
        nets=nets(network),
        objective=objective,
        tx=make_optimizer(optimizer, ("online", *objective.parts)),
        schedule=make_schedule(optimizer),
        emas=dict(config.ema),
        conditions=text_conditions if model.condition == "text" else class_conditions(model.num_classes),
        seed=config.seed,
        condition_dropout=data.condition_dropout,
        dropout=model.dropout > 0,
        accumulation=optimizer.accumulation,
        parts=objective.parts,
    )
    counted = step
    if config.model.remat != "none":
        counted = dataclasses.replace(step, nets=nets(network.clone(remat="none")))
    sampling = make_sampling(config, objective)
    evaluation = EvaluationSettings.read(config.evaluation.to_dict(), config.sampling.ema)
    evaluation.check(config.ema, 3 if codecs.autoencoder else data.channels)
    run = Run(
        config=config,
        mesh=mesh,
        network=network,
        transport=transport,
        trainer=Trainer(mesh, init, step, counted),
        training=training,
        checkpoint=checkpoint,
        sampling=sampling,
        sampling_ema=config.sampling.ema,
        image_shape=(data.height, data.width, data.channels),
        data=settings,
        rows_multiple=rows_multiple,
        codecs=codecs,
        evaluation=evaluation,
    )
    if optimizer.frozen or optimizer.learning_rate_factors:
        optimizer.check_names(names.by_name(run.trainer.abstract.params["online"]))
    return run


@functools.cache
def warn_once(message: str) -> None:
    """Says so on stderr, however often a process asks."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def check_tokens(said: str, shape: tuple[int, int], patch: int, mesh: Mesh) -> None:
    """Raises ValueError that begins with `said` if mesh.sequence does not divide the tokens of (height, width)."""
    tokens, devices = shape[0] // patch * (shape[1] // patch), mesh.shape["sequence"]
    if tokens % devices:
        rule = f"their number must be a multiple of mesh.sequence, {devices}"
        raise ValueError(f"{said} {shape} with {tokens} tokens; {rule}")


def check_teacher(config: ConfigDict, default: ConfigDict, objective: Objective) -> None:
    """Raises ValueError for what `teacher` says by itself; its files are not touched."""
    if not objective.learns_from:
        reason = f"objective.name {config.objective.name!r} with velocity {config.objective.velocity!r} asks no teacher"
        check_left([f"teacher.{key}" for key in config.teacher], reason, config, default)
    if config.teacher.dtype not in DTYPES:
        raise ValueError(f"teacher.dtype is {config.teacher.dtype!r}; it must be one of {', '.join(DTYPES)}")


def make_network(config: ConfigDict, objective: Objective) -> TiM:
    """The network of `model`, with as many channels as the rows have, and what the objective asks of it."""
    model, data = config.model, config.data
    if model.size not in SIZES:
        raise ValueError(f"model.size is {model.size!r}; it must be one of {', '.join(SIZES)}")
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype is {model.dtype!r}; it must be one of {', '.join(DTYPES)}")
    if model.condition == "class" and model.num_classes < 1:
        raise ValueError(f"model.num_classes is {model.num_classes}; it must be at least 1")
    if model.condition == "text" and min(data.text_width, data.text_tokens) < 1:
        raise ValueError(
            f"data.text_width, text_tokens are {data.text_width}, {data.text_tokens}; "
            "both must be at least 1 where model.condition is 'text'"
        )
    sizes = {name: model[name] or size for name, size in SIZES[model.size].items()}
    same = ("patch_size", "projector_width", "condition", "num_classes", "conditioning", "separate_interval_embedder",
            "interval_aware", "qk_norm", "rope_order", "use_text_mask", "attention", "dropout")  # fmt: skip
    try:
        return TiM(
            channels=data.channels,
            z_dim=data.features_width,
            text_width=data.text_width,
            remat=config.model.remat,
            dtype=DTYPES[model.dtype],
            guidance_input=objective.input_guidance.active,
            output_heads=objective.heads,
            **sizes,
            **{name: model[name] for name in same},
        )
    except ValueError as error:
        raise ValueError(f"model.{error}") from None


def make_sampling(config: ConfigDict, objective: Objective) -> Sampling:
    """The sampling of `sampling`, for a model of that objective. Raises ValueError."""
    settings = dict(config.sampling)
    weights, rows = settings.pop("ema"), settings.pop("batch_size")
    if rows < 1:
        raise ValueError(f"sampling.batch_size is {rows}; it must be at least 1")
    if weights != "online" and weights not in config.ema:
        raise ValueError(f"sampling.ema is {weights!r}; it must be online or one of {', '.join(config.ema)}")
    if settings["sampler"] == "default":
        settings["sampler"] = objective.sampler
    sampling = Sampling(**settings, guidance_input=objective.input_guidance.active)
    sampling.check()
    if sampling.guidance_input and not 1 <= sampling.guidance <= objective.input_guidance.max_scale:
        raise ValueError(
            f"sampling.guidance is {sampling.guidance}; as an input of this network it must lie in "
            f"1 … {objective.input_guidance.max_scale:g} (objective.input_guidance.max_scale)"
        )
    return sampling


def initialiser(config: ConfigDict, network: TiM) -> Callable[[jax.Array], Any]:
    """key → boxed parameters of the network."""
    data = config.data
    x = jnp.zeros((1, data.height, data.width, data.channels))
    time = jnp.zeros((1,))
    if config.model.condition == "class":
        condition = {"label": jnp.zeros((1,), jnp.int32)}
    else:
        condition = {
            "text": jnp.zeros((1, data.text_tokens, data.text_width)),
            "mask": jnp.ones((1, data.text_tokens), bool),
        }
    if network.guidance_input:
        condition["guidance"] = jnp.ones((1, 3))
    return lambda key: network.init(key, (Query(x, time, time, condition),))["params"]


def batch_spec(config: ConfigDict, rows: int, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """{name: (shape, type)} of what a train step takes of a batch of `rows` rows of height and width `shape`."""
    data = config.data
    spec = {"x": ((rows, *shape, data.channels), np.float32)}
    if config.model.condition == "class":
        spec["label"] = ((rows,), np.int32)
    else:
        for name, count in (("", rows), ("null_", 1)):
            spec[f"{name}text"] = ((count, data.text_tokens, data.text_width), np.float32)
            spec[f"{name}mask"] = ((count, data.text_tokens), np.bool_)
    if data.paired_noise:
        spec["noise"] = spec["x"]
    if data.features_width:
        tokens = shape[0] * shape[1] // config.model.patch_size**2
        spec["features"] = ((rows, tokens, data.features_width), np.float32)
        spec["features_mask"] = ((rows,), np.bool_)
    return spec


def made_up_batch(config: ConfigDict, rows: int, shape: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Random rows of the right shapes and types, to try a step without data; shape: `data.height` and `width`."""
    rng = np.random.default_rng(0)

    def draw(name, shape, dtype):
        if dtype == np.float32:
            return rng.standard_normal(shape, np.float32)
        if dtype == np.int32:
            return rng.integers(0, config.model.num_classes, shape, np.int32)
        if name == "features_mask":
            return np.ones(shape, bool)
        lengths = rng.integers(1, shape[1] + 1, shape[0]) if name == "mask" else np.ones(1, int)
        return np.arange(shape[1])[None] < lengths[:, None]

    spec = batch_spec(config, rows, shape or (config.data.height, config.data.width))
    return {name: draw(name, *of) for name, of in spec.items()}
