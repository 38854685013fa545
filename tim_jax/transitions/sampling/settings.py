"""The settings of a sampling run, made from the section `sampling` of a configuration."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tim_jax.transitions.sampling.diffusion import DIFFUSIONS, LAST_STEPS
from tim_jax.transitions.sampling.exponential import NOISE_SCALES
from tim_jax.transitions.sampling.flowturbo import check_pattern
from tim_jax.transitions.sampling.grids import GRIDS
from tim_jax.transitions.sampling.jumps import STOCHASTIC
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.sampling.steering import Steering
from tim_jax.transitions.sampling.unipc import VARIANTS


def _keys(sampler: str) -> tuple[str, ...]:
    """The settings that a sampler takes, none for the name "default"."""
    return SAMPLERS[sampler].keys if sampler in SAMPLERS else ()


# Keys that say how guidance and fresh noise act, `exclusive_ends`, `guidance_channels` and `stochastic`, may be set
# where there is neither: configurations of published weights have them for whatever scales are asked for.
UNUSED = {
    ("sampling.guidance_low", "sampling.guidance_high"): (
        "sampling.guidance is 1",
        lambda c: c.sampling.guidance == 1,
    ),
    ("sampling.exclusive_ends", "sampling.guidance_channels"): (
        "guidance is an input of the network (objective.input_guidance)",
        lambda c: c.objective.input_guidance.max_scale != 1,
    ),
    ("sampling.shift",): ("sampling.grid is not 'shifted'", lambda c: c.sampling.grid != "shifted"),
    ("sampling.tolerance",): ("sampling.parallel is 0", lambda c: c.sampling.parallel == 0),
    ("sampling.noise_scale",): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "noise_scale" in SAMPLERS[name].keys),
        lambda c: "noise_scale" not in _keys(c.sampling.sampler),
    ),
    ("sampling.unipc_variant",): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "unipc_variant" in SAMPLERS[name].keys),
        lambda c: "unipc_variant" not in _keys(c.sampling.sampler),
    ),
    ("sampling.pattern",): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "pattern" in SAMPLERS[name].keys),
        lambda c: "pattern" not in _keys(c.sampling.sampler),
    ),
    ("sampling.refiner",): (
        "no step of sampling.sampler is R of sampling.pattern",
        lambda c: "pattern" not in _keys(c.sampling.sampler) or "R" not in c.sampling.pattern,
    ),
    ("sampling.draw_steps",): (
        "objective.name is not 'difference_transition_matching'",
        lambda c: c.objective.name != "difference_transition_matching",
    ),
    ("sampling.diffusion", "sampling.diffusion_scale", "sampling.last_step"): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "diffusion" in SAMPLERS[name].keys),
        lambda c: "diffusion" not in _keys(c.sampling.sampler),
    ),
}


class LearnedPlans(NamedTuple):
    """Plans that were learned for a model (see `learned.py`).

    Attributes:
        plans: By number of steps, in times of the transport.
        settings: What `Sampling.depended_on` was for the sampling that they were learned from.
    """

    plans: Mapping[int, SamplingPlan]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of a sampling run.

    Guidance is F_∅ + s (F_c − F_∅) with the scale s, in an interval of times. `stochastic` is how the flow map takes
    fresh noise after each jump but the first and the last: 'renoise' jumps further down and returns by the forward
    process, which keeps the marginals exactly for an exact flow map; 'euler' is the published first-order form.

    Four attributes are no keys of a configuration: `optimal_times`, the times of the grid 'optimal' by number of steps,
    `learned`, the plans of the plan 'learned', `guidance_input`, whether the network itself takes scale and interval,
    and needs no second evaluation, and `transition_head`, whether its predictions are draws.
    """

    ema: str = "slow"  # the weights: the name of an EMA, or "online" for the raw ones
    sampler: str = "flow_map"  # "default": the objective's, or a name in tim_jax.transitions.SAMPLERS
    grid: str = "uniform"  # a name in tim_jax.transitions.GRIDS, or "optimal" (python -m tim_jax.grid)
    plan: str = "sampler"  # the sampler's own, or "learned" (python -m tim_jax.grid --kind=learned)
    shift: float = 3.0  # of the grid "shifted"; above 1: more steps near noise
    batch_size: int = 64  # images at once, at most
    guidance: float = 1.0  # scale; 1: none
    guidance_low: float = 0.0  # interval of guidance, as fractions of T_max
    guidance_high: float = 1.0
    # of F that guidance acts on, the first so many; 0: all. 3 of 4: as published for DiT and SiT
    guidance_channels: int = 0
    exclusive_ends: bool = False  # leave the interval's ends out, T_max and so the first step among them: as published
    stochasticity: float = 0.0  # of the flow map; 0: none
    stochastic: str = "renoise"  # renoise, or euler: as published
    noise_scale: str = "ode"  # of dpm_solver_…m: a name in NOISE_SCALES; all but ode take fresh noise
    pattern: str = "P"  # of flowturbo: H (Heun), P (pseudo-corrector), R (refiner) and numbers, such as H1P5R
    refiner: str = ""  # of R in the pattern: a workdir of the objective velocity_refiner, or one of its checkpoints
    unipc_variant: str = "bh2"  # of unipc_2 and unipc_3: bh2, or bh1
    diffusion: str = "sbdm"  # of the samplers sde and sde_heun: a name in DIFFUSIONS, times the scale below
    diffusion_scale: float = 1.0
    last_step: str = "mean"  # of sde and sde_heun, without noise: mean, euler or tweedie
    parallel: int = 0  # evaluations that take place at once, in sweeps until they agree; 0: one after another
    tolerance: float = 1e-3  # of parallel: by which a state may still change, relative to the first ones
    draw_steps: int = 16  # of Euler's method in which the head of difference_transition_matching draws a prediction
    int8: bool = False  # products of the blocks' weights in int8, scaled by row and by output channel
    # What samples are led to by a loss on their estimate, and how.
    steering: Steering = Steering()
    optimal_times: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    learned: LearnedPlans | None = None
    guidance_input: bool = False
    transition_head: bool = False

    @property
    def refines(self) -> bool:
        """Whether a refiner takes part."""
        return "pattern" in _keys(self.sampler) and "R" in self.pattern

    @property
    def linear(self) -> bool:
        """Whether states follow from predictions by weights that are the same for all images."""
        return not (SAMPLERS[self.sampler].per_image or self.refines)

    def depended_on(self) -> dict[str, Any]:
        """Returns the settings that a plan learned from this sampling depends on, by their names."""
        names = ["ema", "sampler", *SAMPLERS[self.sampler].keys, "grid", "guidance"]
        names += ["shift"] if self.grid == "shifted" else []
        if self.guidance != 1:
            names += ["guidance_low", "guidance_high", "guidance_channels", "exclusive_ends"]
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        names: dict[str, Collection[str]] = {
            "sampler": SAMPLERS,
            "grid": [*GRIDS, "optimal"],
            "plan": ["sampler", "learned"],
            "stochastic": STOCHASTIC,
            "noise_scale": NOISE_SCALES,
            "unipc_variant": VARIANTS,
            "diffusion": DIFFUSIONS,
            "last_step": LAST_STEPS,
        }
        for key, table in names.items():
            if getattr(self, key) not in table:
                raise ValueError(f"sampling.{key} is {getattr(self, key)!r}; it must be one of {', '.join(table)}")
        if self.batch_size < 1:
            raise ValueError(f"sampling.batch_size is {self.batch_size}; it must be at least 1")
        if self.shift <= 0:
            raise ValueError(f"sampling.shift is {self.shift}; it must be above 0")
        if self.stochasticity < 0:
            raise ValueError(f"sampling.stochasticity is {self.stochasticity}; it must be at least 0")
        if self.parallel < 0:
            raise ValueError(f"sampling.parallel is {self.parallel}; it must be at least 0")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"sampling.tolerance is {self.tolerance}; it must lie in [0, 1)")
        if self.diffusion_scale < 0:
            raise ValueError(f"sampling.diffusion_scale is {self.diffusion_scale}; it must be at least 0")
        if self.stochasticity and self.sampler != "flow_map":
            raise ValueError(
                f"sampling.stochasticity is {self.stochasticity}; it must be 0 with sampling.sampler {self.sampler!r}"
            )
        if "pattern" in _keys(self.sampler):
            check_pattern(self.pattern)
        if self.refines and not self.refiner:
            raise ValueError(
                f"sampling.refiner is {self.refiner!r}; it must be a workdir of the objective velocity_refiner, since "
                f"sampling.pattern is {self.pattern!r}"
            )
        if self.plan == "learned" and not self.linear:
            raise ValueError(
                f"sampling.sampler is {self.sampler!r}; it must be one with the same weights for all images, and no "
                "refiner, with sampling.plan 'learned'"
            )
        if self.parallel and not self.linear:
            raise ValueError(
                f"sampling.parallel is {self.parallel}; it must be 0 with sampling.sampler {self.sampler!r}, whose "
                "steps depend on the image"
            )
        if self.plan == "learned" and self.stochasticity:
            raise ValueError(
                f"sampling.stochasticity is {self.stochasticity}; it must be 0 with sampling.plan 'learned', which has "
                "no fresh noise"
            )
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ValueError(
                f"sampling.guidance_low, sampling.guidance_high are {self.guidance_low}, {self.guidance_high}; "
                "they must be ordered and lie in [0, 1]"
            )
        if self.guidance_channels < 0:
            raise ValueError(f"sampling.guidance_channels is {self.guidance_channels}; it must be at least 0")
        if self.draw_steps < 1:
            raise ValueError(f"sampling.draw_steps is {self.draw_steps}; it must be at least 1")
        if self.transition_head:
            for name, only in (("sampler", "euler"), ("guidance", 1.0), ("parallel", 0), ("plan", "sampler")):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"sampling.{name} is {getattr(self, name)!r}; it must be {only!r} for a network that draws its "
                        "predictions"
                    )
        self.steering.check()
        if self.steering.active:
            self.check_steered()
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance is {self.guidance}; it must be at least 0")

    def check_steered(self) -> None:
        """Raises ValueError, naming key and value, for settings whose states cannot be moved on the way."""
        why = f"where sampling.steering.operator is {self.steering.operator!r}"
        if not SAMPLERS[self.sampler].steerable:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.steerable)
            raise ValueError(f"sampling.sampler is {self.sampler!r}; it must be one of {able} {why}")
        for name, only in (("parallel", 0), ("plan", "sampler")):
            if getattr(self, name) != only:
                raise ValueError(f"sampling.{name} is {getattr(self, name)!r}; it must be {only!r} {why}")
        if self.transition_head:
            raise ValueError(
                f"sampling.steering.operator is {self.steering.operator!r}; it must be '' for a network that draws its "
                "predictions"
            )
        if self.int8 and self.steering.through_network:
            raise ValueError("sampling.int8 is True; it must be False with sampling.steering.method 'dps', which "
                             "differentiates the network")  # fmt: skip
