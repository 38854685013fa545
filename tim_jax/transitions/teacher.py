"""A frozen teacher: its prediction, guided where it is to be, and states on the way that it leads.

    F_T = F_away + s (F_c − F_away)

F_away is the null condition's, or a weaker model's (autoguidance, arXiv 2406.02507).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import expand, jump
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples

UNUSED = {
    ("teacher.guidance_low", "teacher.guidance_high", "teacher.weak_checkpoint"): (
        "teacher.guidance is 1",
        lambda c: c.teacher.guidance == 1,
    ),
    ("teacher.weak_ema",): ("teacher.weak_checkpoint is ''", lambda c: not c.teacher.weak_checkpoint),
}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher: which checkpoint, and how nets["teacher"] is evaluated.

    Its guidance is away from nets["weaker"], where a weaker checkpoint is named, else from the null condition.
    """

    checkpoint: str = ""  # a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000; "": none
    ema: str = "slow"  # of its weights: the name of an EMA, or "online"
    dtype: str = "float32"  # of its weights and computation, "float32" or "bfloat16"
    guidance: float = 1.0  # scale of its velocity's guidance; 1: none
    guidance_low: float = 0.0  # interval of guidance, as fractions of T_max
    guidance_high: float = 1.0
    weak_checkpoint: str = ""  # guidance away from this weaker model, not from the null condition
    weak_ema: str = "slow"

    @property
    def weaker(self) -> bool:
        """Whether guidance is away from a weaker model."""
        return bool(self.weak_checkpoint)

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.guidance < 0:
            raise ValueError(f"teacher.guidance is {self.guidance}; it must be at least 0")
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ValueError(
                f"teacher.guidance_low, teacher.guidance_high are {self.guidance_low}, {self.guidance_high}; "
                "they must be ordered and lie in [0, 1]"
            )
        if self.weaker and self.guidance == 1:
            raise ValueError(
                f"teacher.guidance is {self.guidance}; it must not be 1 where teacher.weak_checkpoint is given"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that are asked."""
        return ("teacher", "weaker") if self.weaker else ("teacher",)

    def __call__(
        self, nets: Mapping[str, Net], transport: Transport, x_t: jax.Array, t: jax.Array, rows: Examples
    ) -> jax.Array:
        """F_T(x_t, t, t) (B, …) of x_t (B, …) at t (B,) under the rows' conditions, without gradient."""
        here = query(transport, x_t, t, t, rows.condition)
        if self.guidance == 1:
            (output,) = nets["teacher"]((here,))
            return jax.lax.stop_gradient(output.F)
        if self.weaker:
            (conditional,), (away,) = nets["teacher"]((here,)), nets["weaker"]((here,))
        else:
            conditional, away = nets["teacher"]((here, here._replace(condition=rows.null_condition)))
        hair = 1e-6 * transport.T_max
        applies = (t >= self.guidance_low * transport.T_max - hair) & (t <= self.guidance_high * transport.T_max + hair)
        scale = expand(jnp.where(applies, self.guidance, 1.0), x_t)
        return jax.lax.stop_gradient(away.F + scale * (conditional.F - away.F))

    def solve(
        self,
        nets: Mapping[str, Net],
        transport: Transport,
        x_t: jax.Array,
        t: jax.Array,
        s: jax.Array,
        rows: Examples,
        steps: int,
    ) -> jax.Array:
        """x_s (B, …) from x_t by Heun's method (see `plans.heun`), in `steps` ≥ 1 steps of equal noise level.

        t, s: (B,), T_min ≤ s ≤ t ≤ T_max.
        """
        level_t, level_s = transport.level(t), transport.level(s)

        def time(k):
            inside = jnp.clip(transport.time_of_level(level_t + k / steps * (level_s - level_t)), s, t)
            return jnp.where(k == 0, t, jnp.where(k == steps, s, inside))

        def step(x, k):
            now, then = time(k), time(k + 1)
            y = jump(transport, x, self(nets, transport, x, now, rows), now, then)
            back = jump(transport, y, self(nets, transport, y, then, rows), then, now)
            return y + 0.5 * (x - back), None

        return jax.lax.scan(step, x_t, jnp.arange(steps))[0]
