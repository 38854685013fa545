"""Sampling: from noise at T_max to data at T_min by a plan of network evaluations (see `plans.py`), in one loop."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.noise import DRAWS, FIRST, RENOISED, fresh_noise
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.rules import Arrays, Tally, predict_where_needed, tally
from tim_jax.transitions.sampling.steering import METHODS, At, Steer
from tim_jax.types import PyTree, Query

Noise: TypeAlias = Callable[[jax.Array], jax.Array]  # standard normal noise ξ (B, …) → the noise of a path's end

Predictor: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # (x, t, s, guided) → F


class _Carry(NamedTuple):
    """The last states and predictions, the latest first, and what is counted where evaluations may be skipped."""

    states: Arrays
    predictions: Arrays
    tally: Tally | None


def predictor(net: Net, condition: PyTree, null_condition: PyTree, guidance: float | jax.Array) -> Predictor:
    """Returns (x, t, s, guided) → F, guided where the scalar `guided` says so; see `sample` for the arguments."""

    def make_query(x: jax.Array, t: jax.Array, s: jax.Array, condition: PyTree) -> Query:
        times = jnp.full((2, len(x)), jnp.stack([t, s])[:, None])
        return Query(x, times[0], times[1], condition)

    def predict(x: jax.Array, t: jax.Array, s: jax.Array, guided: jax.Array) -> jax.Array:
        def without_guidance() -> jax.Array:
            return net((make_query(x, t, s, condition),))[0].F

        def with_guidance() -> jax.Array:
            conditional, unconditional = net((make_query(x, t, s, condition), make_query(x, t, s, null_condition)))
            return unconditional.F + guidance * (conditional.F - unconditional.F)

        if not isinstance(guidance, jax.Array) and guidance == 1.0:
            return without_guidance().astype(x.dtype)
        F: jax.Array = jax.lax.cond(guided, with_guidance, without_guidance)
        return F.astype(x.dtype)

    return predict


def sample(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    keys: jax.Array,
    guidance: float | jax.Array = 1.0,
    trajectory: bool = False,
    count: jax.Array | int | None = None,
    before: jax.Array | None = None,
    pair: bool = False,
    refiner: Net | None = None,
    noise: Noise | None = None,
    draw_steps: int = 0,
    steer: Steer | None = None,
) -> jax.Array:
    """Runs a plan from given states.

    Args:
        net: The network.
        plan: The plan, of n evaluations.
        x: The first states (B, …), noise as a rule.
        condition, null_condition: Pytrees of (B, …) arrays.
        keys: Random keys (B,) from `image_keys`, for samplers with fresh noise.
        guidance: The scale where the plan is guided, one or as many as there are channels, (1, …, C); the number 1
            compiles no second evaluation, and one program serves all scales that are arrays.
        trajectory: Whether to return all states.
        count: The number of evaluations that take place; all by default, and always for trajectories. So one program
            serves all step counts up to the plan's length (see `padded`).
        before: The states (B, …) one evaluation before x, of which a plan of memory 2 may make use; by default there
            are none. A trajectory begins with them.
        pair: Whether to return the last two states.
        refiner: The network that refines predictions, where the plan has it: its queries have the prediction that is
            handed on as condition["prediction"]. It is never guided.
        noise: Makes the noise of a coupled path's end of fresh normal noise (`coupling.py`); None: they are the same.
        draw_steps: For a network whose predictions are draws by a head, the steps of Euler's method that each takes,
            from fresh noise; 0 for all others. Draws are never guided.
        steer: What steers the batch, along a plan that has `steer` for it; see `steering.py`.

    Returns:
        Samples (B, …); for a pair (B, 2, …), the last state and the one before; for a trajectory the states
        (n + 1, B, …) before and after every evaluation.
    """
    return _run(
        net,
        plan,
        x,
        condition,
        null_condition,
        keys,
        guidance,
        trajectory,
        count,
        before,
        pair,
        refiner,
        noise,
        draw_steps,
        steer,
    )[0]


def sample_and_count(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    keys: jax.Array,
    guidance: float | jax.Array = 1.0,
    trajectory: bool = False,
    count: jax.Array | int | None = None,
    before: jax.Array | None = None,
    pair: bool = False,
    refiner: Net | None = None,
    noise: Noise | None = None,
    draw_steps: int = 0,
    steer: Steer | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a plan as `sample` does, and returns beside its samples the evaluations (B,) that each image took.

    Those with guidance count twice, and those of a refiner, or of a head that draws, not at all.
    """
    states, counted = _run(
        net,
        plan,
        x,
        condition,
        null_condition,
        keys,
        guidance,
        trajectory,
        count,
        before,
        pair,
        refiner,
        noise,
        draw_steps,
        steer,
    )
    if counted is not None:
        return states, counted.evaluations
    takes_place = jnp.arange(len(plan.t)) < (len(plan.t) if count is None or trajectory else count)
    if plan.refined is not None:
        takes_place &= jnp.asarray(plan.refined) < 0
    each = jnp.where(takes_place, 1 + jnp.asarray(plan.guided, jnp.int32), 0).sum()
    return states, jnp.full(len(x), each if steer is None else each * steer.settings.passes)


def _run(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    keys: jax.Array,
    guidance: float | jax.Array,
    trajectory: bool,
    count: jax.Array | int | None,
    before: jax.Array | None,
    pair: bool,
    refiner: Net | None,
    noise: Noise | None,
    draw_steps: int,
    steer: Steer | None,
) -> tuple[jax.Array, Tally | None]:
    """What `sample` returns, and what was counted where evaluations may be skipped."""
    predict, rule = predictor(net, condition, null_condition, guidance), plan.rule

    def noised(state: jax.Array, c: jax.Array, which: jax.Array | int) -> jax.Array:
        def draw() -> jax.Array:
            xi = fresh_noise(keys, which, x)
            return xi if noise is None else noise(xi)

        fresh: jax.Array = jax.lax.cond(c > 0, draw, lambda: jnp.zeros_like(x))
        return state + c * fresh

    def refined(
        back: jax.Array, x: jax.Array, predictions: Arrays, t: jax.Array, s: jax.Array, guided: jax.Array
    ) -> jax.Array:
        assert refiner is not None, "a plan with a refiner"

        def refine() -> jax.Array:
            handed = jnp.stack(predictions)[jnp.maximum(back, 0)]
            inputs = (condition or {}) | {"prediction": handed}
            return predictor(refiner, inputs, inputs, 1.0)(x, t, s, guided)

        F: jax.Array = jax.lax.cond(back >= 0, refine, lambda: predict(x, t, s, guided))
        return F

    def drawn(index: jax.Array, x: jax.Array, t: jax.Array, s: jax.Array, guided: jax.Array) -> jax.Array:
        times = jnp.tile(jnp.linspace(0, 1, draw_steps + 1, dtype=x.dtype), (len(x), 1))
        start = {"transition": fresh_noise(keys, DRAWS + index, x), "transition_times": times}
        inputs = (condition or {}) | start
        return predictor(net, inputs, inputs, 1.0)(x, t, s, guided)

    t_n, s_n, a_nk, b_nk, c_n = (jnp.asarray(part, x.dtype) for part in (plan.t, plan.s, plan.a, plan.b, plan.c))
    guided_n = jnp.asarray(plan.guided)
    known_n = None if rule is None else jax.tree.map(lambda part: jnp.asarray(part, x.dtype), rule.known)

    steer_n = jax.tree.map(lambda part: jnp.asarray(part, x.dtype), plan.steer)

    def evaluate(index: jax.Array, carry: _Carry) -> _Carry:
        states, predictions, counted = carry
        t, s, a, b, c, guided = (part[index] for part in (t_n, s_n, a_nk, b_nk, c_n[1:], guided_n))
        known, steered = jax.tree.map(lambda part: part[index], (known_n, steer_n))

        def advance(x: jax.Array, F: jax.Array) -> jax.Array:
            """The plan's next state, with x in place of the last one and F the last prediction."""
            now, made = (x, *states[1:]), (F, *predictions[:-1])
            of_states, of_predictions = a, b
            if rule is not None and rule.correct is not None:
                changes = rule.correct(known, now, made)
                # (K, B, 1, …), the weights of each image.
                of_states, of_predictions = (
                    jnp.expand_dims(own[:, None] + new.T, range(2, x.ndim + 1)) for own, new in zip((a, b), changes)
                )
            terms = [
                of_states[k] * state + of_predictions[k] * F for k, (state, F) in enumerate(zip(now, made, strict=True))
            ]
            return noised(sum(terms[1:], terms[0]), c, index + 1)

        x, following = states[0], None
        if steer is not None:
            at = At(
                steered,
                x,
                lambda x: predict(x, t, s, guided),
                lambda x: predict(x, t, steered.end, guided),
                advance,
                lambda: fresh_noise(keys, RENOISED + index, x),
            )
            x, F, following = METHODS[steer.settings.method](steer, at)
        elif plan.refined is not None:
            F = refined(jnp.asarray(plan.refined)[index], x, predictions, t, s, guided)
        elif draw_steps:
            F = drawn(index, x, t, s, guided)
        elif rule is None or rule.guess is None or counted is None:
            F = predict(x, t, s, guided)
        else:
            network, cost = (lambda: predict(x, t, s, guided)), 1 + guided.astype(jnp.int32)
            F, counted = predict_where_needed(rule.guess, known, states, predictions, counted, network, cost)
        following = advance(x, F) if following is None else following
        return _Carry((following, x, *states[1:])[: len(states)], (F, *predictions[:-1]), counted)

    length, memory = a_nk.shape
    nothing = jnp.zeros_like(x)
    earlier = ([] if before is None else [before]) + [nothing] * memory
    counted = None if rule is None or rule.guess is None else tally(memory, len(x))
    carry = _Carry((noised(x, c_n[0], FIRST), *earlier[: memory - 1]), (nothing,) * memory, counted)
    if not trajectory:
        last: _Carry = jax.lax.fori_loop(0, length if count is None else count, evaluate, carry)
        return jnp.stack(last.states[:2], axis=1) if pair else last.states[0], last.tally

    def collect(carry: _Carry, index: jax.Array) -> tuple[_Carry, jax.Array]:
        carry = evaluate(index, carry)
        return carry, carry.states[0]

    last, states = jax.lax.scan(collect, carry, jnp.arange(length))
    return jnp.concatenate([x[None], states] if before is None else [before[None], x[None], states]), last.tally
