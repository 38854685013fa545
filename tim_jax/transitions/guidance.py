"""Guidance inside training: a base target that already contains classifier-free guidance (TiM, section 4.3)."""

import dataclasses

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import expand
from tim_jax.transitions.transports import Transport
from tim_jax.types import Rows


@dataclasses.dataclass(frozen=True)
class TargetGuidance:
    """w_gt v + w_cond F(x_t, t, t | c) + (1 − w_gt − w_cond) F(x_t, t, t | ∅), for t in [t_low, t_high].

    The predictions come from the named averaged weights `ema`, from step `start_step` on. Rows trained with the null
    condition, and times outside the interval, keep the plain target v = α̂_t x + σ̂_t ε.
    """

    w_gt: float = 1.0
    w_cond: float = 0.75
    t_low: float = 0.3
    t_high: float = 0.8
    start_step: int = 0
    ema: str = "slow"

    def check(self, transport: Transport) -> None:
        """Raises ValueError for an interval outside the transport's times."""
        if not transport.T_min <= self.t_low <= self.t_high <= transport.T_max:
            raise ValueError(
                f"guidance.t_low, t_high are {self.t_low}, {self.t_high}; they must be ordered and lie in "
                f"[{transport.T_min:g}, {transport.T_max:g}] for {transport.name}"
            )

    def __call__(
        self, net: Net, transport: Transport, x_t: jax.Array, t: jax.Array, rows: Rows, base: jax.Array, step: jax.Array
    ) -> jax.Array:
        """The guided base target (B, …). net: the averaged weights' network; base: v; step: a scalar."""

        def guided():
            queries = [query(transport, x_t, t, t, rows.null_condition)]
            if self.w_cond:
                queries.append(query(transport, x_t, t, t, rows.condition))
            outputs = [output.F for output in net(tuple(queries))]
            conditional = self.w_cond * outputs[1] if self.w_cond else 0.0
            return self.w_gt * base + conditional + (1 - self.w_gt - self.w_cond) * outputs[0]

        # A condition on the step, not a new program: nothing compiles when guidance sets in.
        target = jax.lax.cond(step >= self.start_step, guided, lambda: base)
        applies = (t >= self.t_low) & (t <= self.t_high) & ~rows.is_null
        return jax.lax.stop_gradient(jnp.where(expand(applies, base), target, base))
