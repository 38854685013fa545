"""The transition objective (TiM, arXiv 2509.04394); with every row at r = t it is flow matching.

    loss = w(t, r) · a · (mean (F − F*)² + λ_dir mean(1 − cos(F, F*))) + λ_align (1 − cos(h, features))

w: `TimeWeight`, a: `AdaptiveWeight`, F*: `transition_target` with dF/dt from the current weights, without gradient.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, central_difference, jvp, query
from tim_jax.transitions.groups import Split, split_rows
from tim_jax.transitions.guidance import TargetGuidance
from tim_jax.transitions.jump import data_and_noise, interpolate, prediction_target
from tim_jax.transitions.target import transition_target
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport
from tim_jax.transitions.weights import DIRECTION_AXES, AdaptiveWeight, TimeWeight, alignment_error, direction_error
from tim_jax.types import Output, Rows

DERIVATIVES = ("jvp", "dde")


@dataclasses.dataclass(frozen=True)
class TransitionObjective:
    """objective(nets, rows, step, key) → (loss per row (B,), metrics).

    velocity: along which dx_t/dt the derivative is taken: 'data', that of the row's own (x, ε) (published), or the
    name of a network, whose prediction at r = t stands for their conditional mean. The target's mean is the same; its
    variance is lower, since a row's own velocity is noise to the network's Jacobian. It costs a forward pass of the
    moving rows. derivative: 'jvp' (exact) or 'dde' (central difference with `epsilon`). direction: a name in
    DIRECTION_AXES, with `direction_weight`. alignment_weight: 0 for none. shards: over how many devices the rows lie.
    nets holds "student", for 'dde' also "precise" (the same weights without gradient, in float32), and averages by
    the names that `velocity` and `guidance` use.
    """

    transport: Transport
    times: Times
    weight: TimeWeight = TimeWeight()
    adaptive: AdaptiveWeight = AdaptiveWeight()
    velocity: str = "data"
    derivative: str = "jvp"
    epsilon: float = 0.005
    direction: str = "channels"
    direction_weight: float = 1.0
    alignment_weight: float = 0.0
    guidance: TargetGuidance | None = None
    shards: int = 1

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        self.times.check(self.transport)
        self.weight.check(self.transport)
        if self.guidance is not None:
            self.guidance.check(self.transport)
        if self.derivative not in DERIVATIVES:
            raise ValueError(f"objective.derivative is {self.derivative!r}; it must be one of {', '.join(DERIVATIVES)}")
        if self.direction not in DIRECTION_AXES:
            axes = ", ".join(DIRECTION_AXES)
            raise ValueError(f"objective.direction is {self.direction!r}; it must be one of {axes}")
        domain = self.transport.T_max - self.transport.T_min
        if not 0 < self.epsilon < domain / 2:
            raise ValueError(f"objective.epsilon is {self.epsilon}; it must lie in (0, {domain / 2:g})")

    def __call__(
        self, nets: Mapping[str, Net], rows: Rows, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch, height, width = rows.x.shape[:3]
        t, r = self.times.draw(self.transport, key, batch, positions=height * width)
        return self.loss(nets, rows, t, r, step)

    def loss(
        self, nets: Mapping[str, Net], rows: Rows, t: jax.Array, r: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss per row and metrics at given times t, r (B,), whose rows with r = t are those of `times.assign`."""
        base = prediction_target(self.transport, rows.x, rows.noise, t)
        if self.guidance is not None:
            x_t = interpolate(self.transport, rows.x, rows.noise, t)
            base = self.guidance(nets[self.guidance.ema], self.transport, x_t, t, rows, base, step)

        split = split_rows(self.times.assign(len(t))[0], self.shards)
        groups = [split.take((rows, t, r, base), group) for group in split.groups]
        predictions = self.predict(nets, split, groups)
        terms = [self.terms(*group, *prediction) for group, prediction in zip(groups, predictions, strict=True)]
        error, direction, alignment, tangent = split.merge(terms).T

        denoising = error + self.direction_weight * direction
        loss = self.weight(self.transport, t, r) * self.adaptive(denoising) * denoising
        loss = loss + self.alignment_weight * alignment
        metrics = dict(error=error, denoising=denoising, alignment=alignment, tangent=tangent, t=t, r=r)
        return loss, metrics | dict(level_t=self.transport.level(t), level_r=self.transport.level(r))

    def predict(self, nets: Mapping[str, Net], split: Split, groups: list) -> list[tuple[Output, jax.Array | None]]:
        """Each group's output and dF/dt (None for plain rows), the network called once for all training rows."""
        queries = [
            query(self.transport, interpolate(self.transport, rows.x, rows.noise, t), t, r, rows.condition, rows.keys)
            for rows, t, r, _ in groups
        ]
        if not split.moving:
            return [(output, None) for output in nets["student"](tuple(queries))]
        rows, t, r, _ = groups[-1]
        x, noise = rows.x, rows.noise
        if self.velocity != "data":
            x_t = interpolate(self.transport, x, noise, t)
            here = query(self.transport, x_t, t, t, rows.condition, rows.keys)
            F = jax.lax.stop_gradient(nets[self.velocity]((here,))[0].F)
            x, noise = data_and_noise(self.transport, x_t, F, t)
        path = (self.transport, x, noise, t, r, rows.condition, rows.keys)
        if self.derivative == "jvp":
            outputs, output, dF_dt = jvp(nets["student"], *path, plain=tuple(queries[:-1]))
        else:
            *outputs, output = nets["student"](tuple(queries))
            dF_dt = central_difference(nets["precise"], *path, epsilon=self.epsilon)
        return [*((output, None) for output in outputs), (output, jax.lax.stop_gradient(dF_dt))]

    def terms(
        self, rows: Rows, t: jax.Array, r: jax.Array, base: jax.Array, output: Output, dF_dt: jax.Array | None
    ) -> jax.Array:
        """(B, 4): squared error, direction error, alignment error and size of dF/dt of each row of a group."""
        target, tangent = base, jnp.zeros_like(t)
        if dF_dt is not None:
            target = transition_target(self.transport, rows.x, rows.noise, t, r, dF_dt, base)
            tangent = jnp.sqrt(row_mean(dF_dt**2))
        target = jax.lax.stop_gradient(target)
        error = row_mean((output.F - target) ** 2)
        direction = alignment = jnp.zeros_like(error)
        if DIRECTION_AXES[self.direction] is not None:
            direction = direction_error(output.F, target, DIRECTION_AXES[self.direction])
        if self.alignment_weight:
            alignment = alignment_error(output.hidden, rows.features, rows.features_mask)
        return jnp.stack([error, direction, alignment, tangent], axis=1)


def row_mean(x: jax.Array) -> jax.Array:
    """(B,) means over all but the first axis."""
    return x.reshape(len(x), -1).mean(axis=1)
