"""From a configuration to a run: the one place that reads a configuration whole."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.config import automatic, plugins, values
from tim_jax.config.examples import check_batch_size, make_inputs
from tim_jax.config.fewer import with_microbatches
from tim_jax.config.identity import check_keys
from tim_jax.config.network import (
    check_clock,
    check_context,
    check_heads,
    check_shapes,
    check_tokens,
    initialiser,
    make_network,
    warn_of_whole_parameters,
    with_attention,
)
from tim_jax.config.objective import (
    check_coupling,
    check_teacher,
    make_memory,
    make_objective,
    make_transport,
    resolved,
)
from tim_jax.config.run import Run
from tim_jax.config.sampling import check_emas, make_evaluation, make_sampling
from tim_jax.config.sections import check_unused, read
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.networks import Transformer
from tim_jax.networks.discriminator import head_initialisers, head_nets
from tim_jax.training import names, sharding
from tim_jax.training.mesh import AUTO, choose_fsdp, make_mesh
from tim_jax.training.nets import class_conditions, make_nets, text_conditions
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.settings import CheckpointSettings, PosthocEMASettings, StartSettings, TrainingSettings
from tim_jax.training.step import Conditions, StepSettings
from tim_jax.training.trainer import Trainer
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.objective import Objective
from tim_jax.types import Auxiliary


def build(config: ConfigDict, devices: Sequence[jax.Device] | None = None, planned: int = 0) -> Run:
    """Objects for a configuration.

    Args:
        config: with all keys of configs/base.py.
        devices: of the mesh; all by default.
        planned: number of devices that the run was planned for, where some are missing; 0 for these.

    Raises:
        ValueError: one line, "KEY is VALUE; it must …".
    """
    config, default = checked(config, devices)
    data, loader, codecs = (
        read(DataSettings, config.data),
        read(LoaderSettings, config.loader),
        read(CodecSettings, config.codecs),
    )
    optimizer, training = read(OptimizerSettings, config.optimizer), read(TrainingSettings, config.training)
    checkpoint, posthoc_ema = read(CheckpointSettings, config.checkpoint), read(PosthocEMASettings, config.posthoc_ema)
    data.check(config.model.patch_size, config.model.condition)
    for settings in (loader, codecs, optimizer, training, checkpoint, posthoc_ema):
        settings.check()
    optimizer = optimizer.following(training.steps)
    check_emas(config.ema)
    devices = jax.devices() if devices is None else devices
    mesh = make_mesh(config.mesh.to_dict(), devices)
    check_tokens("data.height, data.width are", (data.height, data.width), config.model.patch_size, mesh)

    transport = make_transport(config)
    objective = make_objective(config, transport, sharding.batch_shards(mesh))
    check_teacher(config, default, objective)
    check_coupling(config, objective)
    network = make_network(config, objective)
    optimizer = dataclasses.replace(optimizer, frozen=(*optimizer.frozen, *network.FROZEN))
    check_shapes(config, network)
    check_clock(network, transport)
    check_context(network, mesh)
    check_heads(objective, dict.fromkeys(objective.auxiliary, network))
    init = initialiser(config, network)
    if config.mesh.fsdp == AUTO:  # examples lie on as many devices whatever is chosen
        mesh = _with_chosen_fsdp(config, devices, network, init)
    network = with_attention(network, mesh)
    warn_of_whole_parameters(network, mesh)
    optimizer = with_microbatches(config, optimizer, objective, sharding.batch_shards(mesh), planned)
    batch_multiple = sharding.batch_shards(mesh) * optimizer.accumulation * objective.batch_multiple
    if data.batch_size == automatic.AUTO:
        config.data.batch_size = automatic.batch_size(config, mesh.devices.ravel().tolist(), batch_multiple)
        data = dataclasses.replace(data, batch_size=config.data.batch_size)
    check_batch_size(data, mesh, optimizer, objective)
    run = Run(
        config=config,
        mesh=mesh,
        network=network,
        transport=transport,
        trainer=_trainer(config, network, init, objective, optimizer, mesh),
        data=data,
        loader=loader,
        codecs=codecs,
        teacher=objective.teacher,
        posthoc_ema=posthoc_ema,
        start=read(StartSettings, config.start),
        training=training,
        checkpoint=checkpoint,
        sampling=make_sampling(config, objective),
        evaluation=make_evaluation(config),
        inputs=make_inputs(config, data, loader, codecs, batch_multiple, mesh.shape["sequence"]),
        batch_multiple=batch_multiple,
    )
    if optimizer.frozen or optimizer.learning_rate_factors:
        boxed = jax.eval_shape(run.trainer.init, jax.random.key(0))  # before the optimizer selects by these names
        optimizer.check_names(names.by_name(nn.unbox(boxed)))
    return run


def checked(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> tuple[ConfigDict, ConfigDict]:
    """The configuration and the default one, both resolved. Raises ValueError for keys that are wrong or of no
    effect."""
    config = plugins.with_keys(ConfigDict(config.to_dict()))
    check_keys(config)
    config = automatic.without_data(automatic.with_size(values.checked(config), devices))
    default = plugins.base_config(config.plugin)
    default.objective.name, default.transport.name = config.objective.name, config.transport.name
    config, default = resolved(config), resolved(default)
    check_unused(config, default)
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed is {config.seed}; it must lie in 0 … 4294967295")
    return config, default


def _with_chosen_fsdp(
    config: ConfigDict, devices: Sequence[jax.Device], network: Transformer, init: Callable[[jax.Array], Any]
) -> Mesh:
    """The mesh of a configuration whose `mesh.fsdp` is chosen."""

    def parameters() -> int:
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))

    sizes = config.mesh.to_dict()
    return make_mesh(sizes, devices, choose_fsdp(sizes, devices, network.width, parameters))


def _trainer(
    config: ConfigDict,
    network: Transformer,
    init: Callable[[jax.Array], Any],
    objective: Objective,
    optimizer: OptimizerSettings,
    mesh: Mesh,
) -> Trainer:
    """The compiled pieces of a run."""
    by_rows = functools.partial(sharding.apply_on_mesh, mesh, init)

    def step(network: Transformer) -> StepSettings:
        return StepSettings(
            nets=make_nets(network, objective.alignment_weight > 0, by_rows, optimizer.frozen)
            | head_nets(objective.auxiliary_heads),
            objective=objective,
            tx=make_optimizer(optimizer, {"online": Auxiliary(), **objective.auxiliary}),
            schedule=make_schedule(optimizer),
            emas=dict(config.ema) | read(PosthocEMASettings, config.posthoc_ema).decays,
            conditions=_conditions(network),
            condition_dropout=config.data.condition_dropout,
            dropout=network.dropout > 0,
            accumulation=optimizer.accumulation,
            noise=functools.partial(draw_noise, objective.transport.augmented_dimensions),
            auxiliary=objective.auxiliary,
            ema_warmup=optimizer.ema_warmup,
            couple=objective.coupling.couple if objective.coupling.active else None,
            slices=network.slices,
            memory=make_memory(config, objective),
        )

    compiled = step(network)
    without_remat = compiled if network.remat == "none" else step(network.clone(remat="none"))
    heads = head_initialisers(objective.auxiliary_heads)
    return Trainer(mesh, init, compiled, without_remat, config.seed, heads=heads, width=network.width)


def _conditions(network: Transformer) -> Conditions:
    if network.condition == "text":
        return text_conditions(own_mask=network.use_text_mask)
    return class_conditions(network.num_classes)
