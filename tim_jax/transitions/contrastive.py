"""Flow matching that contrasts features where there is little noise (Local Contrastive Flow, arXiv 2509.20952).

Below a time `max_time` the velocity is an ill-conditioned target. There the features h of a row at t are drawn to those
of the same row at `max_time`, and away from those of other rows, h of unit length:

    −log softmax_j(−‖h_i(x_t) − sg h_j(x_below)‖² / temperature)[i]

A fixed share of rows is below; all others are at or above it and learn the velocity.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import query
from tim_jax.transitions.groups import split_rows
from tim_jax.transitions.jump import interpolate, prediction_target
from tim_jax.transitions.objective import Objective, row_mean
from tim_jax.transitions.times import spread
from tim_jax.transitions.weights import alignment_error


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The contrastive term, and which examples have it."""

    share: float = 0.125  # of examples with little noise
    max_time: float = 0.1  # little noise is below this share of the time domain
    temperature: float = 0.5
    weight: float = 0.1

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        for name, low, high in (("share", 0, 1), ("max_time", 0, 1), ("temperature", 0, np.inf), ("weight", 0, np.inf)):
            value = getattr(self, name)
            if not low < value < high:
                raise ValueError(f"objective.contrast.{name} is {value}; it must lie in ({low}, {high})")


@dataclasses.dataclass(frozen=True)
class LowNoiseContrastive(Objective):
    """Flow matching at times from `contrast.max_time` on, contrastive below. The network needs the head "pooled"."""

    contrast: Contrast = Contrast()  # low_noise_contrastive alone has it

    @property
    def heads(self) -> tuple[str, ...]:
        return ("pooled",)

    def check(self) -> None:
        super().check()
        self.contrast.check()
        if self.velocity == "teacher":
            raise ValueError("objective.velocity is 'teacher'; it must be 'data' for low_noise_contrastive")
        if self.times.share_equal != 1:
            raise ValueError(f"times.share_equal is {self.times.share_equal}; it must be 1 for low_noise_contrastive")

    @property
    def edge(self) -> float:
        """The time below which features are contrasted."""
        return self.transport.T_min + self.contrast.max_time * (self.transport.T_max - self.transport.T_min)

    def draw(self, key, rows, positions):
        """The law of times, squeezed into the part of the domain that a row belongs to."""
        t, _ = super().draw(key, rows, positions)
        low, high = self.transport.T_min, self.transport.T_max
        share = (t - low) / (high - low)
        below = spread(self.contrast.share, rows)
        t = jnp.where(below, low + share * (self.edge - low), self.edge + share * (high - self.edge))
        return t, t

    def loss(self, nets, rows, t, r, step, key=None):
        transport, low = self.transport, spread(self.contrast.share, len(t))
        split = split_rows(~low, self.shards)
        groups = [split.take((rows, t, jnp.asarray(low)), group) for group in split.groups]

        def ask(rows, t):
            x_t = interpolate(transport, rows.x, rows.noise, t)
            return query(transport, x_t, t, t, rows.condition, rows.keys)

        queries = [ask(rows, t) for rows, t, _ in groups]
        if split.moving:
            queries.append(ask(groups[-1][0], jnp.full_like(groups[-1][1], self.edge)))
        outputs = nets["online"](tuple(queries))
        terms = [self.regression(rows, t, output) for (rows, t, _), output in zip(groups, outputs)]
        if split.moving:
            contrast = self.contrastive(*(output.heads["pooled"] for output in outputs[-2:]), groups[-1][2])
            terms[-1] = terms[-1].at[:, 2].set(contrast)
        error, alignment, contrast = split.merge(terms).T

        denoising = self.weight(transport, t, t) * self.weigh(error, rows.x) * error
        loss = jnp.where(low, self.contrast.weight * contrast, denoising) + self.alignment_weight * alignment
        level = transport.level(t)
        metrics = dict(error=error, denoising=error, alignment=alignment, tangent=jnp.zeros_like(t), t=t, r=t)
        return loss, metrics | dict(level_t=level, level_r=level)

    def regression(self, rows, t, output):
        """(B, 3): squared and alignment errors of a group's rows, and 0."""
        target = prediction_target(self.transport, rows.x, rows.noise, t)
        error, alignment = row_mean((output.F - target) ** 2), jnp.zeros_like(t)
        if self.alignment_weight:
            alignment = alignment_error(output.hidden, rows.features, rows.features_mask)
        return jnp.stack([error, alignment, jnp.zeros_like(t)], axis=1)

    def contrastive(self, h: jax.Array, anchor: jax.Array, low: jax.Array) -> jax.Array:
        """(B,) terms of features h (B, D) against `anchor` (B, D) of the same rows; rows that are not low count not."""
        h, anchor = (x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12) for x in (h, jax.lax.stop_gradient(anchor)))
        distance = jnp.sum((h[:, None] - anchor[None]) ** 2, -1)
        logits = jnp.where(low[None, :], -distance / self.contrast.temperature, -jnp.inf)
        own = jnp.diagonal(logits)
        return jnp.where(low, jax.nn.logsumexp(logits, axis=1) - jnp.where(low, own, 0.0), 0.0)
