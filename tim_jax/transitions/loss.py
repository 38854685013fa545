"""The loss of examples from the predictions of their groups; see `Objective`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tim_jax.transitions.bootstrap import TWO_JUMPS
from tim_jax.transitions.consistency import Group, Prediction, example_mean
from tim_jax.transitions.groups import Split
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.weights import DIRECTION_AXES, alignment_error, direction_error
from tim_jax.types import Examples, Output

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective


def weighted(
    objective: "Objective",
    split: Split,
    groups: Sequence[Group],
    predictions: Sequence[Prediction],
    examples: Examples,
    t: jax.Array,
    r: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns losses (B,) and metrics (B,) of examples, of which `split` made groups with these predictions."""
    terms = [errors(objective, group, prediction) for group, prediction in zip(groups, predictions, strict=True)]
    error, direction, head, log_variance, alignment, tangent, perceptual = split.merge(terms).T

    denoising = error + objective.direction_weight * direction
    before = after = jnp.ones_like(t)
    if objective.consistency in TWO_JUMPS:
        before, after = objective.bootstrap.loss_factors(objective.transport, t, r, step)
    adaptive = objective.adaptive_weight(before * denoising, examples.x)
    adaptive = adaptive if objective.adaptive.equal else jnp.where(r == t, 1.0, adaptive)
    loss = objective.weight(objective.transport, t, r) * after * adaptive * before * denoising
    if objective.learned_weight:
        loss, c = jnp.exp(-log_variance) * loss, objective.learned_offset
        loss = (jnp.log(loss + c) if c else loss) + log_variance
    if objective.head_weight:
        loss = loss + objective.head_weight * objective.adaptive_weight(head, examples.x) * head
    loss = loss + objective.alignment_weight * alignment + objective.perceptual.weight * perceptual
    metrics = dict(error=error, denoising=denoising, alignment=alignment, tangent=tangent, t=t, r=r)
    return loss, metrics | dict(level_t=objective.transport.level(t), level_r=objective.transport.level(r))


def errors(objective: "Objective", group: Group, prediction: Prediction) -> jax.Array:
    """Returns (B, 7): errors of F, direction and head, log variance, alignment error, size of dF/dt, perceptual."""
    output, target = prediction.output, prediction.target
    if not objective.tangent.differentiate_steps:
        target = jax.lax.stop_gradient(target)
    error = example_mean((output.F - target) ** 2)
    direction = head = log_variance = alignment = perceptual = jnp.zeros_like(error)
    if axes := DIRECTION_AXES[objective.direction](output.F.ndim):
        direction = direction_error(output.F, target, axes)
        direction = jnp.where(group.r == group.t, direction, 0.0) if objective.direction_equal else direction
    if objective.head_weight:
        head = example_mean((output.heads["velocity"] - jax.lax.stop_gradient(group.base)) ** 2)
    if objective.learned_weight:
        log_variance = output.heads[objective.log_variance]
    if objective.alignment_weight:
        alignment = alignment_of(output, group.examples)
    if objective.perceptual.weight:
        x_t = interpolate(objective.transport, group.examples.x, group.examples.noise, group.t)
        perceptual = objective.perceptual(objective.transport, group.examples.x, x_t, output.F, group.t)
    return jnp.stack([error, direction, head, log_variance, alignment, prediction.tangent, perceptual], axis=1)


def alignment_of(output: Output, examples: Examples) -> jax.Array:
    """Returns the alignment errors (B,) of the hidden states, where the examples have features."""
    assert output.hidden is not None and examples.features is not None
    return alignment_error(output.hidden, examples.features, examples.features_mask)
