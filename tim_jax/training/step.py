"""The train step: a pure function of (state, batch), whatever the objective and the mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tim_jax.training.state import TrainState, update_emas
from tim_jax.types import Examples

# What a step tells of every row: times, noise levels at both, unweighted error, loss.
BY_ROW = ("t", "r", "level_t", "level_r", "error", "loss")

COMMON = {*BY_ROW, "denoising", "tangent", "alignment"}  # what every objective tells of a row

Conditions = Callable[[dict[str, jax.Array], jax.Array], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step is made of, besides state and batch.

    nets: name → function (params of the student or an average) → network on a tuple of Queries. "online" trains;
    "float32" is the same in float32 at the highest matmul precision; averages go by "ema", frozen networks by their
    own names.
    objective: (nets, rows, step, key) → (loss per row, metrics). tx: optimizer. emas: decays by name.
    conditions: (batch, is_null (B,)) → (condition, null condition). seed: of all draws. condition_dropout: share of
    rows with the null condition. dropout: whether the network needs row keys. accumulation: microbatches. auxiliary:
    networks of the online network's kind that are trained together with it.
    """

    nets: Mapping[str, Callable]
    objective: Callable
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    emas: Mapping[str, float]
    conditions: Conditions
    seed: int
    condition_dropout: float = 0.1
    dropout: bool = False
    accumulation: int = 1
    auxiliary: tuple[str, ...] = ()


def make_rows(settings: StepSettings, batch: dict[str, jax.Array], key: jax.Array) -> Examples:
    """A batch with noise, unless it brings its own, dropped conditions and row keys, each drawn over the global batch
    by a key of its own."""
    noise_key, null_key, rows_key = jax.random.split(key, 3)
    x = batch["x"]
    is_null = jax.random.bernoulli(null_key, settings.condition_dropout, x.shape[:1])
    condition, null_condition = settings.conditions(batch, is_null)
    return Examples(
        x=x,
        noise=batch["noise"] if "noise" in batch else jax.random.normal(noise_key, x.shape, x.dtype),
        condition=condition,
        null_condition=null_condition,
        is_null=is_null,
        features=batch.get("features"),
        features_mask=batch.get("features_mask"),
        weight=batch.get("weight", jnp.ones(x.shape[:1], x.dtype)),
        keys=jax.random.split(rows_key, x.shape[0]) if settings.dropout else None,
    )


def train_step(
    settings: StepSettings, state: TrainState, batch: dict[str, jax.Array], frozen: Mapping[str, Any] = {}
) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
    """One update. batch: {"x": (B, h, w, C), …}. Returns the next state, scalar metrics and BY_ROW (B,) by name.

    frozen: {name: parameters} of networks that the objective asks and nothing changes.
    An update with a loss or gradient that is not finite, of whichever part, is left out, with "nonfinite" 1 among the
    metrics: parameters, averages and optimizer are what they were, and only the step goes on. It depends on global
    sums, so that all devices decide alike.
    "grad_norm" and "update_norm" are the student's; the gradient of another part has its own, such as
    "grad_norm_score".
    """
    rows_key, objective_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), state.step))
    rows = make_rows(settings, batch, rows_key)

    def loss(params, rows, key):
        nets = {name: settings.nets["ema"](ema) for name, ema in state.emas.items()}
        nets |= {name: settings.nets[name](asked) for name, asked in frozen.items()}
        nets |= {part: settings.nets["online"](trained) for part, trained in params.items()}
        nets["float32"] = settings.nets["float32"](jax.lax.stop_gradient(params["online"]))
        loss_B, metrics = settings.objective(nets, rows, state.step, key)
        total = jnp.sum(loss_B * rows.weight) / jnp.maximum(rows.weight.sum(), 1.0)
        by_row = {name: (metrics | {"loss": loss_B})[name] for name in BY_ROW}
        return total, ({"loss": total, **summarise(metrics, rows.weight)}, by_row)

    grad = jax.grad(loss, has_aux=True)
    if settings.accumulation == 1:
        grads, (metrics, by_row) = grad(state.params, rows, objective_key)
    else:
        grads, metrics, by_row = accumulate(grad, state.params, rows, objective_key, settings.accumulation)

    grad_norms = {part: optax.tree.norm(tree) for part, tree in grads.items()}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(jnp.stack(list(grad_norms.values()))).all()
    updates, opt_state = settings.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    emas = update_emas(state.emas, params["online"], settings.emas, state.step)
    changed, kept = (params, emas, opt_state), (state.params, state.emas, state.opt_state)
    params, emas, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, kept)
    metrics |= {
        "grad_norm": grad_norms.pop("online"),
        **{f"grad_norm_{part}": norm for part, norm in grad_norms.items()},
        "update_norm": optax.tree.norm(updates["online"]),
        "learning_rate": settings.schedule(state.step),
        "nonfinite": 1.0 - finite,
    }
    return TrainState(state.step + 1, params, emas, opt_state), metrics, by_row


def accumulate(grad: Callable, params: Any, rows: Examples, key: jax.Array, count: int) -> tuple[Any, dict, dict]:
    """Mean gradients and metrics over microbatches, and what is known by row; microbatch m holds rows m, m + count, …

    Interleaving leaves every device its own rows.
    """
    micro = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), rows)

    def add(total, inputs):
        m, rows = inputs
        grads, (metrics, by_row) = grad(params, rows, jax.random.fold_in(key, m))
        return jax.tree.map(jnp.add, total, (grads, metrics)), by_row

    grads, (metrics, _) = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, metrics))
    total, by_row = jax.lax.scan(add, zeros, (jnp.arange(count), micro))
    grads, metrics = jax.tree.map(lambda x: x / count, total)
    return grads, metrics, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), by_row)


def summarise(metrics: dict[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
    """Scalars from an objective's per-row metrics: unweighted row errors for r = t and r ≠ t apart, tangent size, and
    the mean of each that this objective alone has."""
    equal = metrics["t"] == metrics["r"]

    def mean(values, mask):
        mask = mask * weight
        return jnp.sum(values * mask) / jnp.maximum(mask.sum(), 1.0)

    everywhere = jnp.ones_like(equal)
    return {
        "error_equal": mean(metrics["error"], equal),
        "error_moving": mean(metrics["error"], ~equal),
        "tangent_rms": mean(metrics["tangent"], ~equal),
        "alignment": mean(metrics["alignment"], everywhere),
        **{name: mean(values, everywhere) for name, values in metrics.items() if name not in COMMON},
    }
