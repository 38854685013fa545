"""The definition of an ablation: a base configuration, and variants that change a few of its keys."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tim_jax.config import identity, keys
from tim_jax.config.command_line import read_file
from tim_jax.config.objective import resolved
from tim_jax.config.overrides import override
from tim_jax.config.sampling import check_weights
from tim_jax.training import power_ema

RULES = ("time", "steps", "flops")
RATE = "optimizer.learning_rate"
MAX_SEEDS = 1000
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Sections that define a variant, besides the identity of its run. Batch sizes of samples change no number.
DEFINING = (*identity.IDENTITY, "sampling", "evaluation")
NOT_DEFINING = ({*identity.CHANGEABLE} - {"optimizer.decay_steps"}) | {"evaluation.batch_size", "sampling.batch_size"}
# Keys that count steps and are stretched with them, so that a schedule keeps its shape.
IN_STEPS = (
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "objective.guidance.start_step",
    "objective.tangent.warmup_steps",
    "objective.tangent.differentiate_steps",
    "objective.bootstrap.alpha.start_step",
    "objective.bootstrap.alpha.end_step",
    "posthoc_ema.every",
)


class Member(NamedTuple):
    """One run of an ablation: a variant or a baseline, with a seed. Its name is that of its folder."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}/seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """An ablation, which a file in configs/ablations/ returns from `get_ablation()`.

    Attributes:
        base: a configuration. Its `training.steps` are those of the first variant, the reference, and its
            `evaluation.num_samples` are drawn for every number of steps in `sampler_steps`.
        variants: {name: {"section.key": value}}.
        equal: what all variants get the same amount of: "time" (on the device, by calibration), "flops" or "steps".
        seeds: runs of each variant. Run n trains with seed base.seed + n and is measured on noise of seed n.
        sampler_steps: step counts at which samples are measured.
        learning_rates: of which each variant takes the one that is best for it, see `rates`; none: rates are those of
            the configurations.
        emas: weights of every run, besides those of its `sampling.ema`, that are measured as well: "online", an EMA, or
            one of another length, such as "sigma_rel:0.13". Nothing is trained for them.
        baselines: {name: a workdir, or one of its checkpoints}: models that are not trained here, such as the variants'
            teacher, but measured as the variants are.
        beside: the name that `baselines` had in version 0.1.0; refused.
    """

    base: ConfigDict
    variants: Mapping[str, Mapping[str, Any]]
    equal: str = "time"
    seeds: int = 3
    sampler_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    learning_rates: tuple[float, ...] = ()
    emas: tuple[str, ...] = ()
    baselines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: dataclasses.InitVar[Any] = None

    def __post_init__(self, beside: Any):
        if beside is not None:
            raise ValueError("beside is now called baselines; give Ablation(…, baselines=…)")

    @property
    def reference(self) -> str:
        """The name of the first variant, to whose cost the others are matched."""
        return next(iter(self.variants))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of variants, then of baselines."""
        return (*self.variants, *self.baselines)

    def check(self) -> None:
        """Checks all fields. Raises ValueError, naming the field or the variant and its key."""
        if not isinstance(self.base, ConfigDict):
            raise ValueError(f"base is {type(self.base).__name__}; it must be a configuration, such as digits.py gives")
        if not self.variants:
            raise ValueError("variants: there are none; name one or more")
        if self.equal not in RULES:
            raise ValueError(f"equal is {self.equal!r}; it must be one of {', '.join(RULES)}")
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise ValueError(f"seeds is {self.seeds}; it must be 1 to {MAX_SEEDS}")
        if not self.sampler_steps or min(self.sampler_steps) < 1:
            raise ValueError(f"sampler_steps is {self.sampler_steps}; it must be numbers of at least 1")
        rates = self.learning_rates
        if rates and (min(rates) <= 0 or len(set(rates)) < len(rates) or len(rates) < 2):
            raise ValueError(f"learning_rates is {rates}; it must be two or more different numbers above 0")
        for kind, names in (("variant", self.variants), ("baseline", self.baselines)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind} {name!r}: the name must be of small letters, digits and _, such as tim_2")
        for name, path in self.baselines.items():
            if name in self.variants:
                raise ValueError(f"baseline {name!r}: a variant has that name; give another")
            if not isinstance(path, str) or not path:
                raise ValueError(f"baseline {name!r} is {path!r}; it must be a workdir, or one of its checkpoints/STEP")
        for name, changes in self.variants.items():
            if "seed" in changes:
                raise ValueError(f"variant {name!r}: changes seed; all variants are run with the same seeds")
            if "training.steps" in changes and self.equal != "steps":
                raise ValueError(f"variant {name!r}: changes training.steps; equal is {self.equal!r}, which sets them")
            if rates and RATE in changes:
                raise ValueError(f"variant {name!r}: changes {RATE}; learning_rates sets it")
            if self.config(name).model.condition != "class":
                raise ValueError(f"variant {name!r}: model.condition is 'text'; it must be 'class' to be measured")
            for ema in self.emas:
                check_weights("emas", ema, self.config(name))

    def emas_of(self, name: str) -> tuple[str, ...]:
        """The weights of a variant's runs that are measured, those that samples are drawn with first."""
        own = power_ema.canonical(self.config(name).sampling.ema)
        return tuple(dict.fromkeys((own, *map(power_ema.canonical, self.emas))))

    def config(self, name: str, seed: int = 0, steps: int | None = None) -> ConfigDict:
        """Returns the configuration of a variant.

        Args:
            name: of the variant.
            seed: number of the run, which is added to the base's seed.
            steps: to train, to which schedules are stretched; by default those of the configuration.

        Raises:
            ValueError: for a key that does not exist, or a value of the wrong type.
        """
        texts = {key: value if isinstance(value, str) else repr(value) for key, value in self.variants[name].items()}
        try:
            config = override(self.base, texts)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {str(error).replace('--config.', 'config.')}") from None
        config.seed += seed
        if steps is not None and steps != config.training.steps:
            stretch_steps(config, steps)
        return config

    def members(self) -> list[Member]:
        """Returns all runs: those of one seed before the next, so that they can be compared early; baselines last."""
        return [Member(name, seed) for seed in range(self.seeds) for name in self.names]

    def definition(self, name: str) -> dict[str, Any]:
        """Returns {key: value} of all that a variant's figures depend on, as JSON gives it back."""
        flat = keys.flatten(resolved(self.config(name)))
        defining = {key: flat[key] for key in flat if key.split(".")[0] in DEFINING and key not in NOT_DEFINING}
        if self.learning_rates:  # which a step's cost does not depend on
            del defining[RATE]
        defining |= {"training.steps": flat["training.steps"], "sampler_steps": self.sampler_steps}
        return json.loads(json.dumps(defining))


def stretch_steps(config: ConfigDict, steps: int) -> None:
    """Sets `training.steps` of a configuration, and scales every key in IN_STEPS with them."""
    factor, values = steps / config.training.steps, keys.flatten(resolved(config))
    for key in IN_STEPS:
        if not values[key] or key == "posthoc_ema.every" and not config.posthoc_ema.sigma_rel:
            continue
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = max(1, round(values[key] * factor))
    if config.optimizer.decay_steps:  # rounding must not make them equal
        config.optimizer.decay_steps = max(config.optimizer.decay_steps, config.optimizer.warmup_steps + 1)
    config.training.steps = steps


def load(name: str, overrides: dict[str, str], **fields: Any) -> Ablation:
    """Loads an ablation file and changes what the command line gives.

    Args:
        name: of the file.
        overrides: {"section.key": text} for the base configuration.
        **fields: of the Ablation; those that are None change nothing.

    Raises:
        ValueError: with one line.
    """
    ablation = read_file(name, "get_ablation")
    if not isinstance(ablation, Ablation):
        raise ValueError(f"--config={name}: get_ablation() gives a {type(ablation).__name__}; it must be an Ablation")
    given = {key: value for key, value in fields.items() if value is not None}
    ablation = dataclasses.replace(ablation, base=override(ablation.base, overrides), **given)
    try:
        ablation.check()
    except ValueError as error:
        field, _, rest = str(error).partition(" is ")
        said = f"--{field.replace('_', '-')} is {rest}" if field in given else error
        raise ValueError(said) from None
    return ablation
