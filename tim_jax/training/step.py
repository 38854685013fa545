"""The train step: a pure function of state, batch and seed, whatever the objective and the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import optax

from tim_jax.training.accumulation import accumulate, nonzero, weighted
from tim_jax.training.auxiliary import fit_auxiliary
from tim_jax.training.optimizer import updates_made
from tim_jax.training.power_ema import PowerFunction
from tim_jax.training.state import TrainState, step_key, update_emas
from tim_jax.types import Auxiliary, Examples, PyTree, averages

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
            EMAs, and one for each frozen network and for heads by their own names.
        objective: Function (nets, examples, step, key, number of the microbatch) → (loss (B,), metrics (B,) by name).
            With `memory` a `Remembering` one, which gets that as a further argument; a `Fitting` one where a step makes
            several updates of an auxiliary network.
        tx: Optimizer.
        schedule: Learning rate by the number of updates made before, for the metrics.
        emas: Decays of the EMAs by name; see `update_emas`.
        conditions: Function (batch, is_null (B,)) → (condition, null condition).
        condition_dropout: Share of examples with the null condition, in [0, 1].
        dropout: Whether the network needs a key for each example.
        accumulation: Number of microbatches.
        noise: Draws noise: function (key, shape (B, …), type of the numbers).
        auxiliary: Networks that train as well, by name.
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
    auxiliary: Mapping[str, Auxiliary] = dataclasses.field(default_factory=dict)
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

    An update that is not finite, or whose loss or gradient is not, of whichever network, is left out, with "nonfinite"
    1 among the metrics: parameters, EMAs, optimizer and memory are what they were, and only the step goes on. That
    depends on global sums, so that all devices decide alike. The memory gets the whole batch before the loss reads it,
    and all microbatches read the same.

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

    def nets_of(params):
        return make_nets(settings, params, state.emas, frozen)

    params, opt_state, fitted = fit_auxiliary(settings, state, examples, objective_key, nets_of)

    def loss(params, examples, key, batch):
        loss_B, metrics = remembering(nets_of(params), examples, state.step, key, batch)
        per_example = metrics | {"loss": loss_B, "weight": examples.weight}
        sums = {"loss": weighted(loss_B, examples.weight), **summarise(metrics, examples)}
        share = jnp.sum(loss_B * examples.weight) / total_weight
        return share, (sums, {name: per_example[name] for name in PER_EXAMPLE})

    grad = jax.grad(loss, has_aux=True)
    if settings.accumulation == 1:
        grads, (sums, per_example) = grad(params, examples, objective_key, state.step)
    else:
        grads, sums, per_example = accumulate(grad, params, examples, objective_key, state.step, settings.accumulation)
    metrics = {name: total / nonzero(weight) for name, (total, weight) in sums.items()}

    grad_norms = {part: optax.tree.norm(tree) for part, tree in grads.items()}
    finite = fitted & jnp.isfinite(metrics["loss"]) & jnp.isfinite(jnp.stack(list(grad_norms.values()))).all()
    updates, new_opt_state = settings.tx.update(grads, opt_state, params)
    update_norms = {part: optax.tree.norm(tree) for part, tree in updates.items()}
    finite &= jnp.isfinite(jnp.stack(list(update_norms.values()))).all()
    before = state.params, state.emas, state.opt_state, state.memory

    def advanced(new_opt_state: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        new_params = optax.apply_updates(params, updates)
        if settings.slices > 1:
            kept, which = (state.params, state.opt_state), state.step % settings.slices
            new_params, new_opt_state = only_slice((new_params, new_opt_state), kept, which, settings.slices)
        of_online = {name: state.emas[name] for name in settings.emas}
        emas = update_emas(of_online, new_params["online"], settings.emas, state.step, settings.ema_warmup)
        for name, (part, decay) in averages(settings.auxiliary).items():
            ema = {name: state.emas[name]}
            emas |= update_emas(ema, new_params[part], {name: decay}, state.step, settings.ema_warmup)
        return new_params, emas, new_opt_state, memory

    def selected() -> tuple[PyTree, PyTree, PyTree, PyTree]:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), advanced(new_opt_state), before)

    def branched() -> tuple[PyTree, PyTree, PyTree, PyTree]:
        # The optimizer's state is made here once more: what is made above would lie beside the old state until the
        # update is known to be finite, and here it is written over it.
        again = lambda: advanced(settings.tx.update(grads, opt_state, params)[1])  # noqa: E731
        return jax.lax.cond(finite, again, lambda: before)

    # On a TPU a selection is fused with what makes the new state, and a branch would copy. On a CPU it is the reverse.
    params, emas, opt_state, memory = jax.lax.platform_dependent(cpu=branched, default=selected)
    metrics |= {
        "grad_norm": grad_norms.pop("online"),
        **{f"grad_norm_{part}": norm for part, norm in grad_norms.items()},
        "update_norm": update_norms["online"],
        "learning_rate": settings.schedule(updates_made(state.opt_state)),
        "nonfinite": 1.0 - finite,
    }
    return TrainState(state.step + 1, params, emas, opt_state, memory), metrics, per_example


def make_nets(
    settings: StepSettings, params: Mapping[str, Any], emas: Mapping[str, Any], frozen: Mapping[str, Any]
) -> dict[str, Callable]:
    """Returns the networks by name, those that train and their EMAs, and the frozen ones."""
    own = settings.nets
    averaged = {name: part for name, (part, _) in averages(settings.auxiliary).items()}
    nets = {name: own.get(averaged.get(name, "ema"), own["ema"])(ema) for name, ema in emas.items()}
    nets |= {name: own[name](values) for name, values in frozen.items()}
    nets |= {part: own.get(part, own["online"])(values) for part, values in params.items()}
    nets["float32"] = own["float32"](jax.lax.stop_gradient(params["online"]))
    return nets


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
