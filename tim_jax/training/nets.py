"""What a train step calls, from a network module: functions of parameters that return a network, and conditions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.training import names


def apply_alone(network: Any, params: Any, queries: Any, **options: Any) -> Any:
    """Applies a network on one device."""
    return in_F(network, queries, network.apply({"params": params}, queries, **options))


def in_F(network: Any, queries: Any, outputs: Any) -> Any:
    """Returns the outputs of a network with the F that they stand for, by its field `to_F`; None: they are F."""
    return outputs if network.to_F is None else tuple(map(network.to_F, queries, outputs))


def asked(taps: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the options of a call with taps: none without them, so that networks need not have them."""
    return {"taps": tuple(taps)} if taps else {}


def make_nets(
    network: Any, hidden: bool = False, apply: Callable = apply_alone, frozen: tuple[str, ...] = ()
) -> dict[str, Callable]:
    """Returns functions of parameters that return the network on a tuple of Queries, as `StepSettings.nets`.

    All of these networks, like those of `frozen_net`, return states after some blocks if they are called with `taps`.

    Args:
        network: A module with `clone`, `apply` and the field `to_F`.
        hidden: Whether the online network returns hidden states as well.
        apply: How the network runs: `sharding.apply_on_mesh` on a mesh.
        frozen: Patterns of parameters of the online network that get no gradient.
    """
    float32 = network.clone(dtype=jnp.float32)

    def at_highest_precision(params: Any) -> Callable:
        def net(queries, taps=()):
            with jax.default_matmul_precision("highest"):
                return apply(float32, params, queries, **asked(taps))

        return net

    def stop_frozen(params: Any) -> Any:
        selected = names.select(params, frozen)
        return jax.tree.map(lambda stop, leaf: jax.lax.stop_gradient(leaf) if stop else leaf, selected, params)

    return {
        "online": lambda params: (
            lambda queries, taps=(): apply(network, stop_frozen(params), queries, hidden=hidden, **asked(taps))
        ),
        "ema": lambda params: lambda queries, taps=(): apply(network, params, queries, **asked(taps)),
        "float32": at_highest_precision,
    }


def frozen_net(network: Any, guidance: tuple[float, float, float], apply: Callable = apply_alone) -> Callable:
    """Returns a function of parameters that returns a network which is never trained, without dropout.

    Args:
        network: A module with `apply`.
        guidance: The guidance scale and the times between which it applies, for a network that has them as inputs;
            they replace those of the queries.
        apply: As in `make_nets`.
    """

    def with_guidance(query):
        condition = query.condition
        if network.guidance_input:
            condition = condition | {"guidance": jnp.tile(jnp.asarray([guidance], query.t.dtype), (len(query.t), 1))}
        return query._replace(condition=condition, key=None)

    return lambda params: (
        lambda queries, taps=(): apply(network, params, tuple(map(with_guidance, queries)), **asked(taps))
    )


def class_conditions(num_classes: int) -> Callable:
    """Returns `StepSettings.conditions` of labels; `num_classes` is the null label, where a condition is dropped."""

    def conditions(batch, is_null):
        null = jnp.full_like(batch["label"], num_classes)
        return {"label": jnp.where(is_null, null, batch["label"])}, {"label": null}

    return conditions


def text_conditions(own_mask: bool = True) -> Callable:
    """Returns `StepSettings.conditions` of text features (B, M, T) and their mask (B, M).

    Where a condition is dropped, they are those of the empty prompt, "null_text" (1, M, T) and "null_mask" (1, M).

    Args:
        own_mask: Whether each text has its own mask, of its tokens alone; otherwise all have `up_to_longest`.
    """

    def conditions(batch: dict[str, jax.Array], is_null: jax.Array) -> tuple[dict, dict]:
        text, mask = batch["text"], batch["mask"]
        null_text = jnp.broadcast_to(batch["null_text"], text.shape)
        null_mask = jnp.broadcast_to(batch["null_mask"], mask.shape)
        text = jnp.where(is_null[:, None, None], null_text, text)
        mask = jnp.where(is_null[:, None], null_mask, mask)
        if not own_mask:
            mask = null_mask = up_to_longest(mask)
        return {"text": text, "mask": mask}, {"text": null_text, "mask": null_mask}

    return conditions


def up_to_longest(mask_BM: jax.Array) -> jax.Array:
    """Returns one mask (B, M) for all texts of a batch, of as many tokens as the longest of them has.

    It is that of the published code, which trims the features of a batch to its longest caption and attends to all that
    is left: shorter captions, and the empty one that stands for no condition, with their padding.

    Args:
        mask_BM: True at the tokens of each text, which are its first.
    """
    return jnp.broadcast_to(mask_BM.any(axis=0, keepdims=True), mask_BM.shape)
