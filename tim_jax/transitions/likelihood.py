"""The likelihood of data under a flow: bits per dimension by the probability-flow ODE (Song et al., arXiv 2011.13456).

In the angle θ = arctan(σ_t/α_t) and the state y = x_t/n, n = √(α_t² + σ_t²), every transport has the same path
y = cos θ x + sin θ ε, and the flow of F at r = t is, with C_t of `jump.py`,

    dy/dθ     = cos θ ε̂ − sin θ x̂ = (n F(n y, t, t) − (α α̂ + σ σ̂) y)/C
    div dy/dθ = (n² tr ∂F/∂x_t − D (α α̂ + σ σ̂))/C

so that, from the data at θ₀, where t = T_min, to the noise at θ₁, where t = T_max,

    log p(x) = log p_ε(y_{θ₁}/sin θ₁) − D log sin θ₁ + ∫ div dy/dθ dθ + D log cos θ₀,   y_{θ₀} = cos θ₀ x.

cos θ₀ and sin θ₁ are the change of variables of the scale, 1 where a transport begins at the data and ends at noise.
The density is that of what the ODE makes of σ(T_max) ε, whatever the network has learned. The trace is exact, one
tangent for each of D directions, or Hutchinson's unbiased zᵀ (∂F/∂x_t) z with Rademacher vectors z (FFJORD, arXiv
1810.01367), each of which stays for the whole path of its image.

Steps are those of the classical Runge–Kutta method at θ = θ₀ + (θ₁ − θ₀) w^ρ, w even in [0, 1], dense near the data.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.noise import log_density
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.transports import Transport
from tim_jax.types import PyTree, TangentQuery

RHO = 3.0  # of the times; even ones (1) miss pixels that are constant but for their dequantisation
LEVEL = 2 / 255  # the distance of two of the 256 levels of images in [−1, 1]
DEQUANTISATION, PROBES = 0, 1  # folded into the key of an image: its one number, and the first of the others


class Nodes(NamedTuple):
    """The times of all steps, at their beginning, middle and end: each (steps, 3), float64.

    Attributes:
        t: What the network sees of the time, c_noise(t).
        scale: n, by which a state y is one of the transport.
        of_state, of_F: The weights of y and F in dy/dw.
    """

    t: np.ndarray
    scale: np.ndarray
    of_state: np.ndarray
    of_F: np.ndarray


def angles(transport: Transport) -> tuple[float, float]:
    """Returns the angles θ at T_min and at T_max."""
    host, ends = host_transport(transport), np.array([transport.T_min, transport.T_max])
    first, last = np.arctan2(host.sigma(ends), host.alpha(ends))
    return float(first), float(last)


def nodes(transport: Transport, steps: int) -> Nodes:
    """Returns the nodes of the Runge–Kutta method in so many steps from T_min to T_max."""
    first, last = angles(transport)
    w = np.linspace(0, 1, 2 * steps + 1)
    theta = first + (last - first) * w**RHO
    host = host_transport(transport)
    t = np.append(transport.T_min, np.append(host.time_of_ratio(np.tan(theta[1:-1])), transport.T_max))
    t = np.clip(t, transport.T_min, transport.T_max)
    alpha, sigma, C = host.alpha(t), host.sigma(t), host.determinant(t)
    scale = np.hypot(alpha, sigma)
    rate = RHO * (last - first) * w ** (RHO - 1)
    of_state = -rate * (alpha * host.alpha_hat(t) + sigma * host.sigma_hat(t)) / C
    places = 2 * np.arange(steps)[:, None] + np.arange(3)
    return Nodes(*(part[places] for part in (host.c_noise(t), scale, of_state, rate * scale / C)))


def log_likelihood(
    net: Net,
    transport: Transport,
    x: jax.Array,
    condition: PyTree,
    keys: jax.Array,
    steps: int,
    probes: int,
) -> jax.Array:
    """Returns log p(x | condition) (B,) in nats.

    Args:
        net: The network.
        transport: The transport.
        x: Data (B, …).
        condition: A pytree of (B, …) arrays.
        keys: Random keys (B,) of the images, for the probes.
        steps: Of the Runge–Kutta method, of four evaluations each.
        probes: The number of Rademacher vectors that the trace is estimated with; 0: it is exact.
    """
    first, last = angles(transport)
    size = math.prod(x.shape[1:])
    directions = rademacher(keys, probes, x) if probes else jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])

    def velocity(y: jax.Array, node: Any) -> tuple[jax.Array, jax.Array]:
        """dy/dw (B, …) and its divergence (B,)."""
        times = jnp.full(len(x), node.t)

        def F(y: jax.Array) -> jax.Array:
            return net((TangentQuery(node.scale * y, times, times, condition),))[0].F.astype(x.dtype)

        def add(carry: tuple[jax.Array, jax.Array], z: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            z = jnp.broadcast_to(z, y.shape)
            value, along = jax.jvp(F, (y,), (z,))
            return (value, carry[1] + (z * along).reshape(len(x), -1).sum(axis=1)), None

        (value, trace), _ = jax.lax.scan(add, (jnp.zeros_like(y), jnp.zeros(len(x), x.dtype)), directions)
        trace = trace / probes if probes else trace
        return node.of_state * y + node.of_F * value, node.of_state * size + node.of_F * trace

    def step(carry: tuple[jax.Array, jax.Array], node: Nodes) -> tuple[tuple[jax.Array, jax.Array], None]:
        y, change = carry
        start, middle, end = (Nodes(*(part[i] for part in node)) for i in range(3))
        k1, d1 = velocity(y, start)
        k2, d2 = velocity(y + 0.5 / steps * k1, middle)
        k3, d3 = velocity(y + 0.5 / steps * k2, middle)
        k4, d4 = velocity(y + 1 / steps * k3, end)
        return (y + (k1 + 2 * k2 + 2 * k3 + k4) / (6 * steps), change + (d1 + 2 * d2 + 2 * d3 + d4) / (6 * steps)), None

    path = jax.tree.map(lambda part: jnp.asarray(part, x.dtype), nodes(transport, steps))
    (y, change), _ = jax.lax.scan(step, (math.cos(first) * x, jnp.zeros(len(x), x.dtype)), path)
    scale = size * (math.log(math.cos(first)) - math.log(math.sin(last)))
    return log_density(transport.augmented_dimensions, y / math.sin(last)) + change + scale


def rademacher(keys: jax.Array, probes: int, like: jax.Array) -> jax.Array:
    """Returns vectors of ±1 (probes, B, …), each from its image's key (B,) and its number."""

    def of(number: jax.Array) -> jax.Array:
        def of_image(key: jax.Array) -> jax.Array:
            return jax.random.rademacher(jax.random.fold_in(key, number), like.shape[1:], like.dtype)

        found: jax.Array = jax.vmap(of_image)(keys)
        return found

    vectors: jax.Array = jax.vmap(of)(PROBES + jnp.arange(probes))
    return vectors


def dequantise(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns images (B, …) of 256 levels in [−1, 1] with noise, uniform between two levels, by their keys (B,)."""

    def of_image(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, DEQUANTISATION), images.shape[1:], images.dtype)

    noise: jax.Array = jax.vmap(of_image)(keys)
    return images + LEVEL * (noise - 0.5)


def bits_per_dimension(log_p: jax.Array, size: int, level: float = LEVEL) -> jax.Array:
    """Returns −log₂ P/D (B,) of quantised images, P = p levelᴰ: with `dequantise` a bound on it from above, in mean.

    Args:
        log_p: log p (B,) in nats.
        size: D.
        level: The distance of two levels; 1 for data that is not quantised.
    """
    return -log_p / (size * math.log(2)) - math.log2(level)
