"""What a sampling program is compiled for, and told from others by."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from tim_jax.config.run import Run
from tim_jax.runs.steering import Aim, Recipe
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.plans import SamplingPlan


class Way(NamedTuple):
    """What a program is compiled for, besides the shapes of its arguments.

    Attributes:
        size: (h, w) of the examples.
        guided: whether guidance acts anywhere.
        guidance_channels: on which it acts, the first so many; 0: all.
        trajectory, pair: those of `Generator.batches`.
        parallel, tolerance, int8: those of the settings.
        refine: parameters → the refiner, or None where there is none.
        draw_steps: of a prediction; 0 where predictions are not drawn.
        steer: how samples are steered; None where they are not.
    """

    size: tuple[int, int]
    guided: bool
    guidance_channels: int
    trajectory: bool
    pair: bool
    parallel: int
    tolerance: float
    int8: bool
    refine: Callable[[Any], Net] | None
    draw_steps: int
    steer: Recipe | None


def way_of(
    run: Run,
    plan: SamplingPlan,
    size: tuple[int, int],
    trajectory: bool = False,
    pair: bool = False,
    aim: Aim | None = None,
) -> Way:
    """The way that a run's `sampling` goes along a plan."""
    sampling, guided = run.sampling, bool(plan.guided.any())
    refine = run.refiner.net if run.refiner and sampling.refines else None
    draws = sampling.draw_steps if sampling.transition_head else 0
    steer = aim.recipe if aim and plan.steer else None
    own = (sampling.parallel, sampling.tolerance, sampling.int8)
    return Way(size, guided, sampling.guidance_channels, trajectory, pair, *own, refine, draws, steer)


def program(plan: SamplingPlan, way: Way, start: str = "noise") -> tuple:
    """What tells compiled programs of a generator from one another."""
    return way, plan.a.shape, jax.tree.structure(plan), start
