"""The exact flow map of a Gaussian: closed forms that transports and objectives are tested against.

For x ~ N(μ, s²) elementwise, x_t ~ N(α_t μ, S_t²) with S_t² = α_t² s² + σ_t², and the probability-flow map is

    f_{t→r}(x_t) = α_r μ + (S_r/S_t)(x_t − α_t μ).
"""

import dataclasses

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import coefficient_A, coefficient_B, expand, prediction_target
from tim_jax.transitions.transports import Transport


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The distribution N(mean, std²), elementwise, under a transport.

    Attributes:
        transport: The transport.
        mean, std: Broadcast against a state (B, …) without adding axes.
    """

    transport: Transport
    mean: float | jax.Array = 0.0
    std: float | jax.Array = 1.0

    def marginal_std(self, t: jax.Array) -> jax.Array:
        """Returns S_t, elementwise."""
        return jnp.sqrt(self.transport.alpha(t) ** 2 * self.std**2 + self.transport.sigma(t) ** 2)

    def flow_map(self, x_t: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        """Returns x_r (B, …) on the path of x_t, for times t, r (B,)."""
        t, r = expand(t, x_t), expand(r, x_t)
        centred = x_t - self.transport.alpha(t) * self.mean
        return self.transport.alpha(r) * self.mean + self.marginal_std(r) / self.marginal_std(t) * centred

    def posterior_means(self, x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns E[x | x_t] and E[ε | x_t], each (B, …)."""
        t = expand(t, x_t)
        alpha, sigma = self.transport.alpha(t), self.transport.sigma(t)
        whitened = (x_t - alpha * self.mean) / self.marginal_std(t) ** 2
        return self.mean + alpha * self.std**2 * whitened, sigma * whitened

    def F(self, x_t: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        """Returns the prediction of a perfect network: (f_{t→r}(x_t) − A x_t)/B, and its limit at r = t."""
        at_equal = prediction_target(self.transport, *self.posterior_means(x_t, t), t)
        same = r == t
        # Where r = t the quotient is 0/0; a nearby r keeps it and its derivatives finite before it is discarded.
        other = jnp.where(same, 0.5 * (self.transport.T_min + self.transport.T_max) + 0 * t, r)
        other = jnp.where(other == t, self.transport.T_min, other)
        A = coefficient_A(self.transport, expand(t, x_t), expand(other, x_t))
        B = coefficient_B(self.transport, expand(t, x_t), expand(other, x_t))
        quotient = (self.flow_map(x_t, t, other) - A * x_t) / B
        return jnp.where(expand(same, x_t), at_equal, quotient)
