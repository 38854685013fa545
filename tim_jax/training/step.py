"""The train step: a pure function of state, batch and seed, whatever the objective and the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import optax

from tim_jax.training.optimizer import updates_made
from tim_jax.training.power_ema import PowerFunction
from tim_jax.training.state import TrainState, step_key, update_emas
from tim_jax.types import Examples, PyTree

# What a step returns of every example: times, noise levels at both, unweighted error, loss, weight of the loss.
PER_EXAMPLE = ("t", "r", "level_t", "level_r", "error", "loss", "weight")

COMMON = {*PER_EXAMPLE, "denoising", "tangent", "alignment"}  # what every objective returns of an example

Conditions = Callable[[dict[str, jax.Array], jax.Array], tuple[Any, Any]]


class Remembering(Protocol):
    """An objective with a memory."""

    def remember(self, memory: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the memory with a global batch in it."""
        ...


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step is made of, besides state, batch and seed.

    Attributes:
        nets: Functions of parameters that return a network on a tuple of Queries, by name: "online" for every network
            that trains, "float32" for the online network in float32 at the highest matmul precision, "ema" for all
            EMAs, and one for each frozen network by its own name.
        objective: Function (nets, examples, step, key, number of the microbatch) → (loss (B,), metrics (B,) by name).
            With `memory` a `Remembering` one, which gets that as a further argument.
        tx: Optimizer.
        schedule: Learning rate by the number of updates made before, for the metrics.
        emas: Decays of the EMAs by name; see `update_emas`.
        conditions: Function (batch, is_null (B,)) → (condition, null condition).
        condition_dropout: Share of examples with the null condition, in [0, 1].
        dropout: Whether the network needs a key for each example.
        accumulation: Number of microbatches.
        noise: Draws noise: function (key, shape (B, …), type of the numbers).
        auxiliary: Names of auxiliary networks of the same kind that train as well.
        ema_warmup: Whether the decays of EMAs start low; see `update_emas`.
        couple: Function (key, x, normal noise) → (degraded image, noise), where noise depends on data.
        slices: Of the network's layers, of which slice step mod slices alone changes in a step.
        memory: Shapes and types of what the objective remembers, by name.
    """

    nets: Mapping[str, Callable]
    objective: Callable
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    emas: Mapping[str, float | PowerFunction]
    conditions: Conditions
    condition_dropout: float = 0.1
    dropout: bool = False
    accumulation: int = 1
    noise: Callable = jax.random.normal
    auxiliary: tuple[str, ...] = ()
    ema_warmup: bool = True
    couple: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    slices: int = 1
    memory: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)


def make_examples(settings: StepSettings, batch: dict[str, jax.Array], key: jax.Array) -> Examples:
    """Returns a batch with noise, unless it brings its own, dropped conditions and keys of examples.

    Where noise is coupled with data, both conditions have the degraded image.

    Each is drawn over the global batch by a key of its own, so that it does not depend on the mesh.
    """
    noise_key, null_key, examples_key = jax.random.split(key, 3)
    x = batch["x"]
    is_null = jax.random.bernoulli(null_key, settings.condition_dropout, x.shape[:1])
    condition, null_condition = settings.conditions(batch, is_null)
    noise = batch["noise"] if "noise" in batch else settings.noise(noise_key, x.shape, x.dtype)
    if settings.couple is not None:
        image, noise = settings.couple(key, x, noise)
        condition, null_condition = condition | {"image": image}, null_condition | {"image": image}
    return Examples(
        x=x,
        noise=noise,
        condition=condition,
        null_condition=null_condition,
        is_null=is_null,
        features=batch.get("features"),
        features_mask=batch.get("features_mask"),
        weight=batch.get("weight", jnp.ones(x.shape[:1], x.dtype)),
        keys=jax.random.split(examples_key, x.shape[0]) if settings.dropout else None,
        loser=batch.get("loser"),
        reward=batch.get("reward"),
    )


def train_step(
    settings: StepSettings,
    state: TrainState,
    batch: dict[str, jax.Array],
    seed: jax.Array,
    frozen: Mapping[str, Any] = {},
) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
    """Makes one update.

    An update whose loss or gradient is not finite, of whichever network, is left out, with "nonfinite" 1 among the
    metrics: parameters, EMAs, optimizer and memory are what they were, and only the step goes on. That depends on
    global sums, so that all devices decide alike. The memory gets the whole batch before the loss reads it, and all
    microbatches read the same.

    Args:
        settings: What the step is made of.
        state: The state before.
        batch: {"x": (B, h, w, C), …}.
        seed: Of everything that is drawn, uint32 scalar. It is an argument, so that another one compiles nothing.
        frozen: Parameters by name of networks that the objective calls and nothing changes.

    Returns:
        The next state, scalar metrics by name, and `PER_EXAMPLE`, arrays (B,) by name. "grad_norm" and "update_norm"
        are those of the online network; an auxiliary one has its own, such as "grad_norm_score".
    """
    examples_key, objective_key = jax.random.split(step_key(seed, state.step))
    examples = make_examples(settings, batch, examples_key)

    assert examples.weight is not None
    total_weight = nonzero(examples.weight.sum())
    memory, remembering = state.memory, settings.objective
    if settings.memory:
        memory = cast(Remembering, settings.objective).remember(state.memory, batch)
        remembering = functools.partial(settings.objective, memory=memory)

    def loss(params, examples, key, batch):
        nets = {name: settings.nets["ema"](ema) for name, ema in state.emas.items()}
        nets |= {name: settings.nets[name](values) for name, values in frozen.items()}
        nets |= {part: settings.nets["online"](values) for part, values in params.items()}
        nets["float32"] = settings.nets["float32"](jax.lax.stop_gradient(params["online"]))
        loss_B, metrics = remembering(nets, examples, state.step, key, batch)
        per_example = metrics | {"loss": loss_B, "weight": examples.weight}
        sums = {"loss": weighted(loss_B, examples.weight), **summarise(metrics, examples)}
        share = jnp.sum(loss_B * examples.weight) / total_weight
        return share, (sums, {name: per_example[name] for name in PER_EXAMPLE})

    grad = jax.grad(loss, has_aux=True)
    if settings.accumulation == 1:
        grads, (sums, per_example) = grad(state.params, examples, objective_key, state.step)
    else:
        grads, sums, per_example = accumulate(
            grad, state.params, examples, objective_key, state.step, settings.accumulation
        )
    metrics = {name: total / nonzero(weight) for name, (total, weight) in sums.items()}

    grad_norms = {part: optax.tree.norm(tree) for part, tree in grads.items()}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(jnp.stack(list(grad_norms.values()))).all()
    updates, opt_state = settings.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if settings.slices > 1:
        kept = (state.params, state.opt_state)
        params, opt_state = only_slice((params, opt_state), kept, state.step % settings.slices, settings.slices)
    emas = update_emas(state.emas, params["online"], settings.emas, state.step, settings.ema_warmup)
    after, before = (params, emas, opt_state, memory), (state.params, state.emas, state.opt_state, state.memory)
    params, emas, opt_state, memory = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    metrics |= {
        "grad_norm": grad_norms.pop("online"),
        **{f"grad_norm_{part}": norm for part, norm in grad_norms.items()},
        "update_norm": optax.tree.norm(updates["online"]),
        "learning_rate": settings.schedule(updates_made(state.opt_state)),
        "nonfinite": 1.0 - finite,
    }
    return TrainState(state.step + 1, params, emas, opt_state, memory), metrics, per_example


def only_slice(new: PyTree, old: PyTree, which: jax.Array, slices: int) -> PyTree:
    """Returns the new trees, but the old layers of all other slices: without gradients Adam would still move them.

    Layers are the first axis of whatever lies below "blocks".
    """

    def choose(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        if not any(getattr(part, "key", None) == "blocks" for part in path) or not new.ndim:
            return new
        layers = jnp.arange(len(new)).reshape(-1, *[1] * (new.ndim - 1))
        return jnp.where(layers // (len(new) // slices) == which, new, old)

    return jax.tree_util.tree_map_with_path(choose, new, old)


def accumulate(
    grad: Callable, params: Any, examples: Examples, key: jax.Array, step: jax.Array, count: int
) -> tuple[Any, dict[str, Any], dict[str, jax.Array]]:
    """Returns sums of gradients and metrics over microbatches, and what is known of each example.

    Microbatch m holds the examples m, m + count, m + 2 count, …, which leaves every device its own.

    Args:
        grad: Function (params, examples, key, number of the microbatch) → (gradients, (metrics, arrays of each
            example)).
        params: Parameters.
        examples: The whole batch; `count` divides B.
        key: From which each microbatch gets a key of its own.
        step: Number of steps done before.
        count: Number of microbatches.
    """
    micro = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), examples)

    def add(total, inputs):
        m, part = inputs
        grads, (metrics, per_example) = grad(params, part, jax.random.fold_in(key, m), step * count + m)
        return jax.tree.map(jnp.add, total, (grads, metrics)), per_example

    grads, (metrics, _) = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], micro), key, step)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, metrics))
    (grads, metrics), per_example = jax.lax.scan(add, zeros, (jnp.arange(count), micro))
    return grads, metrics, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), per_example)


def nonzero(weight: jax.Array) -> jax.Array:
    """Returns a sum of weights that may be divided by: 1 where there are none, and with them no examples."""
    return jnp.where(weight == 0, 1.0, weight)


def weighted(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Σ w·value and Σ w, which sum over microbatches; their quotient is the mean."""
    return jnp.sum(values * weight), jnp.sum(weight)


def summarise(metrics: dict[str, jax.Array], examples: Examples) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns weighted sums of an objective's metrics of each example; see `weighted`.

    Args:
        metrics: Arrays (B,) by name.
        examples: Give the weights, 0 for padding.

    Returns:
        Unweighted errors for r = t and r ≠ t separately, the size of the tangent, the alignment error of examples that
        have features, and each metric that this objective alone has.
    """
    assert examples.weight is not None
    weight, equal, mask = examples.weight, metrics["t"] == metrics["r"], examples.features_mask
    return {
        "error_equal": weighted(metrics["error"], equal * weight),
        "error_moving": weighted(metrics["error"], ~equal * weight),
        "tangent_rms": weighted(metrics["tangent"], ~equal * weight),
        "alignment": weighted(metrics["alignment"], weight if mask is None else (mask > 0) * weight),
        **{name: weighted(values, weight) for name, values in metrics.items() if name not in COMMON},
    }
