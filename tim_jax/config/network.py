"""The network of a configuration."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.networks import NETWORKS, Transformer
from tim_jax.networks.attention.pallas import has_kernels
from tim_jax.networks.checks import check_heads_of, image_inputs
from tim_jax.networks.taps import check_taps
from tim_jax.transitions import prediction, slices
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.transports import Transport
from tim_jax.types import DTYPES, Query

MAX_CLASSES = 10**7


def make_network(config: ConfigDict, objective: Objective) -> Transformer:
    """The network of `model`, with as many channels as the examples have, and the heads that the objective needs.

    Raises ValueError, naming the key.
    """
    model, data, transport = config.model.to_dict(), config.data, objective.transport
    network, size, dtype = (model.pop(name) for name in ("network", "size", "dtype"))
    if network not in NETWORKS:
        raise ValueError(f"model.network is {network!r}; it must be one of {', '.join(NETWORKS)}")
    kind = NETWORKS[network]
    for name, value, known in (("size", size, kind.SIZES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"model.{name} is {value!r}; it must be one of {', '.join(known)}")
    if model["condition"] == "class" and not 1 <= model["num_classes"] <= MAX_CLASSES:
        raise ValueError(
            f"model.num_classes is {model['num_classes']}; it must be at least 1, and at most {MAX_CLASSES}"
        )
    sized = {name: model[name] or default for name, default in kind.SIZES[size].items()}
    if not model["heads"]:
        check_heads_of(
            sized["heads"], sized["width"], given=f"0, which stands for {sized['heads']} of model.size {size!r}"
        )
    fields = {field.name for field in dataclasses.fields(kind)}  # others have no effect, and are at their defaults
    return kind(
        **{name: value for name, value in (model | sized).items() if name in fields},
        dtype=DTYPES[dtype],
        channels=data.channels,
        z_dim=data.features_width,
        text_width=data.text_width,
        guidance_input=objective.input_guidance.active,
        prediction_input=objective.prediction_input,
        image_channels=objective.coupling.channels(data.channels),
        transition_head=objective.transition_head,
        output_heads=objective.heads,
        to_F=None if transport.prediction == "F" else functools.partial(prediction.in_F, transport),
        slice_ends=slices.ends(objective.transport, objective.times, objective.slices),
    )


def initialiser(config: ConfigDict, network: Transformer) -> Callable[[jax.Array], Any]:
    """key → boxed parameters of the network."""
    data = config.data

    def init(key: jax.Array) -> Any:  # makes the arrays itself: where it is only traced they may be of any size
        x = jnp.zeros((1, data.height, data.width, data.channels))
        time = jnp.zeros((1,))
        if config.model.condition == "class":
            condition = {"label": jnp.zeros((1,), jnp.int32)}
        else:
            condition = {
                "text": jnp.zeros((1, data.text_tokens, data.text_width)),
                "mask": jnp.ones((1, data.text_tokens), bool),
            }
        if network.guidance_input:
            condition["guidance"] = jnp.ones((1, 3))
        for name, channels in image_inputs(network).items():
            condition[name] = jnp.zeros((*x.shape[:-1], channels))
        if network.transition_head:
            condition |= {"transition": x, "transition_s": x[..., 0]}
        return network.init(key, (Query(x, time, time, condition),))["params"]

    return init


def check_tokens(said: str, shape: tuple[int, int], patch: int, mesh: Mesh) -> None:
    """Raises ValueError that begins with `said` if mesh.sequence does not divide the tokens of (height, width)."""
    tokens, devices = shape[0] // patch * (shape[1] // patch), mesh.shape["sequence"]
    if tokens % devices:
        raise ValueError(
            f"{said} {shape[0]}, {shape[1]}; they must give a multiple of mesh.sequence, {devices}, tokens, and "
            f"give {tokens}"
        )


def check_context(network: Transformer, mesh: Mesh) -> None:
    """Raises ValueError if mesh.sequence does not divide the tokens that carry conditions."""
    tokens, devices = sum(network.context_tokens.values()), mesh.shape["sequence"]
    if tokens % devices:
        keys = [key for key in ("class_tokens", "guidance_tokens", "interval") if hasattr(network, key)]
        values = ", ".join(str(getattr(network, key)) for key in keys)
        named = f"{', '.join(f'model.{key}' for key in keys)} are {values}"
        raise ValueError(f"{named}; they must give a multiple of mesh.sequence, {devices}, tokens, and give {tokens}")


def check_shapes(config: ConfigDict, network: Transformer) -> None:
    """Raises ValueError if the network does not take images of all shapes that there may be."""
    data, patch = config.data, network.patch_size
    shapes = [(data.height, data.width), *data.buckets.table]
    if data.buckets.area and not data.buckets.table:
        shapes.append((patch, 2 * patch))  # whatever the images are
    for height, width in shapes:
        network.check_grid(height // patch, width // patch)


def check_clock(network: Transformer, transport: Transport) -> None:
    """Raises ValueError for a network with the clock 1 − t on a transport whose times do not lie in [0, 1]."""
    clock = getattr(network, "clock", "t")
    ends = jnp.asarray([transport.T_min, transport.T_max])
    if clock != "t" and not bool(jnp.allclose(transport.c_noise(ends), jnp.array([0.0, 1.0]), atol=1e-4)):
        raise ValueError(
            f"model.clock is {clock!r}; it must be 't' for transport.name {transport.name!r}, whose times are "
            "not those from 0 to 1"
        )


def with_attention(network: Transformer, mesh: Mesh) -> Transformer:
    """Returns the network with attention as the devices have it, and says so where kernels are named and are not there.

    A GPU that programs are only compiled for is known here, and not where attention is traced.
    """
    device, width, dtype = mesh.devices.flat[0], network.width // network.heads, jnp.dtype(network.dtype)
    if network.attention != "pallas" or has_kernels(device, width, dtype):
        return network
    warn_once(
        f"model.attention is 'pallas', which has no kernels for {device.device_kind} with heads of width {width} in "
        f"{dtype}; it runs as 'blockwise'"
    )
    return network.clone(attention="blockwise")


def warn_of_whole_parameters(network: Transformer, mesh: Mesh) -> None:
    """Says so where `mesh.fsdp` cannot share parameters out."""
    fsdp = mesh.shape["fsdp"]
    if network.width % fsdp:
        warn_once(
            f"mesh.fsdp is {fsdp}; it does not divide the width of the network, {network.width}, and most parameters "
            "stay whole on every device; without mesh.data and mesh.fsdp a size is chosen that does"
        )


@functools.cache
def warn_once(message: str) -> None:
    """Says so on stderr, however often a process asks."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def check_heads(objective: Objective, networks: Mapping[str, Transformer]) -> None:
    """Raises ValueError, naming the key, for heads on blocks that a network does not have. networks: by name."""
    for heads in objective.auxiliary_heads.values():
        if heads.trunk in networks:
            check_taps(heads.key, heads.blocks, networks[heads.trunk])
