"""Difference transition matching (arXiv 2506.23589): a head of the network draws the prediction, not its mean.

What a jump takes is here Y = α̂_t x + σ̂_t ε itself (ε − x for OT-FM; the paper's is x − ε), a draw from its law given
x_t. A small head learns this law of every token by flow matching, given what the network makes of x_t,

    F(y_s, s; x_t, t) = Y − y_0,   y_s = (1 − s) y_0 + s Y,   y_0 ~ N(0, 1), s ~ U(0, 1) for every token,

and a transition jumps by a draw, x_r = A x_t + B Y. Times are those of a grid. With more and more transitions they
tend to those of flow matching. Guidance, which published samples have along s, is not here.

The network is told y_s and s by condition["transition"] (B, …) and condition["transition_s"] (B, …), without the axis
of channels; for a draw condition["transition"] is y_0, and condition["transition_times"] (B, K + 1) are the times of
Euler's method. The formulas are those of the paper, of which no code is public.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from tim_jax.transitions.consistency import Group, Prediction
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.objective import Objective


@dataclasses.dataclass(frozen=True)
class TransitionMatching(Objective):
    """An Objective of the head's velocities; `patch` is the side of a token, in positions."""

    transitions: int = 32  # times of the grid that t is on; difference_transition_matching alone has it
    patch: int = 1

    @property
    def transition_head(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if self.transitions < 1:
            raise ValueError(f"objective.transitions is {self.transitions}; it must be at least 1")
        if self.times.share_equal != 1:
            raise ValueError(f"times.share_equal is {self.times.share_equal}; it must be 1, as draws have r = t alone")
        if self.velocity != "data":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'data', of which draws are")
        for name in ("guidance", "input_guidance"):
            if getattr(self, name).active:
                key = {"guidance": "w_cond", "input_guidance": "max_scale"}[name]
                raise ValueError(
                    f"objective.{name}.{key} is {getattr(getattr(self, name), key)}; it must leave targets as they "
                    "are, which are draws and no means"
                )

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws t = r (count,) as ever, rounded up to the next of the `transitions` equal steps from T_min."""
        t, _ = super().draw(key, count, positions, batch)
        low, high = self.transport.T_min, self.transport.T_max
        number = jnp.clip(jnp.ceil(self.transport.share(t) * self.transitions), 1, self.transitions)
        t = jnp.minimum(low + number / self.transitions * (high - low), high)
        return t, t

    def predict(
        self,
        nets: Mapping[str, Net],
        groups: Sequence[Group],
        off_diagonal: bool,
        step: jax.Array,
        key: jax.Array | None,
    ) -> list[Prediction]:
        assert key is not None, "noised predictions are drawn with a key"
        (group,) = groups
        examples, t, r, Y = group
        y_0, s = self.start(key, Y)
        noised = {"transition": (1 - s[..., None]) * y_0 + s[..., None] * Y, "transition_s": s}
        x_t = interpolate(self.transport, examples.x, examples.noise, t)
        condition = (examples.condition or {}) | noised
        (output,) = nets["online"]((query(self.transport, x_t, t, r, condition, examples.keys),))
        return [Prediction(output, Y - y_0, jnp.zeros_like(t))]

    def start(self, key: jax.Array, Y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns noise y_0 like Y (B, …, C), and s (B, …), one for every token."""
        noise_key, s_key = jax.random.split(key)
        tokens = (len(Y), *(n // self.patch for n in Y.shape[1:-1]))
        s = jax.random.uniform(s_key, tokens, Y.dtype)
        for axis in range(1, s.ndim):
            s = jnp.repeat(s, self.patch, axis=axis)
        return jax.random.normal(noise_key, Y.shape, Y.dtype), s
