"""What a train step calls, from a network module: functions params → network, and conditions from a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.training import names


def apply_alone(network: Any, params: Any, queries: Any, **options: Any) -> Any:
    """A network on one device."""
    return network.apply({"params": params}, queries, **options)


def make_nets(
    network: Any, hidden: bool = False, apply: Callable = apply_alone, frozen: tuple[str, ...] = ()
) -> dict[str, Callable]:
    """{name: params → network on a tuple of Queries}, as `StepSettings.nets`. hidden: the student also returns hidden
    states. network: a module with `clone` and `apply`. apply: how it runs, `sharding.apply_by_rows` on a mesh.
    frozen: patterns of parameters of the student that get no gradient."""
    precise = network.clone(dtype=jnp.float32)

    def at_highest_precision(params):
        def net(queries):
            with jax.default_matmul_precision("highest"):
                return apply(precise, params, queries)

        return net

    def hold(params):
        held = names.select(params, frozen)
        return jax.tree.map(lambda hold, leaf: jax.lax.stop_gradient(leaf) if hold else leaf, held, params)

    return {
        "online": lambda params: lambda queries: apply(network, hold(params), queries, hidden=hidden),
        "ema": lambda params: lambda queries: apply(network, params, queries),
        "float32": at_highest_precision,
    }


def frozen_net(network: Any, guidance: tuple[float, float, float], apply: Callable = apply_alone) -> Callable:
    """params → network on a tuple of Queries, of a network that is only asked: without dropout.

    guidance: the scale and the times between which it holds, for a network that is told these; whatever queries say.
    """

    def put(query):
        condition = query.condition
        if network.guidance_input:
            condition = condition | {"guidance": jnp.tile(jnp.asarray([guidance], query.t.dtype), (len(query.t), 1))}
        return query._replace(condition=condition, key=None)

    return lambda params: lambda queries: apply(network, params, tuple(map(put, queries)))


def class_conditions(num_classes: int) -> Callable:
    """Labels, with the null label num_classes where a row's condition is dropped."""

    def conditions(batch, is_null):
        null = jnp.full_like(batch["label"], num_classes)
        return {"label": jnp.where(is_null, null, batch["label"])}, {"label": null}

    return conditions


def text_conditions(batch, is_null):
    """Text features and their mask, with those of the empty prompt where a row's condition is dropped."""
    text, mask = batch["text"], batch["mask"]
    null_text = jnp.broadcast_to(batch["null_text"], text.shape)
    null_mask = jnp.broadcast_to(batch["null_mask"], mask.shape)
    condition = {
        "text": jnp.where(is_null[:, None, None], null_text, text),
        "mask": jnp.where(is_null[:, None], null_mask, mask),
    }
    return condition, {"text": null_text, "mask": null_mask}
