"""How a configuration's model is sampled, and its samples measured."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from tim_jax.config.network import warn_once
from tim_jax.config.objective import check_null
from tim_jax.config.sections import read
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.training import power_ema
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.grids import make_grid
from tim_jax.transitions.sampling.planning import make_plan, plan_in_time, time_grid
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.times import Times


def check_emas(emas: Mapping[str, float]) -> None:
    """Raises ValueError for a decay that is none."""
    for name, decay in emas.items():
        if not name.isidentifier() or name == "online":
            raise ValueError(f"ema.{name} is {decay}; it must have another name: a word, and not 'online'")
        if not 0 <= decay < 1:
            raise ValueError(f"ema.{name} is {decay}; it must lie in [0, 1)")


def tracked(config: ConfigDict) -> tuple[str, ...]:
    """The names of the weights that training keeps: "online", the EMAs of `ema` and those of `posthoc_ema`."""
    return ("online", *config.ema, *map(power_ema.name_of, config.posthoc_ema.sigma_rel))


def check_weights(key: str, name: str, config: ConfigDict) -> None:
    """Raises ValueError, naming the key, for a name that means no weights of this run, tracked or synthesised."""
    known, any_length = tracked(config), bool(config.posthoc_ema.sigma_rel)
    if power_ema.canonical(name) in known or any_length and power_ema.named(name):
        return
    more = f" or {power_ema.PREFIX}VALUE, with a value up to {power_ema.MAX_SIGMA_REL}" if any_length else ""
    raise ValueError(f"{key} is {name!r}; it must be one of {', '.join(known)}{more}")


def make_sampling(config: ConfigDict, objective: Objective) -> Sampling:
    """The sampling of `sampling`, for a model of that objective. Raises ValueError."""
    sampling = read(
        Sampling,
        config.sampling,
        guidance_input=objective.input_guidance.active,
        transition_head=objective.transition_head,
    )
    if sampling.sampler == "default":
        sampling = read(sampling, {"sampler": objective.sampler})
    check_weights("sampling.ema", sampling.ema, config)
    sampling = read(sampling, {"ema": power_ema.canonical(sampling.ema)})
    sampling.check()
    if objective.transport.augmented_dimensions and sampling.plan == "sampler":  # raises for samplers with fresh noise
        plan_in_time(objective.transport, make_grid("uniform", objective.transport, 4), sampling)
    if sampling.guidance_input:
        check_inputs(sampling, objective)
    elif sampling.guidance != 1:
        check_null(config, f"sampling.guidance is {sampling.guidance}")
    if sampling.guidance_channels > config.data.channels:
        raise ValueError(
            f"sampling.guidance_channels is {sampling.guidance_channels}; it must be at most data.channels, "
            f"{config.data.channels}"
        )
    warn_of_untrained(sampling.sampler, objective.times)
    if config.model.slices > 1 and sampling.parallel:
        raise ValueError(
            f"sampling.parallel is {sampling.parallel}; it must be 0 where model.slices is {config.model.slices}, as "
            "times of several slices would be taken at once"
        )
    if objective.coupling.active or objective.transport.gamma:
        check_noise(sampling, objective)
    return sampling


def check_noise(sampling: Sampling, objective: Objective) -> None:
    """Raises ValueError for fresh noise that a path does not have: coupled with data, or with a latent variable.

    The sampler `consistency` has nothing but fresh noise at the ends of coupled paths, which is drawn as theirs.
    """
    transport, task = objective.transport, objective.coupling.task
    why = f"transport.gamma is {transport.gamma:g}" if transport.gamma else f"objective.coupling.task is {task!r}"
    own = dataclasses.replace(sampling, plan="sampler", grid="uniform")
    plan = make_plan(transport, time_grid(transport, 4, own), own)
    if plan.c.any() and (sampling.sampler != "consistency" or sampling.parallel or transport.gamma):
        raise ValueError(f"sampling.sampler is {sampling.sampler!r}; it must take no fresh noise where {why}")


def check_inputs(sampling: Sampling, objective: Objective) -> None:
    """Raises ValueError for a scale or an interval of guidance that a network with these inputs was not trained on."""
    if not 1 <= sampling.guidance <= objective.input_guidance.max_scale:
        raise ValueError(
            f"sampling.guidance is {sampling.guidance}; it must lie in [1, {objective.input_guidance.max_scale:g}], as "
            "an input of this network (objective.input_guidance.max_scale)"
        )
    middle = objective.input_guidance.middle(objective.transport) / objective.transport.T_max
    if not sampling.guidance_low <= middle <= sampling.guidance_high:
        raise ValueError(
            f"sampling.guidance_low, sampling.guidance_high are {sampling.guidance_low}, {sampling.guidance_high}; "
            f"they must hold {middle:g}, the middle of the time domain, as inputs of this network, which has seen such "
            "intervals alone"
        )


def warn_of_untrained(sampler: str, times: Times) -> None:
    """Says so where a sampler evaluates the network at pairs of times that it was never trained at."""
    diagonal = SAMPLERS[sampler].diagonal
    if diagonal and times.share_equal == 0:
        warn_once(f"sampling.sampler is {sampler!r}, which asks for r = t, and times.share_equal is 0: untrained there")
    elif not diagonal and times.share_equal == 1:
        warn_once(f"sampling.sampler is {sampler!r}, which asks for r < t, and times.share_equal is 1: untrained there")
    elif sampler == "flow_map" and times.share_equal + times.share_min == 1:
        warn_once(
            "sampling.sampler is 'flow_map', which asks for jumps that end between data and noise where there are "
            "several, and times.share_equal and times.share_min are 1 in sum: untrained there"
        )


def make_evaluation(config: ConfigDict) -> EvaluationSettings:
    """The settings of `evaluation`. Raises ValueError."""
    settings = read(EvaluationSettings, config.evaluation)
    settings.check(tracked(config)[1:], 3 if config.codecs.autoencoder else config.data.channels)
    return settings
