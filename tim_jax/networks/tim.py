"""The network of Transition Models (TiM, arXiv 2509.04394): a diffusion transformer with both times, t and r."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention import sequence
from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.networks.block import REMAT, STREAM, Block, Context
from tim_jax.networks.embeddings import (
    INTERVALS,
    CaptionEmbedder,
    ContextTokens,
    GuidanceEmbedder,
    LabelEmbedder,
    TimeEmbedder,
    sinusoids,
)
from tim_jax.networks.layers import Linear, modulate, modulation, standardise, wide
from tim_jax.networks.rope import ORDERS, rope_table
from tim_jax.networks.taps import check_taps, keep
from tim_jax.networks.transition_head import TransitionHead, check_condition, transition
from tim_jax.types import Output, Query, TangentQuery

UNUSED = {
    ("model.use_text_mask",): ("model.condition is not 'text'", lambda c: c.model.condition != "text"),
    ("model.num_classes",): ("model.condition is not 'class'", lambda c: c.model.condition != "class"),
    ("model.conditioning", "model.separate_interval_embedder"): (
        "model.decoupled_depth is above 0",
        lambda c: c.model.decoupled_depth > 0,
    ),
    ("model.class_tokens",): ("model.condition is not 'class'", lambda c: c.model.condition != "class"),
    ("model.guidance_tokens",): (
        "guidance is no input of the network (objective.input_guidance.max_scale is 1)",
        lambda c: c.objective.input_guidance.max_scale == 1,
    ),
    ("model.projector_width",): ("data.features_width is 0", lambda c: c.data.features_width == 0),
}


def keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint` for networks that are not rematerialised but gather their parameters.

    It saves everything except for parameters that were gathered from other devices, which would be those of all layers
    at once. They are gathered again.
    """
    return "all_gather" not in primitive.name


class TiM(nn.Module):
    """F(x_t, t, r, condition) for a tuple of groups of examples, all inside one scan over the layers.

    In the scan each layer's parameters are read once and applied to every group in turn; a group without tangents in
    a `jax.jvp` costs no tangent work. Parameters are float32, or float64 where `dtype` is.
    """

    width: int = 768  # D; heads divide it
    depth: int = 12  # blocks
    heads: int = 12  # H
    bottleneck: int = 256  # hidden width of each block's adaLN
    encoder_depth: int = 4  # block, counted from 1, whose output is aligned with image features
    patch_size: int = 2  # side of a patch, in positions
    condition: str = "class"  # "class" or "text"
    num_classes: int = 1000  # for "class"; label num_classes is the null condition
    conditioning: str = "t-r"  # "t-r", "r", "t,r", "t,t-r", "r,t-r" or "t,r,t-r": what the interval embeds
    # The last so many blocks and the final layer see r alone for the times, all before them t alone (Decoupled
    # MeanFlow, arXiv 2510.24474); 0: all see both
    decoupled_depth: int = 0
    separate_interval_embedder: bool = True  # an embedder of its own for the interval, else that of t
    interval_aware: bool = True  # interval-aware attention: the interval's embedding enters q, k and v
    qk_norm: bool = True  # layer norm of queries and keys
    # "official": the published order. Weights that were trained in the other one reach the published code only where
    # all examples are squares; it cannot be chosen after training.
    rope_order: str = "row_major"
    # Attend to a caption's own tokens; False: to as many as the longest caption of the batch has, as published, for
    # published weights only. The masks of conditions say so, wherever these are made.
    use_text_mask: bool = True
    # Tokens in front of those of the image that carry conditions, beside the modulation (improved MeanFlow, arXiv
    # 2512.02012): of the class, and where guidance is an input as many for its scale and for its interval.
    class_tokens: int = 0
    guidance_tokens: int = 0
    projector_width: int = 2048  # hidden width of the alignment head
    # "xla", or with memory linear in tokens "blockwise" and "pallas" (kernels; elsewhere blockwise); "auto": by tokens
    attention: str = "auto"
    # What the backward pass computes again. "none": nothing, every activation is kept. "dots": neither products of
    # weights nor blockwise attention; as fast as "none" in two thirds of its memory. "attention": products, but not
    # blockwise attention; with it, a third of the memory or less. "full": all of a block but its input, a quarter more
    # operations than "none".
    remat: str = "none"
    # DiffusionBlocks (arXiv 2506.14202): slices of the depth, each of which serves an interval of times of equal
    # probability. A step trains slice step mod slices, and only its layers run; so do they in a step of sampling.
    slices: int = 1
    dropout: float = 0.0  # on residual branches
    dtype: Any = jnp.float32  # compute type, "float32" or "bfloat16"; parameters are float32
    # What follows is not a key of a configuration.
    channels: int = 4  # C of x_t and F
    z_dim: int = 0  # width of image features; 0: no projector
    text_width: int = 1152  # of text features
    guidance_input: bool = False  # conditions have {"guidance": (B, 3)}, a scale and the times between which it holds
    # Conditions have {"prediction": (B, h, w, C)}, an earlier F, which is an input and added to the output.
    prediction_input: bool = False
    image_channels: int = 0  # conditions have {"image": (B, h, w, image_channels)}, a degraded image to be restored
    slice_ends: tuple[float, ...] = ()  # times t, as queries have them, between those of slices, ascending
    transition_head: bool = False  # F is that of a `TransitionHead`, whose inputs conditions have
    output_heads: tuple[str, ...] = ()  # names in HEADS: outputs besides F
    # Makes the Output that objectives and samplers read of that for a Query, where the output stands for something else
    # than F. Whoever applies the network does so, whatever its kind, see `training/nets.py`.
    to_F: Callable[[Query, Output], Output] | None = None
    # Turns the stored parameters of a block into those that it computes with, such as by a gather from other devices.
    read: Callable[[Any], Any] | None = None
    # Within `jax.shard_map`: the mesh axis over which the tokens of an example lie, see `sequence`.
    tokens: str | None = None
    unroll: bool = False  # unroll the scan, so that the compiler's count of FLOPs sees all layers

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self)

    @property
    def context_tokens(self) -> dict[str, int]:
        """The numbers of tokens in front of those of the image, by the names of their modules."""
        classes = self.class_tokens if self.condition == "class" else 0
        guidance = self.guidance_tokens if self.guidance_input else 0
        counts = {"class_tokens": classes, "scale_tokens": guidance, "interval_tokens": guidance}
        return {name: count for name, count in counts.items() if count}

    @nn.compact
    def __call__(
        self, groups: tuple[Query, ...], hidden: bool = False, taps: tuple[int, ...] = ()
    ) -> tuple[Output, ...]:
        """Predicts F for every query. Initialisation always makes the projector's parameters.

        Args:
            groups: Queries with x_t (B, h, w, C), t and r (B,), condition {"label": (B,)} or {"text": (B, M, T),
                "mask": (B, M)}, and keys (B,) or None. B, h and w may differ between groups. A TangentQuery is inside a
                `jax.jvp` with tangents for it.
            hidden: Whether to return the projected states (B, N, z_dim) after block `encoder_depth`, too. Tokens are
                laid out row by row; where `tokens` is given they are those of this device. All else is whole.
            taps: Blocks, counted from 1, whose states (B, N, D) are returned, too, their tokens like those of `hidden`.

        Returns:
            One Output per Query, with F (B, h, w, C), hidden states and heads in float32 at least.

        Raises:
            ValueError: The inputs do not fit the fields.
        """
        groups = _check_groups(self, groups, hidden)
        check_taps("taps", taps, self)
        hidden = bool(self.z_dim) and (hidden or self.is_initializing())
        aligned = {self.encoder_depth} if hidden or "pooled" in self.output_heads else set()
        patch_axes = (None, None, None, "embed")
        embed = Linear((self.width,), patch_axes, dtype=self.dtype, name="patch")

        def cut(x: jax.Array) -> jax.Array:
            return sequence.part(patchify(x, self.patch_size), self.tokens, 1)

        streams = tuple(embed(cut(q.x_t)) for q in groups)
        for name in image_inputs(self):
            embed = Linear((self.width,), patch_axes, dtype=self.dtype, name=f"{name}_patch")
            streams = tuple(x + embed(cut(q.condition[name])) for x, q in zip(streams, groups))
        contexts, front = self._contexts(groups)
        streams = tuple(x if more is None else jnp.concatenate([more, x], axis=1) for x, more in zip(streams, front))
        streams = tuple(nn.with_logical_constraint(x, STREAM) for x in streams)
        first, layers = self._slice(groups)

        def layer_step(block, carry, layer):
            streams, states = carry
            late = layer >= self.depth - self.decoupled_depth
            streams = block(streams, tuple(context.seen(late) for context in contexts), layer)
            return (streams, keep(states, streams, layer + 1)), None

        scan = nn.scan(
            layer_step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=layers,
            unroll=layers if self.unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
            check_constancy_invariants=False,
        )
        run: Any = scan
        if layers < self.depth:
            own = functools.partial(jax.tree.map, lambda x: jax.lax.dynamic_slice_in_dim(x, first, layers))
            run = nn.map_variables(lambda *args: scan(*args), "params", own)
        carry = (streams, dict.fromkeys(sorted({*taps} | aligned), streams))
        (streams, states), _ = run(self._block(groups), carry, first + jnp.arange(layers))
        contexts = tuple(context.seen(True) for context in contexts)

        def image(xs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(x if more is None else x[:, more.shape[1] :] for x, more in zip(xs, front))

        streams, states = image(streams), {n: image(xs) for n, xs in states.items()}
        encoded = states.get(self.encoder_depth, streams)

        if self.transition_head:
            drawer = TransitionHead(self.patch_size, self.channels, self.dtype, name="transition_head")
            ends = [transition(drawer, x, ctx.c, q.condition, cut) for x, ctx, q in zip(streams, contexts, groups)]
        else:
            final = FinalLayer(self.patch_size, self.channels, self.dtype, name="final")
            ends = [final(x, ctx.c) for x, ctx in zip(streams, contexts)]
        patches = [sequence.whole(y, self.tokens) for y in ends]
        Fs = [unpatchify(y, q.x_t.shape) for y, q in zip(patches, groups)]
        if self.prediction_input:
            Fs = [F + q.condition["prediction"] for F, q in zip(Fs, groups)]
        heads: list[dict[str, jax.Array]] = [{} for _ in groups]
        for name in self.output_heads:
            head = HEADS[name](self)
            for outputs, x, ctx, q, tap in zip(heads, streams, contexts, groups, encoded):
                outputs[name] = head(x, ctx, q, tap)
        hiddens: list[jax.Array | None] = [None] * len(groups)
        if hidden:
            projector = Projector(self.projector_width, self.z_dim, self.dtype, name="projector")
            hiddens = [projector(x) for x in encoded]
        tapped = [tuple(states[n][i] for n in taps) or None for i in range(len(groups))]
        return tuple(map(Output, Fs, hiddens, heads, tapped))

    def _slice(self, groups: tuple[Query, ...]) -> tuple[jax.Array | int, int]:
        """The first of the layers that run, and how many do: those of the slice in whose interval the times t lie.

        The mean of t says so, on all devices, as rounding may carry single ones over an end.
        """
        if self.slices == 1 or self.is_initializing():
            return 0, self.depth
        layers, t = self.depth // self.slices, jnp.concatenate([q.t for q in groups]).mean()
        if axes := tuple(jax.typeof(t).manual_axis_type.varying):
            t = jax.lax.pmean(t, axes)
        return layers * jnp.sum(t > jnp.asarray(self.slice_ends)), layers

    def _block(self, groups: tuple[Query, ...]) -> nn.Module:
        block, policy, read = Block, REMAT[self.remat], self.read
        if read is not None and not self.is_initializing():
            block = nn.map_variables(Block, "params", lambda variables: {"params": read(variables["params"])})
            policy = policy or keep_all_but_gathered
        # Inside a rolled scan nothing can merge a recomputation with the first pass; unrolled, it must be prevented.
        make = block if policy is None else nn.remat(block, policy=policy, prevent_cse=self.unroll)
        fields = (self.heads, self.bottleneck, self.condition == "text", self.interval_aware, self.qk_norm)
        in_jvp = tuple(isinstance(q, TangentQuery) for q in groups)
        return make(*fields, self.dropout, self.dtype, in_jvp, self.attention, self.tokens, name="blocks")

    def _contexts(self, groups: tuple[Query, ...]) -> tuple[tuple[Context, ...], tuple[jax.Array | None, ...]]:
        """What the blocks see, and the tokens (B, …, D) in front of each stream, or None."""
        T = D = TimeEmbedder(self.width, "normal", self.dtype, name="t_embedder")
        if self.separate_interval_embedder and not self.decoupled_depth:
            D = TimeEmbedder(self.width, "xavier", self.dtype, name="delta_embedder")
        if self.guidance_input:
            guidance = GuidanceEmbedder(self.width, self.dtype, name="guidance_embedder")
        if self.condition == "class":
            label_embedder = LabelEmbedder(self.num_classes, self.width, self.dtype, name="label_embedder")
        else:
            caption_embedder = CaptionEmbedder(self.width, self.dtype, name="caption_embedder")
        counts = self.context_tokens
        front = {name: ContextTokens(count, self.dtype, name=name) for name, count in counts.items()}

        def context(q: Query) -> tuple[Context, jax.Array | None]:
            more: dict[str, jax.Array] = {}
            text = mask = None
            if self.guidance_input:
                scale, low, high = guidance(q.condition["guidance"])
                more = {"scale_tokens": scale, "interval_tokens": low + high}
            if self.condition == "class":
                more["class_tokens"] = label_embedder(q.condition["label"])
            else:
                # The norm before cross-attention has no parameters, so that all blocks share one.
                text = standardise(caption_embedder(q.condition["text"]), 1e-6).astype(self.dtype)
                mask = q.condition["mask"]

            def modulating(time: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
                pair = sum(more.values(), start=time), delta
                return tuple(nn.with_logical_constraint(e, ("batch", "embed")) for e in pair)

            if self.decoupled_depth:
                (c, delta), end = (modulating(e, e) for e in (T(q.t), T(q.r)))
            else:
                delta = INTERVALS[self.conditioning](T, D, q.t, q.r)
                (c, delta), end = modulating(T(q.t) + delta, delta), None
            tokens = None
            if front:
                tokens = jnp.concatenate([front[name](more[name]) for name in front], axis=1)
                tokens = sequence.part(tokens, self.tokens, 1)
            h, w = (n // self.patch_size for n in q.x_t.shape[1:3])
            # Tokens of conditions have no place in the image: they are not rotated, and come last in the numbers.
            tables = (*rope_table(h, w, self.width // self.heads, self.rope_order, wide(self.dtype)), jnp.arange(h * w))
            cos, sin, numbers = (sequence.part(table, self.tokens) for table in tables)
            count = sum(counts.values())
            if count:
                away = [jnp.full((count, *cos.shape[1:]), value, cos.dtype) for value in (1, 0)]
                away = [sequence.part(table, self.tokens) for table in (*away, h * w + jnp.arange(count))]
                cos, sin, numbers = map(jnp.concatenate, zip(away, (cos, sin, numbers)))
            return Context(c, delta, end, (cos, sin), numbers, text, mask, q.key), tokens

        contexts, tokens = zip(*map(context, groups))
        return contexts, tokens


class FinalLayer(nn.Module):
    """A modulated norm and a linear map to patches, (B, N, D) -> (B, N, p, p, C), which starts at zero."""

    patch_size: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array, c_BD: jax.Array) -> jax.Array:
        width = x_BND.shape[-1]
        shift, scale = jnp.split(modulation(width // 2, 2 * width, self.dtype)(c_BD), 2, axis=-1)
        features = (self.patch_size, self.patch_size, self.channels)
        axes = ("embed", None, None, None)
        return Linear(features, axes, "zeros", dtype=wide(self.dtype), name="linear")(modulate(x_BND, shift, scale))


class Projector(nn.Module):
    """Three linear layers with SiLU between them, from hidden states to the width of image features (REPA)."""

    hidden: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = nn.silu(Linear((self.hidden,), ("embed", "mlp"), dtype=self.dtype, name="in")(x_BND))
        h = nn.silu(Linear((self.hidden,), ("mlp", None), dtype=self.dtype, name="mid")(h))
        return Linear((self.features,), (None, None), dtype=self.dtype, name="out")(h).astype(wide(self.dtype))


Head: TypeAlias = Callable[[jax.Array, Context, Query, jax.Array], jax.Array]  # of last states and of tapped states


def velocity_head(net: TiM) -> Head:
    """Returns the head with a second prediction like F (B, h, w, C), from the same last states."""
    final = FinalLayer(net.patch_size, net.channels, net.dtype, name="velocity_head")
    return lambda x, ctx, q, tap: unpatchify(sequence.whole(final(x, ctx.c), net.tokens), q.x_t.shape)


def log_variance_head(net: TiM) -> Head:
    """Returns the head u(t) (B,) of a learned weight e^{-u} L + u (sCM, arXiv 2410.11081), which starts at 0."""
    linear = Linear((1,), (None, None), "zeros", dtype=wide(net.dtype), name="log_variance_head")
    return lambda x, ctx, q, tap: sequence.mean(linear(sinusoids(q.t))[:, 0], net.tokens)


def joint_log_variance_head(net: TiM) -> Head:
    """Returns the head u(t, r) (B,) of a learned weight (Decoupled MeanFlow, arXiv 2510.24474), which starts at 0."""
    linear = Linear((1,), (None, None), "zeros", dtype=wide(net.dtype), name="joint_log_variance_head")

    def head(x: jax.Array, ctx: Context, q: Query, tap: jax.Array) -> jax.Array:
        both = jnp.concatenate([sinusoids(q.t, 128), sinusoids(q.r, 128)], axis=-1)
        return sequence.mean(linear(both)[:, 0], net.tokens)

    return head


def pooled_head(net: TiM) -> Head:
    """Returns the head with the mean (B, D) over patches of the states after block `encoder_depth`; no parameters."""
    return lambda x, ctx, q, tap: sequence.mean(tap.astype(wide(net.dtype)).mean(axis=1), net.tokens)


# Outputs that objectives may need besides F, by name.
HEADS: dict[str, Callable[[TiM], Head]] = {
    "velocity": velocity_head,
    "log_variance": log_variance_head,
    "joint_log_variance": joint_log_variance_head,
    "pooled": pooled_head,
}


def patchify(x: jax.Array, p: int) -> jax.Array:
    """Cuts images (B, h, w, C) into patches (B, N, p, p, C), row by row."""
    B, h, w, C = x.shape
    return x.reshape(B, h // p, p, w // p, p, C).swapaxes(2, 3).reshape(B, -1, p, p, C)


def unpatchify(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Joins patches (B, N, p, p, C) to images of `shape` (B, h, w, C): the inverse of `patchify`."""
    B, h, w, C = shape
    p = y.shape[2]
    return y.reshape(B, h // p, w // p, p, p, C).swapaxes(2, 3).reshape(shape)


def image_inputs(net: TiM) -> dict[str, int]:
    """Returns the channels of the images (B, h, w, channels) that a condition must have, by their names."""
    images = {"prediction": net.channels * net.prediction_input, "image": net.image_channels}
    return {name: channels for name, channels in images.items() if channels}


def _check_fields(net: TiM) -> None:
    for name in ("patch_size", "channels", "width", "depth", "heads", "bottleneck"):
        if getattr(net, name) < 1:
            raise ValueError(f"model.{name} is {getattr(net, name)}; it must be at least 1")
    if net.width % net.heads or net.width // net.heads % 4:
        raise ValueError(
            f"model.heads is {net.heads}; it must split model.width, {net.width}, into heads of a multiple of 4"
        )
    if not 1 <= net.encoder_depth <= net.depth:
        raise ValueError(f"model.encoder_depth is {net.encoder_depth}; it must lie in 1 … model.depth, {net.depth}")
    if not 0 <= net.decoupled_depth <= net.depth:
        raise ValueError(f"model.decoupled_depth is {net.decoupled_depth}; it must lie in 0 … model.depth, {net.depth}")
    for name in ("class_tokens", "guidance_tokens"):
        if getattr(net, name) < 0:
            raise ValueError(f"model.{name} is {getattr(net, name)}; it must be at least 0")
    if net.slices < 1 or net.depth % net.slices:
        raise ValueError(f"model.slices is {net.slices}; it must be at least 1 and divide model.depth, {net.depth}")
    if net.slices > 1 and "pooled" in net.output_heads:
        raise ValueError(f"model.slices is {net.slices}; it must be 1 for states after a layer that most times skip")
    if not 0 <= net.dropout < 1:
        raise ValueError(f"model.dropout is {net.dropout}; it must lie in [0, 1)")
    choices = {
        "condition": ("class", "text"), "conditioning": INTERVALS, "rope_order": ORDERS, "remat": REMAT,
        "attention": ("auto", *ATTENTION),
    }  # fmt: skip
    for name, known in choices.items():
        if getattr(net, name) not in known:
            raise ValueError(f"model.{name} is {getattr(net, name)!r}; it must be one of {', '.join(known)}")
    for name in net.output_heads:
        if name not in HEADS:
            raise ValueError(f"output_heads has {name!r}; each must be one of {', '.join(HEADS)}")


def _check_groups(net: TiM, groups: Any, hidden: bool) -> tuple[Query, ...]:
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
