"""Objectives and sampling for a network of one's own: a function net(x_t, t, r) or net(x_t, t, r, condition).

    objective = OBJECTIVES["tim"](TRANSPORTS["ot_fm"]())
    loss, metrics = mean_loss(objective, net, x, key)
    samples = generate(objective, net, noise, steps=4)

`net` may be a Flax or an Equinox module or a plain function, and x vectors (B, d), images (B, h, w, C) or anything else
with examples along its first axis. The network returns F like x_t, or what `transport.prediction` says in its place, or
an `Output` where an objective reads more.
t and r (B,) are what the transport's c_noise makes of the times: the times themselves for OT-FM.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.jump import expand
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.prediction import in_F
from tim_jax.transitions.sampling.planning import guidance_inputs, guidance_scale, make_plan, time_grid
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples, Output, PyTree, Query, averages

FEW = 16  # numbers in an example, below which its own error is no measure of the mean error
Network: TypeAlias = Callable[..., Any]
"""A network of one's own: (x_t, t, r) or (x_t, t, r, condition) → F (B, …) or an Output."""


def as_net(network: Network, heads: tuple[str, ...] = (), transport: Transport | None = None) -> Net:
    """Returns a network of one's own in the form that objectives and samplers call: Queries in, Outputs out.

    Args:
        network: Called as network(x_t, t, r), or network(x_t, t, r, condition) where there is a condition; also with
            taps=… where states after some of its blocks are asked for.
        heads: Those that its Output must have.
        transport: Says what the network's output stands for; F without one.

    Raises:
        ValueError: When it is called, if it returns another shape or lacks a head or taps.
    """

    def answer(query: Query, taps: tuple[int, ...]) -> Output:
        condition = () if query.condition is None else (query.condition,)
        if taps and "taps" not in inspect.signature(network).parameters:
            raise ValueError(
                f"the network has no argument taps; it must have it, as states after blocks {taps} are asked for"
            )
        asked = {"taps": taps} if taps else {}
        output = network(query.x_t, query.t, query.r, *condition, **asked)
        output = output if isinstance(output, Output) else Output(output)
        if jnp.shape(output.F) != query.x_t.shape:
            raise ValueError(f"the network returned {jnp.shape(output.F)}; it must be {query.x_t.shape}, as x_t is")
        missing = [name for name in heads if name not in (output.heads or {})]
        if missing:
            parts = ", ".join(f"{name!r}: …" for name in heads)
            raise ValueError(f"the network returned no head {missing[0]!r}; it must be Output(F, heads={{{parts}}})")
        shapes = [jnp.shape(state) for state in output.taps or ()]
        if taps and not (len(shapes) == len(taps) and all(len(s) == 3 and s[0] == len(query.x_t) for s in shapes)):
            what = f"it must be Output(F, taps=…) with {len(taps)} states (B, N, D), those after blocks {taps}"
            raise ValueError(f"the network returned taps {shapes}; {what}")
        return in_F(transport, query, output) if transport else output

    return lambda queries, taps=(): tuple(answer(query, tuple(taps)) for query in queries)


def mean_loss(
    objective: Objective,
    net: Network,
    x: jax.Array,
    key: jax.Array,
    *,
    step: jax.Array | int | None = None,
    condition: PyTree = None,
    null_condition: PyTree = None,
    condition_dropout: float = 0.0,
    noise: jax.Array | None = None,
    loser: jax.Array | None = None,
    reward: jax.Array | None = None,
    **networks: Network,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean loss of a batch, to be differentiated by the parameters of `net`, and metrics of its examples.

    Args:
        objective: The objective.
        net: The network that is trained.
        x: The data (B, …).
        key: A random key: of noise, times, and whatever else the objective draws.
        step: The number of the training step, from 0, for objectives whose loss changes with it.
        condition: A pytree of (B, …) arrays, such as labels (B,).
        null_condition: What stands for no condition: a pytree like `condition`, which it is broadcast to.
        condition_dropout: The share of examples that are trained with the null condition.
        noise: (B, …), by default drawn; reflow brings its own.
        loser: (B, …), what x was preferred to, for objectives of pairs.
        reward: (B,), of x, for objectives that weigh by it.
        **networks: The other networks that the objective calls, by their names: an EMA of `net` as `slow`, a frozen
            `teacher`. `objective.networks` lists them.

    Returns:
        The loss, a scalar, and metrics (B,) by name: "error" is the unweighted squared error, at times "t" and "r".

    Raises:
        ValueError: One line that says what the objective needs.
    """
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype} {x.shape}; it must be floating-point numbers (B, …) of at least two axes")
    objective.check()
    objective.check_batch(len(x))
    if x[0].size < FEW and (objective.adaptive.power or objective.direction != "none"):
        warnings.warn(
            f"examples have {x[0].size} numbers, and {_name(objective)} weights them by their own error or compares "
            "directions, which draws predictions of so few away from the mean: see unweighted()",
            stacklevel=2,
        )
    if len(x) % objective.batch_multiple:
        raise ValueError(f"x has {len(x)} examples; {_name(objective)} takes multiples of {objective.batch_multiple}")
    _check_step(objective, step)
    _check_inputs(objective, x, loser=loser, reward=reward)
    nets = _nets(objective, net, networks)
    noise_key, null_key, batch_key, key = jax.random.split(key, 4)
    is_null = jax.random.bernoulli(null_key, condition_dropout, (len(x),))
    condition, null_condition = _conditions(objective, condition, null_condition, condition_dropout, is_null)
    if noise is None:
        noise = draw_noise(objective.transport.augmented_dimensions, noise_key, x.shape, x.dtype)
    noise = jnp.asarray(noise)
    if noise.shape != x.shape:
        raise ValueError(f"noise has shape {noise.shape}; it must be that of x, {x.shape}")
    examples = Examples(x, noise, condition, null_condition, is_null, loser=loser, reward=reward)
    # Shares of a batch that are not whole have their turn by its number, or by a random one.
    batch = jax.random.bits(batch_key) if step is None else jnp.asarray(step)
    losses, metrics = objective(nets, examples, jnp.asarray(0 if step is None else step), key, batch)
    return losses.mean(), metrics


def generate(
    objective: Objective,
    net: Network,
    noise: jax.Array,
    steps: int = 4,
    *,
    key: jax.Array | None = None,
    condition: PyTree = None,
    null_condition: PyTree = None,
    sampling: Sampling | None = None,
    trajectory: bool = False,
) -> jax.Array:
    """Returns samples (B, …) of a network that was trained with an objective.

    Args:
        objective: The objective; it names the transport and the sampler that suits the network.
        net: The network.
        noise: Standard normal noise (B, …), a sample for each; that of `start_noise` for another law of the noise.
        steps: The number of steps, at least 1.
        key: A random key, for samplers that take fresh noise on their way.
        condition: A pytree of (B, …) arrays.
        null_condition: What stands for no condition, for guidance.
        sampling: Sampler, grid and guidance; its sampler "default" is the objective's.
        trajectory: Whether to return the states before and after every evaluation, (n + 1, B, …).

    Raises:
        ValueError: One line that says what is wrong or missing.
    """
    if objective.prediction_input:
        raise ValueError(f"{_name(objective)} samples nothing by itself; give its network to `sample` as refiner=")
    sampling = _sampling(objective, sampling)
    if sampling.refines:
        raise ValueError(
            f"sampling.pattern is {sampling.pattern!r}; it must have no R, for which `sample` takes refiner="
        )
    transport, noise = objective.transport, jnp.asarray(noise)
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    if key is None and (plan.c > 0).any():
        raise ValueError(f"key is missing; the sampler {sampling.sampler!r} takes fresh noise in {steps} steps")
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(noise))
    guided = sampling.guidance != 1 and not sampling.guidance_input
    if guided and (condition is None or null_condition is None):
        raise ValueError(
            f"condition, null_condition: missing; sampling.guidance is {sampling.guidance:g}, which uses both"
        )
    guidance = guidance_scale(sampling.guidance, sampling.guidance_channels, noise) if guided else 1.0
    null_condition = condition if null_condition is None else _broadcast(null_condition, condition)
    if sampling.guidance_input:
        condition = _dictionary(objective, condition)
        condition |= {"guidance": guidance_inputs(transport, sampling, len(noise), noise.dtype)}
    sigma = float(host_transport(transport).sigma(np.array(transport.T_max)))
    if draws := sampling.draw_steps if sampling.transition_head else 0:
        condition = _dictionary(objective, condition or {})
    x, made = sigma * noise, as_net(net, transport=transport)
    return sample(made, plan, x, condition, null_condition, keys, guidance, trajectory, draw_steps=draws)


def _sampling(objective: Objective, sampling: Sampling | None) -> Sampling:
    """The settings, checked, with the objective's sampler for "default"."""
    sampling = sampling or Sampling(sampler="default")
    name = objective.sampler if sampling.sampler == "default" else sampling.sampler
    sampling = dataclasses.replace(sampling, sampler=name, guidance_input=objective.input_guidance.active)
    sampling = dataclasses.replace(sampling, transition_head=objective.transition_head)
    sampling.check()
    return sampling


def _name(objective: Objective) -> str:
    return objective.name or "the objective"


def _check_step(objective: Objective, step: jax.Array | int | None) -> None:
    tangent, guidance = objective.tangent, objective.guidance
    if objective != objective.following(1):
        raise ValueError(f"{_name(objective)} changes over a share of all steps; give objective.following(steps)")
    changes = tangent.warmup_steps or tangent.differentiate_steps or (guidance.active and guidance.start_step)
    changes = changes or objective.annealing_steps
    if changes and step is None:
        raise ValueError(f"{_name(objective)} changes up to step {changes}; give step=, the number of the step, from 0")


def _check_inputs(objective: Objective, x: jax.Array, **given: jax.Array | None) -> None:
    """Raises ValueError for what the objective needs besides x and is not given, or is of another shape."""
    for name, value in given.items():
        shape = x.shape if name == "loser" else x.shape[:1]
        if (value is not None) != (name in objective.inputs):
            wrong = f"{_name(objective)} has no use for it" if value is not None else f"missing; it must be {shape}"
            raise ValueError(f"{name}: {wrong}")
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}; it must be {shape}")


def _nets(objective: Objective, net: Network, others: Mapping[str, Network]) -> dict[str, Net]:
    """All networks by name, in the form that the objective calls."""
    for name in others:
        if name not in objective.networks[1:]:
            known = ", ".join(objective.networks[1:]) or "no other network"
            raise ValueError(f"{name}: no network of {_name(objective)}, which calls {known}")
    for name in objective.networks[1:]:
        if name not in others and name != "float32":
            what = "an EMA of the network"
            if name in objective.teachers:
                what = "a trained network, which stays as it is"
            elif name in objective.auxiliary_heads:
                what = "a function of states (B, N, D) that returns logits (B, K, N), which the same loss trains"
            elif name in objective.auxiliary:
                what = "a second network, which the same loss trains"
            elif name in averages(objective.auxiliary):
                what = f"an EMA of {averages(objective.auxiliary)[name][0]}"
            elif name in objective.reward.networks:
                what = "a frozen function of x that returns ClassScores"
            raise ValueError(f"{_name(objective)} also calls {name!r}; give {name}=, {what}")
    transport, as_they_are = objective.transport, (*objective.auxiliary_heads, *objective.reward.networks)
    nets: dict[str, Any] = {
        name: other if name in as_they_are else as_net(other, transport=transport) for name, other in others.items()
    }
    return {"float32": as_net(net, transport=transport)} | nets | {"online": as_net(net, objective.heads, transport)}


def _conditions(
    objective: Objective, condition: PyTree, null_condition: PyTree, dropout: float, is_null: jax.Array
) -> tuple[PyTree, PyTree]:
    """The condition, dropped where `is_null`, and the null condition of every example."""
    guided = objective.guidance.uses_null or objective.input_guidance.active
    guided = guided or (bool(objective.teachers) and objective.teacher.guidance != 1 and not objective.teacher.weaker)
    if not 0 <= dropout <= 1:
        raise ValueError(f"condition_dropout is {dropout}; it must lie in [0, 1]")
    if (guided or dropout) and (condition is None or null_condition is None):
        why = f"{_name(objective)} has guided targets" if guided else f"condition_dropout is {dropout}"
        raise ValueError(f"condition, null_condition: missing; {why}, which takes both")
    if null_condition is None:
        return condition, condition
    if objective.input_guidance.active or objective.prediction_input:
        condition, null_condition = _dictionary(objective, condition), _dictionary(objective, null_condition)
    null_condition = _broadcast(null_condition, condition)
    dropped = jax.tree.map(lambda c, null: jnp.where(expand(is_null, c), null, c), condition, null_condition)
    return dropped, null_condition


def _broadcast(null_condition: PyTree, condition: PyTree) -> PyTree:
    return jax.tree.map(lambda c, null: jnp.broadcast_to(null, jnp.shape(c)), condition, null_condition)


def _dictionary(objective: Objective, condition: PyTree) -> dict[str, Any]:
    """A copy of a condition that gets further inputs of the network: "guidance" (B, 3), scale and interval."""
    if not isinstance(condition, Mapping):
        what = "the guidance scale to it as 'guidance' (B, 3)"
        if objective.prediction_input:
            what = "a prediction to it as 'prediction' (B, …)"
        raise ValueError(f"condition must be a dictionary of arrays for {_name(objective)}, which adds {what}")
    return dict(condition)
