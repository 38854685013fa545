"""The keys of a configuration: which there are, which make a run what it is, which have no effect."""

import ast
import copy
import difflib
import json
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading

IDENTITY = (
    "seed", "data", "codecs", "model", "transport", "times", "objective", "teacher", "optimizer", "ema", "start",
)  # fmt: skip
# Where frozen parts lie, and how they compute.
PLACES = ("autoencoder", "text_encoder", "image_encoder", "dtype", "tile")
# Keys of those sections that may change all the same, since no result depends on them but by rounding, and where
# teachers lie, whose checksums are compared instead.
NOT_IDENTITY = (
    "model.attention",
    "model.remat",
    *(f"codecs.{key}" for key in PLACES),
    "teacher.checkpoint",
    "teacher.weak_checkpoint",
)


def _part(section: str, names: str) -> tuple[str, ...]:
    return tuple(f"objective.{section}.{name}" for name in names.split())


# Keys that have no effect under a condition: to change one there is a mistake.
UNUSED = {
    ("transport.sigma_d",): ("transport.name is not 'edm'", lambda c: c.transport.name != "edm"),
    ("times.P_mean", "times.P_std"): (
        "times.distribution is not logit_normal or log_normal",
        lambda c: c.times.distribution not in ("logit_normal", "log_normal"),
    ),
    ("times.intervals", "objective.consistency"): ("times.share_equal is 1", lambda c: c.times.share_equal == 1),
    ("objective.velocity",): (
        "dF/dt is not used (times.share_equal is 1 or objective.consistency not 'eulerian')",
        lambda c: (  # the rows with r = t still learn from data or teacher
            c.objective.velocity not in ("data", "teacher")
            and (c.times.share_equal == 1 or c.objective.consistency != "eulerian")
        ),
    ),
    ("objective.derivative", *_part("tangent", "normalise bounded warmup_steps max_share differentiate_steps")): (
        "no derivative is used (times.share_equal is 1 or objective.consistency 'semigroup')",
        lambda c: c.times.share_equal == 1 or c.objective.consistency == "semigroup",
    ),
    _part("bootstrap", "ema split min_interval solver_steps"): (
        "objective.consistency is not 'semigroup'",
        lambda c: c.objective.consistency != "semigroup",
    ),
    _part("contrast", "share max_time temperature weight"): (
        "objective.name is not 'low_noise_contrastive'",
        lambda c: c.objective.name != "low_noise_contrastive",
    ),
    _part("score", "weight max_jumps"): ("objective.name is not 'rcm'", lambda c: c.objective.name != "rcm"),
    ("objective.trajectory_points",): ("objective.name is not 'tbcm'", lambda c: c.objective.name != "tbcm"),
    _part("input_guidance", "power"): (
        "objective.input_guidance.max_scale is 1",
        lambda c: c.objective.input_guidance.max_scale == 1,
    ),
    ("objective.epsilon",): ("objective.derivative is not 'dde'", lambda c: c.objective.derivative != "dde"),
    ("objective.direction_weight",): ("objective.direction is 'none'", lambda c: c.objective.direction == "none"),
    ("objective.adaptive.offset", "objective.adaptive.total"): (
        "objective.adaptive.power is 0",
        lambda c: c.objective.adaptive.power == 0,
    ),
    ("objective.weight.scale", "objective.weight.difference", "objective.weight.sigma_d"): (
        "objective.weight.kernel is 'constant'",
        lambda c: c.objective.weight.kernel == "constant",
    ),
    _part("guidance", "t_low t_high start_step ema"): (
        "objective.guidance.w_cond is 0 and w_gt is 1",
        lambda c: c.objective.guidance.w_cond == 0 and c.objective.guidance.w_gt == 1,
    ),
    ("data.source", "data.path"): ("data.mixture names the sources", lambda c: c.data.mixture),
    ("data.path",): ("data.source is embedded", lambda c: c.data.source in ("digits", "photos")),
    ("evaluation.path",): (
        "evaluation.source is '' or embedded",
        lambda c: c.evaluation.source in ("", "digits", "photos"),
    ),
    ("data.batch_size",): ("data.buckets.tokens is above 0", lambda c: c.data.buckets.tokens > 0),
    ("data.buckets.area", "data.buckets.max_buckets"): ("data.buckets.table is given", lambda c: c.data.buckets.table),
    tuple(f"data.buckets.{key}" for key in ("max_buckets", "tokens", "max_cropped", "enlarge")): (
        "data.buckets.table and area are empty",
        lambda c: not c.data.buckets.table and not c.data.buckets.area,
    ),
    ("data.text_width", "data.text_tokens", "model.use_text_mask"): (
        "model.condition is not 'text'",
        lambda c: c.model.condition != "text",
    ),
    ("codecs.text_encoder", "codecs.text_states"): (
        "model.condition is not 'text'",
        lambda c: c.model.condition != "text",
    ),
    ("codecs.image_encoder",): ("data.features_width is 0", lambda c: c.data.features_width == 0),
    ("codecs.latents",): (
        "data.encode is False or codecs.autoencoder ''",
        lambda c: not (c.data.encode and c.codecs.autoencoder),
    ),
    ("codecs.tile",): ("codecs.autoencoder is ''", lambda c: not c.codecs.autoencoder),
    ("model.num_classes",): ("model.condition is not 'class'", lambda c: c.model.condition != "class"),
    ("model.projector_width",): ("data.features_width is 0", lambda c: c.data.features_width == 0),
    ("sampling.guidance_low", "sampling.guidance_high", "sampling.exclusive_ends"): (
        "sampling.guidance is 1",
        lambda c: c.sampling.guidance == 1,
    ),
    ("sampling.shift",): ("sampling.grid is not 'shifted'", lambda c: c.sampling.grid != "shifted"),
    ("teacher.guidance_low", "teacher.guidance_high", "teacher.weak_checkpoint"): (
        "teacher.guidance is 1",
        lambda c: c.teacher.guidance == 1,
    ),
    ("teacher.weak_ema",): ("teacher.weak_checkpoint is ''", lambda c: not c.teacher.weak_checkpoint),
    ("start.ema", "start.reinitialise"): ("start.checkpoint is ''", lambda c: not c.start.checkpoint),
    ("sampling.stochastic",): ("sampling.stochasticity is 0", lambda c: c.sampling.stochasticity == 0),
}


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for a key that configs/base.py does not have, with the nearest right one, or a missing one."""
    known = set(flatten(loading.load("base").get_config()))
    given = flatten(config)
    open_sections = ("ema.",)  # names of averages are free
    for key in given:
        if key not in known and not key.startswith(open_sections):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"config.{key}: no such key; did you mean config.{near}?")
    for key in sorted(known - set(given)):
        if not key.startswith(open_sections):
            raise ValueError(f"config.{key}: missing; start from configs/base.py, which holds every key")


def check_unused(config: ConfigDict, default: ConfigDict) -> None:
    """Raises ValueError for a key that differs from the default configuration but has no effect in this one."""
    for keys, (reason, unused) in UNUSED.items():
        if unused(config):
            check_left(keys, reason, config, default)


def check_left(keys: Iterable[str], reason: str, config: ConfigDict, default: ConfigDict) -> None:
    """Raises ValueError for one of these keys, which have no effect for that reason, if it is not at its default."""
    given, default = flatten(config), flatten(default)
    for key in keys:
        if given[key] != default[key]:
            raise ValueError(f"{key} is {given[key]!r}, but has no effect because {reason}: leave {default[key]!r}")


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of a nested configuration."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, ConfigDict | dict) else {name: value}
    return flat


def identity(config: ConfigDict) -> dict[str, Any]:
    """The keys that make a run what it is, flat."""
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.split(".")[0] in IDENTITY and key not in NOT_IDENTITY}


def completed(recorded: dict, defaults: dict | None = None) -> dict:
    """A recorded configuration with the defaults of keys that have come since."""
    if defaults is None:
        defaults = json.loads(loading.load("base").get_config().to_json())

    def value(key):
        if key not in recorded:
            return defaults[key]
        nested = isinstance(recorded[key], dict) and key in defaults and key != "ema"  # names of averages are free
        return completed(recorded[key], defaults[key]) if nested else recorded[key]

    return {key: value(key) for key in defaults | recorded}


def compare_identity(recorded: dict, config: ConfigDict, workdir: Any) -> None:
    """Raises ValueError, naming the first key that differs, if a workdir's recorded configuration is another run's."""
    before, now = identity(recorded), json.loads(json.dumps(identity(config)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"config.{key} is {now.get(key)!r}, but {workdir} holds a run with {before.get(key)!r}: "
                "give that value or another workdir"
            )


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """The configuration with "section.key" texts read as the type that each key has. Raises ValueError."""
    config = copy.deepcopy(config)
    known = list(flatten(config))
    for key, text in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"--config.{key}: no such key; did you mean --config.{near}?")
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        kind = section.get_type(last)  # also of keys that are None
        section[last] = _read(key, text, kind() if section[last] is None else section[last])
    return config


def _read(key: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    wrong = ValueError(f"--config.{key} is {text!r}; it must be a {type(like).__name__}, such as {like!r}")
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise wrong from None
    if isinstance(like, tuple):
        value = value if isinstance(value, tuple) else (value,)
    elif isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(like):
        raise wrong
    return value
