"""Parallel-in-time sampling (Picard iteration, arXiv 2305.16317): many evaluations of a plan at once, until they agree.

A plan is linear in its predictions, so that all its states follow at once from guesses of them. A sweep predicts at the
states of a window in one batch, computes the states anew, and moves the window past those that no longer change. The
result is that of `sampler.sample` within the tolerance, for every plan: also with fresh noise, which is the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.noise import FIRST, fresh_noise
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.sampler import predictor
from tim_jax.types import PyTree


class _Progress(NamedTuple):
    """What is known after some sweeps.

    Attributes:
        done: The number of evaluations whose state is final.
        states: (n + 1, B, …).
        predictions: (n, B, …).
        sweeps: Their number.
    """

    done: jax.Array
    states: jax.Array
    predictions: jax.Array
    sweeps: jax.Array


def sample_parallel(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    keys: jax.Array,
    guidance: float | jax.Array = 1.0,
    window: int = 16,
    tolerance: float = 1e-3,
) -> tuple[jax.Array, jax.Array]:
    """Runs a plan from given states.

    Args:
        net, plan, x, condition, null_condition, keys, guidance: Those of `sampler.sample`.
        window: The number of evaluations that take place at once, at least 1.
        tolerance: The root mean square over an image by which a state may still change, in units of that of the first
            states. With 0, every state is that of sequential sampling, but for the rounding of other batches.

    Returns:
        The states (n + 1, B, …) before and after every evaluation, of which the last are the samples, and the number of
        sweeps, at most n.
    """
    count, memory = plan.a.shape
    window = min(window, count)
    t_n, s_n, a_nk, b_nk, c_n = (jnp.asarray(part, x.dtype) for part in (plan.t, plan.s, plan.a, plan.b, plan.c))
    guided_n = jnp.asarray(plan.guided)
    numbers = jnp.arange(count + 1).at[0].set(FIRST)
    predict = jax.vmap(predictor(net, condition, null_condition, guidance))
    bound = tolerance * jnp.sqrt(jnp.mean(x**2))

    def noise(number: jax.Array, c: jax.Array) -> jax.Array:
        drawn: jax.Array = jax.lax.cond(c > 0, lambda: fresh_noise(keys, number, x), lambda: jnp.zeros_like(x))
        return c * drawn

    def states_of(predictions: jax.Array) -> jax.Array:
        """All states (n + 1, B, …), by predictions (n, B, …)."""

        def step(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            states, last = carry  # (K, B, …) each, the latest first
            last = jnp.concatenate([predictions[index][None], last[:-1]])
            following = jnp.tensordot(a_nk[index], states, 1) + jnp.tensordot(b_nk[index], last, 1)
            following = following + noise(numbers[index + 1], c_n[index + 1])
            return (jnp.concatenate([following[None], states[:-1]]), last), following

        first = x + noise(numbers[0], c_n[0])
        empty = jnp.zeros((memory, *x.shape), x.dtype)
        _, states = jax.lax.scan(step, (empty.at[0].set(first), empty), jnp.arange(count))
        return jnp.concatenate([first[None], states])

    def sweep(progress: _Progress) -> _Progress:
        done, states, predictions, sweeps = progress
        at = jnp.minimum(done, count - window) + jnp.arange(window)
        found = predict(states[at], t_n[at], s_n[at], guided_n[at])
        predictions = predictions.at[at].set(found)
        # Beyond the window, the latest prediction is the best guess.
        last = at[-1]
        beyond = (jnp.arange(count) > last).reshape(-1, *[1] * x.ndim)
        predictions = jnp.where(beyond, predictions[last], predictions)
        new = states_of(predictions)
        change = jnp.sqrt(jnp.mean((new - states) ** 2, axis=tuple(range(2, new.ndim)))).max(axis=1)
        # The state after an exact evaluation is exact; those after it, if they hardly changed, as well.
        settled = (change <= bound) | (jnp.arange(count + 1) <= done + 1)
        moved = jnp.cumprod(settled & (jnp.arange(count + 1) <= last + 1)).sum() - 1
        return _Progress(jnp.maximum(moved, done + 1), new, predictions, sweeps + 1)

    zeros = jnp.zeros((count, *x.shape), x.dtype)
    start = _Progress(jnp.zeros((), int), jnp.broadcast_to(x, (count + 1, *x.shape)), zeros, jnp.zeros((), int))
    start = start._replace(states=start.states.at[0].set(x + noise(numbers[0], c_n[0])))
    end: _Progress = jax.lax.while_loop(lambda progress: progress.done < count, sweep, start)
    return end.states, end.sweeps
