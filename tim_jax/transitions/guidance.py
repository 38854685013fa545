"""Guidance inside training: targets at r = t that already contain classifier-free guidance.

`TargetGuidance` has one scale (TiM, section 4.3; MeanFlow, arXiv 2505.13447, section 4.2). `InputGuidance` has a scale
that is an input of the network, so that it can be chosen when sampling (improved MeanFlow, arXiv 2512.02012).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import expand
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples, PyTree

UNUSED = {
    tuple(f"objective.guidance.{name}" for name in ("t_low", "t_high", "start_step", "ema")): (
        "objective.guidance.w_cond is 0 and objective.guidance.w_gt is 1",
        lambda c: c.objective.guidance.w_cond == 0 and c.objective.guidance.w_gt == 1,
    ),
    ("objective.input_guidance.power",): (
        "objective.input_guidance.max_scale is 1",
        lambda c: c.objective.input_guidance.max_scale == 1,
    ),
}


@dataclasses.dataclass(frozen=True)
class TargetGuidance:
    """The target w_gt v + w_cond F(x_t, t, t | c) + (1 − w_gt − w_cond) F(x_t, t, t | ∅) for t in [t_low, t_high].

    It is guided from step `start_step` on, with predictions by the weights called `ema`. Examples trained with the null
    condition, and those at times outside the interval, keep v = α̂_t x + σ̂_t ε.
    """

    w_gt: float = 1.0  # 1 with w_cond = 0: none
    w_cond: float = 0.0
    t_low: float = 0.3  # times, in units of t, in which targets are guided
    t_high: float = 0.8
    start_step: int = 0
    ema: str = "slow"  # by which weights: the name of an EMA, or "online"

    @property
    def active(self) -> bool:
        """Whether the target differs from v at all."""
        return self.w_cond != 0 or self.w_gt != 1

    @property
    def uses_null(self) -> bool:
        """Whether the target has a share of F under the null condition."""
        return self.active and abs(1 - self.w_gt - self.w_cond) > 1e-9

    def check(self, transport: Transport) -> None:
        """Raises ValueError, naming keys and values, for an interval outside the transport's times."""
        if self.active and not transport.T_min <= self.t_low <= self.t_high <= transport.T_max:
            raise ValueError(
                f"objective.guidance.t_low, objective.guidance.t_high are {self.t_low}, {self.t_high}; they must be "
                f"ordered and lie in [{transport.T_min:g}, {transport.T_max:g}] for {transport.name}"
            )

    def __call__(
        self,
        net: Net,
        transport: Transport,
        x_t: jax.Array,
        t: jax.Array,
        examples: Examples,
        base: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """Returns the guided target (B, …), without gradient.

        Args:
            net: The network with the weights called `ema`.
            transport: The transport.
            x_t: States (B, …).
            t: Their times (B,).
            examples: Give the conditions.
            base: The unguided target v (B, …).
            step: The training step, a scalar.
        """

        def guided() -> jax.Array:
            queries = [query(transport, x_t, t, t, examples.null_condition)]
            if self.w_cond:
                queries.append(query(transport, x_t, t, t, examples.condition))
            outputs = [output.F for output in net(tuple(queries))]
            conditional = self.w_cond * outputs[1] if self.w_cond else 0.0
            return self.w_gt * base + conditional + (1 - self.w_gt - self.w_cond) * outputs[0]

        # A condition on the step, not a new program: nothing compiles when guidance sets in.
        target = jax.lax.cond(step >= self.start_step, guided, lambda: base)
        applies = (t >= self.t_low) & (t <= self.t_high) & ~examples.is_null
        return jax.lax.stop_gradient(jnp.where(expand(applies, base), target, base))


@dataclasses.dataclass(frozen=True)
class InputGuidance:
    """The target v + (1 − 1/ω)(u(c, ω) − u(∅, 1)) for t in an interval, both being inputs of the network.

    u is the online network's prediction at (x_t, t, t): that of its velocity head, where it has one to follow, or F.
    The scale ω is drawn from p ∝ ω^{−power} on [1, max_scale], the ends of the interval uniformly from the lower and
    the upper half of the time domain. At r = t an interval says no more than whether ω holds: there it is the whole
    domain, and u(c, 1) stands for u outside. Examples trained with the null condition keep v.
    """

    max_scale: float = 1.0  # scales 1 … max_scale are an input of the network; 1: none
    power: float = 1.0  # they are drawn from scale^−power

    @property
    def active(self) -> bool:
        """Whether the network has a guidance input."""
        return self.max_scale > 1

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.max_scale < 1:
            raise ValueError(f"objective.input_guidance.max_scale is {self.max_scale}; it must be at least 1")
        if self.power < 0:
            raise ValueError(f"objective.input_guidance.power is {self.power}; it must be at least 0")

    @staticmethod
    def middle(transport: Transport) -> float:
        """Returns the time below which the intervals of guidance begin, and above which they end."""
        return 0.5 * (transport.T_min + transport.T_max)

    def draw_scales(self, key: jax.Array, count: int) -> jax.Array:
        """Draws ω (count,), by the inverse of its distribution function."""
        u, p = jax.random.uniform(key, (count,)), 1 - self.power
        return self.max_scale**u if p == 0 else (1 + u * (self.max_scale**p - 1)) ** (1 / p)

    def add_inputs(
        self, transport: Transport, examples: Examples, key: jax.Array, whole: jax.Array | bool = False
    ) -> Examples:
        """Returns the examples with {"guidance": (B, 3)}, a scale and the ends of its interval, in both conditions.

        Args:
            transport: The transport.
            examples: The examples.
            key: A random key.
            whole: Whether the interval is the whole domain, (B,) or one for all.
        """
        scale_key, ends_key = jax.random.split(key)
        count, middle = len(examples.x), self.middle(transport)
        low, high = jax.random.uniform(ends_key, (2, count))
        low = jnp.where(whole, transport.T_min, transport.T_min + low * (middle - transport.T_min))
        high = jnp.where(whole, transport.T_max, middle + high * (transport.T_max - middle))
        inputs = _inputs(self.draw_scales(scale_key, count), low, high, examples.x.dtype)
        unguided = _inputs(jnp.ones(count), transport.T_min, transport.T_max, examples.x.dtype)
        return examples._replace(
            condition=examples.condition | inputs, null_condition=examples.null_condition | unguided
        )

    def at(self, transport: Transport, condition: PyTree, t: jax.Array) -> PyTree:
        """Returns the condition (B, …) for r = t: on the whole domain, the scale that holds at the times t (B,)."""
        if not self.active:
            return condition
        scale, low, high = condition["guidance"].T
        scale = jnp.where((t >= low) & (t <= high), scale, 1.0)
        return condition | _inputs(scale, transport.T_min, transport.T_max, scale.dtype)

    def __call__(
        self,
        net: Net,
        transport: Transport,
        x_t: jax.Array,
        t: jax.Array,
        examples: Examples,
        base: jax.Array,
        head: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the guided target (B, …) and u(c, ω) (B, …), both without gradient.

        Args:
            net: The online network.
            transport: The transport.
            x_t: States (B, …).
            t: Their times (B,).
            examples: Examples as `add_inputs` returns them.
            base: The unguided target v (B, …).
            head: Whether u is the velocity head, not F.
        """
        here = self.at(transport, examples.condition, t)
        outputs = net(tuple(query(transport, x_t, t, t, c) for c in (here, examples.null_condition)))
        given, null = (output.heads["velocity"] if head else output.F for output in outputs)
        share = jnp.where(examples.is_null, 0.0, 1 - 1 / here["guidance"][:, 0])
        return jax.lax.stop_gradient((base + expand(share, base) * (given - null), given))


def _inputs(scale: jax.Array, low: jax.Array | float, high: jax.Array | float, dtype: Any) -> dict[str, jax.Array]:
    """The inputs (B, 3) of the network: scales (B,) and the ends of the intervals where they hold."""
    columns = [jnp.broadcast_to(jnp.asarray(column, dtype), scale.shape) for column in (scale, low, high)]
    return {"guidance": jnp.stack(columns, axis=1)}
