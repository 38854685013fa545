"""What an ablation is: a base configuration and variants that change a few of its keys."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tim_jax.config import keys
from tim_jax.config.command_line import read_file
from tim_jax.config.objective import resolved
from tim_jax.config.overrides import override

RULES = ("time", "steps", "flops")
NAME = re.compile(r"[a-z][a-z0-9_]*")
# What a variant is, beside the identity of its run. Batches of samples and the rest change no number.
DEFINING = (*keys.IDENTITY, "sampling", "evaluation")
NOT_DEFINING = (*keys.NOT_IDENTITY, "evaluation.batch_size", "sampling.batch_size")
# Keys that count steps and are stretched with them, so that a schedule keeps its shape.
IN_STEPS = (
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "objective.guidance.start_step",
    "objective.tangent.warmup_steps",
    "objective.tangent.differentiate_steps",
)


class Member(NamedTuple):
    """One run of an ablation. Its folder in the ablation's has its name."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}/seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What a file in configs/ablations/ returns from `get_ablation()`.

    base: a configuration; its `training.steps` are those of the first variant, the reference, and its
    `evaluation.num_samples` are drawn for every number of steps in `sampler_steps`. variants: name → {"section.key":
    value}. equal: what all variants get the same of: "time" (on the device, by calibration), "flops" or "steps". seeds:
    runs of each variant; run n trains with seed base.seed + n and is measured on noise of seed n. beside: name → a
    workdir, or one of its checkpoints; not trained here, but measured like the variants, such as their teacher.
    """

    base: ConfigDict
    variants: Mapping[str, Mapping[str, Any]]
    equal: str = "time"
    seeds: int = 3
    sampler_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def reference(self) -> str:
        return next(iter(self.variants))

    def check(self) -> None:
        """Raises ValueError, naming the field or the variant and its key."""
        if not isinstance(self.base, ConfigDict):
            raise ValueError(f"base is {type(self.base).__name__}; it must be a configuration, such as digits.py gives")
        if not self.variants:
            raise ValueError("variants: there are none; name one or more")
        if self.equal not in RULES:
            raise ValueError(f"equal is {self.equal!r}; it must be one of {', '.join(RULES)}")
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        if not self.sampler_steps or min(self.sampler_steps) < 1:
            raise ValueError(f"sampler_steps is {self.sampler_steps}; it must be numbers of at least 1")
        for kind, names in (("variant", self.variants), ("beside", self.beside)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind} {name!r}: the name must be of small letters, digits and _, such as tim_2")
        for name, path in self.beside.items():
            if name in self.variants:
                raise ValueError(f"beside {name!r}: a variant has that name; give another")
            if not isinstance(path, str) or not path:
                raise ValueError(f"beside {name!r} is {path!r}; it must be a workdir, or one of its checkpoints/STEP")
        for name, changes in self.variants.items():
            if "seed" in changes:
                raise ValueError(f"variant {name!r}: changes seed, which runs of all variants go through alike")
            if "training.steps" in changes and self.equal != "steps":
                raise ValueError(f"variant {name!r}: changes training.steps, which equal {self.equal!r} sets")
            if self.config(name).model.condition != "class":
                raise ValueError(f"variant {name!r}: model.condition is 'text'; it must be 'class' to be measured")

    def config(self, name: str, seed: int = 0, steps: int | None = None) -> ConfigDict:
        """The configuration of a variant. steps: to train, which its schedules are stretched to; None: as it says.

        Raises ValueError for a key that is not there, or a value of the wrong type.
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
        """The runs, all of one seed before the next, so that what is done can be compared; those beside come last."""
        return [Member(name, seed) for seed in range(self.seeds) for name in (*self.variants, *self.beside)]

    def definition(self, name: str) -> dict[str, Any]:
        """What a variant's figures depend on, flat, as JSON gives it back."""
        flat = keys.flatten(resolved(self.config(name)))
        kept = {key: flat[key] for key in flat if key.split(".")[0] in DEFINING and key not in NOT_DEFINING}
        kept |= {"training.steps": flat["training.steps"], "sampler_steps": self.sampler_steps}
        return json.loads(json.dumps(kept))


def stretch_steps(config: ConfigDict, steps: int) -> None:
    """Sets `training.steps`, and with them every key that counts steps."""
    factor, values = steps / config.training.steps, keys.flatten(resolved(config))
    for key in IN_STEPS:
        if not values[key]:
            continue
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = max(1, round(values[key] * factor))
    if config.optimizer.decay_steps:  # rounding must not let them meet
        config.optimizer.decay_steps = max(config.optimizer.decay_steps, config.optimizer.warmup_steps + 1)
    config.training.steps = steps


def load(name: str, overrides: dict[str, str], **fields: Any) -> Ablation:
    """An ablation file's Ablation, with changes of keys of its base and of its own fields, those that are not None.

    Raises ValueError with one line.
    """
    ablation = read_file(name, "get_ablation")
    if not isinstance(ablation, Ablation):
        raise ValueError(f"--config={name}: get_ablation() gives a {type(ablation).__name__}; it must be an Ablation")
    given = {key: value for key, value in fields.items() if value is not None}
    ablation = dataclasses.replace(ablation, base=override(ablation.base, overrides), **given)
    ablation.check()
    return ablation
