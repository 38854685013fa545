"""Whether the fields of a network can be, and whether what it is called on fits them."""

from collections.abc import Collection, Mapping
from typing import Any

from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.networks.block import REMAT
from tim_jax.networks.heads import HEADS
from tim_jax.networks.transition_head import check_condition
from tim_jax.types import Query


def check_at_least(net: Any, least: int, *names: str) -> None:
    """Raises ValueError for a field of a network that is less."""
    for name in names:
        if getattr(net, name) < least:
            raise ValueError(f"model.{name} is {getattr(net, name)}; it must be at least {least}")


def check_choices(net: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Raises ValueError for a field of a network that is none of its choices, which are given by its name."""
    for name, known in choices.items():
        if getattr(net, name) not in known:
            raise ValueError(f"model.{name} is {getattr(net, name)!r}; it must be one of {', '.join(known)}")


def check_heads_of(heads: int, width: int, stack: str = "", given: str = "") -> None:
    """Raises ValueError unless so many attention heads split a width.

    Args:
        heads: their number.
        width: of all of them.
        stack: what both keys begin with.
        given: what the key of the heads has, if that is not their number.
    """
    if width % heads or width // heads % 4:
        raise ValueError(
            f"model.{stack}heads is {given or heads}; it must split model.{stack}width, {width}, into heads of a "
            "multiple of 4"
        )


def check_fields(net: Any) -> None:
    """Raises ValueError, naming the key, for fields of a `Transformer` that cannot be."""
    check_at_least(net, 1, "patch_size", "channels", "width", "depth", "heads")
    check_at_least(net, 0, "class_tokens", "guidance_tokens")
    check_heads_of(net.heads, net.width)
    if not 1 <= net.encoder_depth <= net.depth:
        raise ValueError(f"model.encoder_depth is {net.encoder_depth}; it must lie in 1 … model.depth, {net.depth}")
    if not 0 <= net.decoupled_depth <= net.blocks:
        raise ValueError(f"model.decoupled_depth is {net.decoupled_depth}; it must lie in 0 … {net.blocks}, the blocks")
    if net.slices < 1 or net.depth % net.slices:
        raise ValueError(f"model.slices is {net.slices}; it must be at least 1 and divide model.depth, {net.depth}")
    if net.slices > 1 and "pooled" in net.output_heads:
        raise ValueError(f"model.slices is {net.slices}; it must be 1 for states after a layer that most times skip")
    if not 0 <= net.dropout < 1:
        raise ValueError(f"model.dropout is {net.dropout}; it must lie in [0, 1)")
    choices = {"condition": net.CONDITIONS, "remat": REMAT, "attention": ("auto", *ATTENTION)}
    check_choices(net, choices)
    for name in net.output_heads:
        if name not in HEADS:
            raise ValueError(f"output_heads has {name!r}; each must be one of {', '.join(HEADS)}")


def image_inputs(net: Any) -> dict[str, int]:
    """Returns the channels of the images (B, h, w, channels) that a condition must have, by their names."""
    images = {"prediction": net.channels * net.prediction_input, "image": net.image_channels}
    return {name: channels for name, channels in images.items() if channels}


def check_groups(net: Any, groups: Any, hidden: bool) -> tuple[Query, ...]:
    """Returns the groups as Queries. Raises ValueError for groups that do not fit the network."""
    if isinstance(groups, Query):
        raise ValueError("groups is a single Query; it must be a tuple of Queries")
    if hidden and not net.z_dim:
        raise ValueError("hidden is True; it needs a network with z_dim > 0")
    groups = tuple(q if isinstance(q, Query) else Query(*q) for q in groups)
    p, C = net.patch_size, net.channels
    for q in groups:
        shape = q.x_t.shape
        if len(shape) != 4 or shape[1] % p or shape[2] % p or shape[3] != C:
            raise ValueError(f"x_t has shape {shape}; it must be (B, h, w, {C}), h and w multiples of patch_size {p}")
        net.check_grid(shape[1] // p, shape[2] // p)
        if q.t.shape != shape[:1] or q.r.shape != shape[:1]:
            raise ValueError(f"t, r have shapes {q.t.shape}, {q.r.shape}; both must be {shape[:1]}, as x_t has it")
        needed = {"label"} if net.condition == "class" else {"text", "mask"}
        needed |= {"guidance"} if net.guidance_input else set()
        needed |= set(image_inputs(net))
        found = set(q.condition or ())
        if not needed <= found:
            raise ValueError(f"condition has {sorted(found)}; it must have {sorted(needed)}")
        if net.transition_head:
            check_condition(q.condition)
    return groups
