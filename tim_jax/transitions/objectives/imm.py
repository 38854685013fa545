"""Inductive moment matching (IMM, arXiv 2503.07565): jumps to r from t and from s ≤ t end in the same distribution.

The examples of a batch form groups of `moments.particles`, which share the times t ≥ s ≥ r. With the states x_t and x_s
of each, of the same data and noise, f_i = f_{t→r}(x_t) and g_i = sg f_{s→r}(x_s), a group of M has the loss

    w(t) · 1/M² Σ_ij [k(f_i, f_j) + k(g_i, g_j) − 2 k(f_i, g_j)],   k(x, y) = exp(−max(‖x − y‖, 1e-4)/(D |B_{t,r}|))

for examples of D numbers: the maximum mean discrepancy by a Laplace kernel, whose width B_{t,r} is the factor of F in
the jump. An example's own loss is its part, M times the sum over j. The middle lies a step of η = σ/α below t,

    s = max(η⁻¹(η_t − (η_max − η_min)/2^k), r),   w(t) = ½ sigmoid(b − λ) (−dλ/dt) α_t^a/(α_t² + σ_t²),   λ = ln α²/σ²

so that what jumps from s have learned is handed on to t. The paper calls our s its r, and our r its s.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.groups import for_each, in_groups
from tim_jax.transitions.jump import coefficient_B, interpolate, jump
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.kinds import TARGET_KEYS
from tim_jax.types import Examples

UNUSED = {TARGET_KEYS: ("objective.name is 'imm', which has no target F*", lambda c: c.objective.name == "imm")}


@dataclasses.dataclass(frozen=True)
class Moments:
    """Groups, middles and weights of moment matching. Times beyond `min_time` and `max_time` are taken as these."""

    particles: int = 4  # M examples of a group, with the same times
    halvings: int = 12  # k: from t to the middle it is 1/2^k of the range of σ/α
    alpha_power: int = 2  # a of the weight; 1 or 2 in the paper
    log_ratio: float = 4.0  # b of the weight
    min_time: float = 1e-4  # the smallest t and s, as shares of the time domain
    max_time: float = 0.994  # the largest t

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name, lowest in (("particles", 1), ("halvings", 0), ("alpha_power", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"objective.moments.{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.min_time < self.max_time < 1:
            raise ValueError(
                f"objective.moments.min_time, objective.moments.max_time are {self.min_time}, {self.max_time}; they "
                "must rise within (0, 1)"
            )


@dataclasses.dataclass(frozen=True)
class MomentMatching(Objective):
    """The loss above; padding belongs to no group. Batches are multiples of `moments.particles`."""

    moments: Moments = Moments()  # imm alone has it

    @property
    def batch_multiple(self) -> int:
        return self.moments.particles

    def check(self) -> None:
        super().check()
        self.moments.check()
        if self.velocity != "data":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'data' for imm")
        if self.times.share_equal:
            raise ValueError(
                f"times.share_equal is {self.times.share_equal}; it must be 0 for imm, whose kernel has no width there"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest t and s, and the largest t."""
        low, domain = self.transport.T_min, self.transport.T_max - self.transport.T_min
        return low + self.moments.min_time * domain, low + self.moments.max_time * domain

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (t, r), each (count,), the same for all examples of a group."""
        size = self.moments.particles
        t, r = self.times.draw(self.transport, key, count // size, positions, batch)
        t = jnp.clip(t, *self.ends)
        pairs: tuple[jax.Array, jax.Array] = for_each((t, jnp.minimum(r, t)), size)
        return pairs

    def middle(self, t: jax.Array, r: jax.Array) -> jax.Array:
        """Returns the times s, elementwise, r ≤ s ≤ t."""
        ratio, (low, high) = self.transport.ratio, self.ends
        least, most = ratio(jnp.full_like(t, low)), ratio(jnp.full_like(t, high))
        eta = jnp.clip(ratio(t) - (most - least) / 2**self.moments.halvings, least, most)
        s = jnp.maximum(self.transport.time_of_ratio(eta), low)
        return jnp.clip(s, r, jnp.maximum(t, r))

    def time_weight(self, t: jax.Array) -> jax.Array:
        """Returns the weights w(t), elementwise."""
        transport, moments = self.transport, self.moments
        rate: jax.Array
        log_ratio, rate = jax.jvp(lambda t: -2 * jnp.log(transport.ratio(t)), (t,), (jnp.ones_like(t),))
        alpha, sigma = transport.alpha(t), transport.sigma(t)
        power = alpha**moments.alpha_power / (alpha**2 + sigma**2)
        return 0.5 * jax.nn.sigmoid(moments.log_ratio - log_ratio) * -rate * power

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        transport = self.transport

        def ends(t: jax.Array) -> jax.Array:
            x_t = interpolate(transport, examples.x, examples.noise, t)
            (output,) = nets["online"]((query(transport, x_t, t, r, examples.condition, examples.keys),))
            return jump(transport, x_t, output.F, t, r)

        f, g = ends(t), jax.lax.stop_gradient(ends(self.middle(t, r)))
        width = jnp.maximum(jnp.abs(coefficient_B(transport, t, r)), 1e-6)  # at r = t there is none
        present = jnp.ones_like(t) if examples.weight is None else (examples.weight > 0).astype(t.dtype)
        groups = in_groups((f.reshape(len(t), -1), g.reshape(len(t), -1), width, present), self.moments.particles)
        error = jax.vmap(discrepancy)(*groups).reshape(-1)
        metrics = dict(error=error, denoising=error, tangent=jnp.zeros_like(t), alignment=jnp.zeros_like(t), t=t, r=r)
        metrics |= dict(level_t=transport.level(t), level_r=transport.level(r))
        return self.time_weight(t) * error, metrics


def discrepancy(f: jax.Array, g: jax.Array, width: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the parts (M,) of the examples of a group in the square of its maximum mean discrepancy, their mean.

    Args:
        f, g: The two samples (M, D).
        width: The width of the kernel (M,).
        present: (M,), 0 for examples that are not there.
    """

    def kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        square = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
        return jnp.exp(-jnp.sqrt(jnp.maximum(square, 1e-8)) / (x.shape[-1] * width[:, None]))

    pairs = kernel(f, f) + kernel(g, g) - 2 * kernel(f, g)
    return present * (pairs @ present) / jnp.maximum(present.sum(), 1)
