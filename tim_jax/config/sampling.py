"""How a configuration's model is sampled, and its samples measured."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from tim_jax.config.sections import read
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.sampler import Sampling


def check_emas(emas: Mapping[str, float]) -> None:
    """Raises ValueError for a decay that is none."""
    for name, decay in emas.items():
        if not name.isidentifier() or name == "online":
            raise ValueError(f"ema.{name} is {decay}; it must have another name: a word, and not 'online'")
        if not 0 <= decay < 1:
            raise ValueError(f"ema.{name} is {decay}; it must lie in [0, 1)")


def make_sampling(config: ConfigDict, objective: Objective) -> Sampling:
    """The sampling of `sampling`, for a model of that objective. Raises ValueError."""
    sampling = read(Sampling, config.sampling, guidance_input=objective.input_guidance.active)
    if sampling.sampler == "default":
        sampling = read(sampling, {"sampler": objective.sampler})
    known = ("online", *config.ema)
    if sampling.ema not in known:
        raise ValueError(f"sampling.ema is {sampling.ema!r}; it must be one of {', '.join(known)}")
    sampling.check()
    if sampling.guidance_input and not 1 <= sampling.guidance <= objective.input_guidance.max_scale:
        raise ValueError(
            f"sampling.guidance is {sampling.guidance}; it must lie in [1, {objective.input_guidance.max_scale:g}], as "
            "an input of this network (objective.input_guidance.max_scale)"
        )
    return sampling


def make_evaluation(config: ConfigDict) -> EvaluationSettings:
    """The settings of `evaluation`. Raises ValueError."""
    settings = read(EvaluationSettings, config.evaluation)
    settings.check(tuple(config.ema), 3 if config.codecs.autoencoder else config.data.channels)
    return settings
