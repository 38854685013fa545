"""A frozen teacher: its prediction, with guidance if wanted, and states along its own trajectories.

    F_T = F_away + s (F_c − F_away)

F_away is the prediction under the null condition, or that of a weaker model (autoguidance, arXiv 2406.02507).
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
    ("teacher.guidance_low", "teacher.guidance_high", "teacher.guidance_channels", "teacher.weak_checkpoint"): (
        "teacher.guidance is 1",
        lambda c: c.teacher.guidance == 1,
    ),
    ("teacher.weak_ema",): ("teacher.weak_checkpoint is ''", lambda c: not c.teacher.weak_checkpoint),
    ("teacher.ema",): (
        "teacher.checkpoint is '' and start.checkpoint is not, whose weights are those of start.ema",
        lambda c: not c.teacher.checkpoint and bool(c.start.checkpoint),
    ),
}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher: its checkpoint, and how predictions of nets["teacher"] are made.

    F_away is the prediction of nets["weaker"], where a weaker checkpoint is named, else that under the null condition.
    """

    # a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000; "": none, or start.checkpoint for flow_dpo
    checkpoint: str = ""
    ema: str = "slow"  # of its weights: the name of an EMA, or "online"
    dtype: str = "float32"  # of its weights and computation, "float32" or "bfloat16"
    guidance: float = 1.0  # scale of its velocity's guidance; 1: none
    guidance_low: float = 0.0  # interval of guidance, as fractions of T_max
    guidance_high: float = 1.0
    guidance_channels: int = 0  # that guidance acts on, the first so many, as published for SiT and DiT (3); 0: all
    weak_checkpoint: str = ""  # guidance away from this weaker model, not from the null condition
    weak_ema: str = "slow"

    @property
    def weaker(self) -> bool:
        """Whether guidance is away from a weaker model."""
        return bool(self.weak_checkpoint)

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.guidance < 0:
            raise ValueError(f"teacher.guidance is {self.guidance}; it must be at least 0")
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ValueError(
                f"teacher.guidance_low, teacher.guidance_high are {self.guidance_low}, {self.guidance_high}; "
                "they must be ordered and lie in [0, 1]"
            )
        if self.guidance_channels < 0:
            raise ValueError(f"teacher.guidance_channels is {self.guidance_channels}; it must be at least 0")
        if self.weaker and self.guidance == 1:
            raise ValueError(
                f"teacher.guidance is {self.guidance}; it must not be 1 where teacher.weak_checkpoint is given"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the networks that the predictions need."""
        return ("teacher", "weaker") if self.weaker else ("teacher",)

    def __call__(
        self, nets: Mapping[str, Net], transport: Transport, x_t: jax.Array, t: jax.Array, examples: Examples
    ) -> jax.Array:
        """Returns the prediction F_T(x_t, t, t) (B, …), without gradient.

        Args:
            nets: The networks by name.
            transport: The transport.
            x_t: States (B, …).
            t: Their times (B,).
            examples: Give the conditions.
        """
        return jax.lax.stop_gradient(self.predict(nets, transport, x_t, t, examples))

    def predict(
        self, nets: Mapping[str, Net], transport: Transport, x_t: jax.Array, t: jax.Array, examples: Examples
    ) -> jax.Array:
        """Returns the prediction with its gradient in x_t; arguments are those of a call."""
        here = query(transport, x_t, t, t, examples.condition)
        if self.guidance == 1:
            (output,) = nets["teacher"]((here,))
            F: jax.Array = output.F
            return F
        if self.weaker:
            (conditional,), (away,) = nets["teacher"]((here,)), nets["weaker"]((here,))
        else:
            conditional, away = nets["teacher"]((here, here._replace(condition=examples.null_condition)))
        tolerance = 1e-6 * transport.T_max
        low, high = self.guidance_low * transport.T_max, self.guidance_high * transport.T_max
        applies = (t >= low - tolerance) & (t <= high + tolerance)
        scale = expand(jnp.where(applies, self.guidance, 1.0), x_t)
        guided: jax.Array = away.F + scale * (conditional.F - away.F)
        if self.guidance_channels:
            guided = jnp.where(jnp.arange(x_t.shape[-1]) < self.guidance_channels, guided, conditional.F)
        return guided

    def solve(
        self,
        nets: Mapping[str, Net],
        transport: Transport,
        x_t: jax.Array,
        t: jax.Array,
        s: jax.Array,
        examples: Examples,
        steps: int,
    ) -> jax.Array:
        """Returns x_s (B, …) on the teacher's trajectory through x_t, by Heun's method (see `plans.heun`).

        Args:
            nets: The networks by name.
            transport: The transport.
            x_t: States (B, …).
            t, s: The times (B,) of start and end, T_min ≤ s ≤ t ≤ T_max.
            examples: Give the conditions.
            steps: The number of steps, at least 1, at equal differences of the noise level.
        """
        level_t, level_s = transport.level(t), transport.level(s)

        def time(k: jax.Array) -> jax.Array:
            inside = jnp.clip(transport.time_of_level(level_t + k / steps * (level_s - level_t)), s, t)
            return jnp.where(k == 0, t, jnp.where(k == steps, s, inside))

        def step(x: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
            now, then = time(k), time(k + 1)
            y = jump(transport, x, self(nets, transport, x, now, examples), now, then)
            back = jump(transport, y, self(nets, transport, y, then, examples), then, now)
            return y + 0.5 * (x - back), None

        return jax.lax.scan(step, x_t, jnp.arange(steps))[0]
