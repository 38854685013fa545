"""Any-step sampling: from noise at T_max to data at T_min in any number of jumps, as one scan.

Times and coefficients are computed on the host in float64 and handed to the compiled loop, so that the grid is exact
whatever the state's type. Noise is keyed by (seed, image index): an image does not depend on its batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.jump import coefficient_A, coefficient_B, determinant
from tim_jax.transitions.transports import Transport
from tim_jax.types import Query

STOCHASTIC = ("renoise", "euler")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample.

    guidance: scale s of F_∅ + s (F_c − F_∅), 1 for none. guidance_low, guidance_high: the interval of times in which
    it acts, as fractions of T_max, ends included unless `exclusive_ends` (as published). stochasticity ρ ≥ 0: fresh
    noise after each jump but the first and last. stochastic: 'renoise' jumps further down and returns by the forward
    process, which keeps the marginals exactly for an exact flow map; 'euler' is the published first-order form.
    """

    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    exclusive_ends: bool = False
    stochasticity: float = 0.0
    stochastic: str = "renoise"

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        if self.stochasticity < 0:
            raise ValueError(f"sampling.stochasticity is {self.stochasticity}; it must be at least 0")
        if self.stochastic not in STOCHASTIC:
            raise ValueError(f"sampling.stochastic is {self.stochastic!r}; it must be one of {', '.join(STOCHASTIC)}")
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ValueError(
                f"sampling.guidance_low, guidance_high are {self.guidance_low}, {self.guidance_high}; "
                "they must be ordered and lie in [0, 1]"
            )
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance is {self.guidance}; it must be at least 0")


class Plan(NamedTuple):
    """The steps of a sampling run, x ← a x + b F(x, t, s) + c ξ, each array (steps,) float64.

    t, s: what the network sees of the jump's two times (c_noise). guided: whether guidance acts.
    """

    t: np.ndarray
    s: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    guided: np.ndarray


def time_grid(transport: Transport, steps: int) -> np.ndarray:
    """(steps + 1,) float64, uniform from T_max down to T_min."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    return np.linspace(transport.T_max, transport.T_min, steps + 1)


def guided_steps(transport: Transport, times: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Boolean (steps,): where guidance acts on the jump that starts at each time."""
    if sampling.guidance == 1.0:
        return np.zeros(len(times), bool)
    low, high = sampling.guidance_low * transport.T_max, sampling.guidance_high * transport.T_max
    # Grid times carry rounding errors: an end of the interval is met within a hair.
    hair = 1e-9 * transport.T_max * (-1 if sampling.exclusive_ends else 1)
    return (times >= low - hair) & (times <= high + hair)


def evaluations(transport: Transport, steps: int, sampling: Sampling) -> int:
    """Network evaluations per image; a guided step counts twice."""
    return steps + int(guided_steps(transport, time_grid(transport, steps)[:-1], sampling).sum())


def make_plan(transport: Transport, steps: int, sampling: Sampling) -> Plan:
    """The plan for a number of steps ≥ 1; raises ValueError for fewer."""
    grid = time_grid(transport, steps)
    guided = guided_steps(transport, grid[:-1], sampling)
    noisy = np.zeros(steps, bool)
    noisy[1:-1] = sampling.stochasticity > 0
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        t, r = jnp.asarray(grid[:-1]), jnp.asarray(grid[1:])
        s, a, b, c = {"renoise": renoise, "euler": euler}[sampling.stochastic](
            transport, t, r, jnp.where(noisy, sampling.stochasticity, 0.0)
        )
        plan = (transport.c_noise(t), transport.c_noise(s), a, b, c)
        return Plan(*(np.asarray(part) for part in plan), guided)


def padded(plan: Plan) -> Plan:
    """The plan with steps appended that are not taken, to a length of 64 or the next power of two."""
    steps = len(plan.t)
    length = max(64, 1 << (steps - 1).bit_length())
    return Plan(*(np.concatenate([part, np.repeat(part[-1:], length - steps)]) for part in plan))


def renoise(transport: Transport, t: jax.Array, r: jax.Array, rho: jax.Array) -> tuple[jax.Array, ...]:
    """(s, a, b, c): jump from t to s ≤ r, then return to r by the forward process p(x_r | x_s).

    s is where the squared noise-to-signal ratio is lower by ρ α_r (λ_t² − λ_r²), λ = σ/α, which to first order in t − r
    is the noise of the Euler form. ρ = 0: s = r.
    """
    lowest = transport.ratio(jnp.full_like(r, transport.T_min)) ** 2
    square = transport.ratio(r) ** 2
    # λ_t is infinite at T_max of some transports; no noise is asked for there.
    lost = jnp.where(rho > 0, transport.ratio(jnp.where(rho > 0, t, r)) ** 2 - square, 0.0)
    lower = transport.time_of_ratio(jnp.sqrt(jnp.maximum(square - rho * transport.alpha(r) * lost, lowest)))
    s = jnp.where(rho > 0, jnp.clip(lower, transport.T_min, r), r)
    keep = jnp.where(rho > 0, transport.alpha(r) / transport.alpha(s), 1.0)
    variance = transport.sigma(r) ** 2 - (keep * transport.sigma(s)) ** 2
    a, b = keep * coefficient_A(transport, t, s), keep * coefficient_B(transport, t, s)
    return s, a, b, jnp.sqrt(jnp.where(rho > 0, jnp.maximum(variance, 0.0), 0.0))


def euler(transport: Transport, t: jax.Array, r: jax.Array, rho: jax.Array) -> tuple[jax.Array, ...]:
    """(s, a, b, c): after the jump to r, x −= ρ (ασ' − α'σ) ε̂ dt and x += √(2ρ (ασσ' − α'σ²) dt) ξ, at time t."""
    alpha, alpha_dot = jax.jvp(transport.alpha, (t,), (jnp.ones_like(t),))
    sigma, sigma_dot = jax.jvp(transport.sigma, (t,), (jnp.ones_like(t),))
    growth = alpha * sigma_dot - alpha_dot * sigma
    drift = -rho * growth * (t - r) / determinant(transport, t)
    a = coefficient_A(transport, t, r) - drift * transport.alpha_hat(t)
    b = coefficient_B(transport, t, r) + drift * alpha
    return r, a, b, jnp.sqrt(2 * rho * growth * sigma * (t - r))


def image_keys(seed: int, indices: jax.Array) -> jax.Array:
    """(B,) random keys, one per image index (B,) of a seed."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(B, …) standard normal noise of the given image shape, from each image's own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def sample(
    net: Net,
    plan: Plan,
    noise: jax.Array,
    condition: Any,
    null_condition: Any,
    keys: jax.Array,
    guidance: float = 1.0,
    trajectory: bool = False,
    steps: jax.Array | None = None,
) -> jax.Array:
    """Images (B, h, w, C) from start noise of that shape, or the whole trajectory (steps + 1, B, h, w, C), noise first.

    condition, null_condition: pytrees of (B, …) arrays. keys: (B,) from `image_keys`, for the stochastic variants.
    guidance: `Sampling.guidance`; 1 compiles no second evaluation. steps: how many steps of the plan are taken, all by
    default and always for trajectories; so one program serves all step counts up to the plan's length (see `padded`).
    """

    def ask(x, t, s, condition):
        times = jnp.full((2, len(x)), jnp.stack([t, s])[:, None])
        return Query(x, times[0], times[1], condition)

    def predict(x, t, s, guided):
        def plain():
            return net((ask(x, t, s, condition),))[0].F

        def with_guidance():
            conditional, unconditional = net((ask(x, t, s, condition), ask(x, t, s, null_condition)))
            return unconditional.F + guidance * (conditional.F - unconditional.F)

        return plain() if guidance == 1.0 else jax.lax.cond(guided, with_guidance, plain)

    def step(x, index, t, s, a, b, c, guided):
        xi = jax.lax.cond(
            c > 0,
            lambda: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype))(keys),
            lambda: jnp.zeros_like(x),
        )
        return a * x + b * predict(x, t, s, guided).astype(x.dtype) + c * xi

    plan = Plan(*(jnp.asarray(part, noise.dtype) for part in plan[:-1]), jnp.asarray(plan.guided))
    length = len(plan.t)
    if not trajectory:
        count = length if steps is None else steps
        return jax.lax.fori_loop(0, count, lambda i, x: step(x, i + 1, *(part[i] for part in plan)), noise)

    def keep(x, inputs):
        x = step(x, *inputs)
        return x, x

    _, path = jax.lax.scan(keep, noise, (jnp.arange(1, length + 1), *plan))
    return jnp.concatenate([noise[None], path])
