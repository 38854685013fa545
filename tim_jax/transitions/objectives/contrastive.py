"""Flow matching that contrasts features where there is little noise (Local Contrastive Flow, arXiv 2509.20952).

Below a time t_c (`max_time`) the velocity is an ill-conditioned target. There the features h, of unit length, of an
example at t are drawn to those of the same example at t_c, and away from those of other examples:

    −log softmax_j(−‖h_i(x_t) − sg h_j(x_{t_c})‖² / temperature)[i]

A given share of the examples lies below t_c; all others are at or above it and learn the velocity.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions import prediction
from tim_jax.transitions.consistency import example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.groups import split_examples
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.loss import alignment_of
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.shares import left_over, one_more, spread
from tim_jax.types import Examples, Output, Query


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The contrastive term, and the examples that have it."""

    share: float = 0.125  # of examples with little noise
    max_time: float = 0.1  # little noise is below this share of the time domain
    temperature: float = 0.5
    weight: float = 0.1

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name, low, high in (("share", 0, 1), ("max_time", 0, 1), ("temperature", 0, np.inf), ("weight", 0, np.inf)):
            value = getattr(self, name)
            if not low < value < high:
                raise ValueError(f"objective.contrast.{name} is {value}; it must lie in ({low}, {high})")


@dataclasses.dataclass(frozen=True)
class LowNoiseContrastive(Objective):
    """Flow matching from the time `contrast.max_time` on, and contrastive below. The network has the head "pooled"."""

    contrast: Contrast = Contrast()  # low_noise_contrastive alone has it

    @property
    def heads(self) -> tuple[str, ...]:
        return ("pooled",)

    def check(self) -> None:
        super().check()
        self.contrast.check()
        for key, value, only in (
            ("velocity", self.velocity, "data"), ("direction", self.direction, "none"),
            ("head_weight", self.head_weight, 0.0), ("learned_weight", self.learned_weight, False),
            ("perceptual.weight", self.perceptual.weight, 0.0), ("guidance.w_gt", self.guidance.w_gt, 1.0),
            ("guidance.w_cond", self.guidance.w_cond, 0.0),
            ("input_guidance.max_scale", self.input_guidance.max_scale, 1.0),
        ):  # fmt: skip
            if value != only:
                raise ValueError(f"objective.{key} is {value!r}; it must be {only!r} for low_noise_contrastive")
        if self.times.share_equal != 1:
            raise ValueError(f"times.share_equal is {self.times.share_equal}; it must be 1 for low_noise_contrastive")

    def check_batch(self, count: int) -> None:
        if count * self.contrast.share < 2:
            raise ValueError(
                f"objective.contrast.share is {self.contrast.share}; it must give at least 2 of the {count} examples "
                "of a microbatch, which are told from one another"
            )

    @property
    def edge(self) -> float:
        """The time t_c below which features are contrasted."""
        return self.transport.T_min + self.contrast.max_time * (self.transport.T_max - self.transport.T_min)

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws t = r (count,) as ever, squeezed into the part of the time domain that an example belongs to."""
        t, _ = super().draw(key, count, positions, batch)
        low, high = self.transport.T_min, self.transport.T_max
        share = (t - low) / (high - low)
        below, sometimes = self.below(count)
        if sometimes.any():
            below = below | (sometimes & one_more(left_over(self.contrast.share, count), batch))
        t = jnp.where(below, low + share * (self.edge - low), self.edge + share * (high - self.edge))
        return t, t

    def below(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of `count` examples lie below t_c in every batch, and which one does in some, (count,) both."""
        always = spread(self.contrast.share, count)
        sometimes = np.zeros(count, bool)
        if left_over(self.contrast.share, count):
            sometimes[np.argmin(always)] = True
        return always, sometimes

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        transport, low = self.transport, t < self.edge
        if examples.weight is not None:
            low = low & (examples.weight > 0)  # padding is nobody's negative
        # Selected are examples at or above the edge; all that remain are called on a second time, at the edge.
        always, sometimes = self.below(len(t))
        split = split_examples(~(always | sometimes), self.shards)
        groups = [split.take((examples, t, low), group) for group in split.groups]

        def make_query(examples: Examples, t: jax.Array) -> Query:
            x_t = interpolate(transport, examples.x, examples.noise, t)
            return query(transport, x_t, t, t, examples.condition, examples.keys)

        queries = [make_query(examples, t) for examples, t, _ in groups]
        if split.remaining:
            queries.append(make_query(groups[-1][0], jnp.full_like(groups[-1][1], self.edge)))
        outputs = nets["online"](tuple(queries))
        terms = [self.regression(*group[:2], output) for group, output in zip(groups, outputs, strict=False)]
        if split.remaining:
            h, anchor = (output.heads["pooled"] for output in outputs[-2:])
            terms[-1] = terms[-1].at[:, 2].set(self.contrastive(h, anchor, groups[-1][2]))
        error, alignment, contrast = split.merge(terms).T

        denoising = self.weight(transport, t, t) * self.adaptive_weight(error, examples.x) * error
        loss = jnp.where(low, self.contrast.weight * contrast, denoising) + self.alignment_weight * alignment
        level = transport.level(t)
        metrics = dict(error=error, denoising=error, alignment=alignment, tangent=jnp.zeros_like(t), t=t, r=t)
        return loss, metrics | dict(level_t=level, level_r=level)

    def regression(self, examples: Examples, t: jax.Array, output: Output) -> jax.Array:
        """Returns (B, 3): the squared errors and alignment errors of a group, and 0."""
        target = prediction.target(self.transport, examples.x, examples.noise, t)
        error, alignment = example_mean((output.F - target) ** 2), jnp.zeros_like(t)
        if self.alignment_weight:
            alignment = alignment_of(output, examples)
        return jnp.stack([error, alignment, jnp.zeros_like(t)], axis=1)

    def contrastive(self, h: jax.Array, anchor: jax.Array, low: jax.Array) -> jax.Array:
        """Returns the contrastive terms (B,), 0 for examples that are not low and do not count as negatives.

        Args:
            h: Features (B, D) at t.
            anchor: Features (B, D) of the same examples at t_c.
            low: (B,) bool, whether an example lies below t_c.
        """
        h, anchor = (x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12) for x in (h, jax.lax.stop_gradient(anchor)))
        distance = jnp.sum((h[:, None] - anchor[None]) ** 2, -1)
        logits = jnp.where(low[None, :], -distance / self.contrast.temperature, -jnp.inf)
        own = jnp.diagonal(logits)
        return jnp.where(low, jax.nn.logsumexp(logits, axis=1) - jnp.where(low, own, 0.0), 0.0)
