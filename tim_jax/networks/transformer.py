"""What the transformers F(x_t, t, r, condition) of images share: their fields, and the one pass through them.

A network is a subclass: its own fields, and those of the methods below its pass that are otherwise for it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention import sequence
from tim_jax.networks.block import REMAT, STREAM, Block, Context, FinalLayer
from tim_jax.networks.checks import check_fields, check_groups, image_inputs
from tim_jax.networks.embeddings import ContextTokens, GuidanceEmbedder, LabelEmbedder, TimeEmbedder
from tim_jax.networks.heads import HEADS, Projector
from tim_jax.networks.layers import Linear
from tim_jax.networks.patches import patchify, unpatchify
from tim_jax.networks.taps import check_taps, keep
from tim_jax.networks.transition_head import TransitionHead, transition
from tim_jax.types import Output, Query, TangentQuery

UNUSED = {
    ("model.num_classes",): ("model.condition is not 'class'", lambda c: c.model.condition != "class"),
    ("model.class_tokens",): ("model.condition is not 'class'", lambda c: c.model.condition != "class"),
    ("model.guidance_tokens",): (
        "guidance is no input of the network (objective.input_guidance.max_scale is 1)",
        lambda c: c.objective.input_guidance.max_scale == 1,
    ),
    ("model.projector_width",): ("data.features_width is 0", lambda c: c.data.features_width == 0),
}
Streams: TypeAlias = tuple[jax.Array, ...]  # the states (B, N, D) of each group
Contexts: TypeAlias = tuple[Context, ...]  # of each group
States: TypeAlias = dict[int, Streams]  # after blocks, by their numbers from 1


def join(streams: Streams, contexts: Contexts) -> Streams:
    """Puts tokens of conditions in front of those of the image."""
    xs = (x if ctx.front is None else jnp.concatenate([ctx.front, x], 1) for x, ctx in zip(streams, contexts))
    return tuple(nn.with_logical_constraint(x, STREAM) for x in xs)


def image(streams: Streams, contexts: Contexts) -> Streams:
    """Leaves out the tokens of conditions: the inverse of `join`."""
    return tuple(x if ctx.front is None else x[:, ctx.front.shape[1] :] for x, ctx in zip(streams, contexts))


def keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint` for networks that are not rematerialised but gather their parameters.

    It saves everything except for parameters that were gathered from other devices, which would be those of all layers
    at once. They are gathered again.
    """
    return "all_gather" not in primitive.name


class Transformer(nn.Module):
    """F(x_t, t, r, condition) for a tuple of groups of examples, all inside one scan over the layers.

    In the scan each layer's parameters are read once and applied to every group in turn; a group without tangents in
    a `jax.jvp` costs no tangent work. Parameters are float32, or float64 where `dtype` is.
    """

    SIZES: ClassVar[dict[str, dict[str, int]]] = {}  # values of fields by the name of a size
    CONDITIONS: ClassVar[tuple[str, ...]] = ("class",)  # what `condition` may be
    STACKS: ClassVar[tuple[str, ...]] = ("blocks",)  # names of parameters that are stacked along a first axis
    FROZEN: ClassVar[tuple[str, ...]] = ()  # names of parameters that are never trained

    width: int = 768  # D; heads divide it
    depth: int = 12  # blocks
    heads: int = 12  # H
    encoder_depth: int = 4  # block, counted from 1, whose output is aligned with image features
    patch_size: int = 2  # side of a patch, in positions
    condition: str = "class"  # "class" or "text"
    num_classes: int = 1000  # for "class"; label num_classes is the null condition
    # The last so many blocks and the final layer see r alone for the times, all before them t alone (Decoupled
    # MeanFlow, arXiv 2510.24474); 0: all see both
    decoupled_depth: int = 0
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
    # Turns the stored parameters of a block, of the stack of that name, into those that it computes with, such as by a
    # gather from other devices.
    read: Callable[[str, Any], Any] | None = None
    # Within `jax.shard_map`: the mesh axis over which the tokens of an example lie, see `sequence`.
    tokens: str | None = None
    unroll: bool = False  # unroll the scan, so that the compiler's count of FLOPs sees all layers

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()

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
        groups = check_groups(self, groups, hidden)
        check_taps("taps", taps, self)
        hidden = bool(self.z_dim) and (hidden or self.is_initializing())
        aligned = {self.encoder_depth} if hidden or "pooled" in self.output_heads else set()
        streams, contexts, states = self.trunk(
            groups, self.embed(groups), self.contexts(groups), tuple(sorted({*taps} | aligned))
        )
        encoded = states.get(self.encoder_depth, streams)

        if self.transition_head:
            drawer = TransitionHead(self.patch_size, self.channels, self.dtype, name="transition_head")
            ends = [transition(drawer, x, ctx.c, q.condition, self.cut) for x, ctx, q in zip(streams, contexts, groups)]
        else:
            final = self.final("final")
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

    # What a network says of itself, in place of what stands here.

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError, naming the key, for fields that cannot be."""
        check_fields(self)

    @nn.nowrap
    def check_grid(self, h: int, w: int) -> None:
        """Raises ValueError, naming the key, for a grid of h × w patches that the network does not take."""

    def patch_embedder(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the layers from patches (B, N, p, p, C) to states (B, N, D)."""
        return Linear((self.width,), (None, None, None, "embed"), dtype=self.dtype, name="patch")

    def position_embedding(self, h: int, w: int) -> jax.Array | None:
        """Returns what is added to the states of a grid of patches, (h w, D), or None for nothing."""
        return None

    def rope(self, h: int, w: int) -> tuple[jax.Array, ...] | None:
        """Returns the RoPE table of a grid of patches, (cos, sin) of (h w, K/2), or None for none."""
        return None

    def time_embedder(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the embedder of times, (B,) -> (B, D)."""
        return TimeEmbedder(self.width, "normal", self.dtype, name="t_embedder")

    def interval_embedder(self, T: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Returns the embedder of the interval from t to r, (B,), (B,) -> (B, D), given that of times."""
        raise NotImplementedError

    def label_embedder(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the embedder of labels, (B,) -> (B, D)."""
        return LabelEmbedder(self.num_classes, self.width, self.dtype, name="label_embedder")

    def text_embedder(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the embedder of captions, (B, M, T) -> (B, M, D), of networks whose CONDITIONS have "text"."""
        raise NotImplementedError

    @nn.nowrap
    def joined(self, time: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
        """Returns the condition c (B, D), from embeddings (B, D) of times, and of guidance and class."""
        return sum(others, start=time)

    def block(self, groups: tuple[Query, ...]) -> nn.Module:
        """Returns a layer of the stack "blocks", as `stacked` makes it."""
        raise NotImplementedError

    def final_layer(self, name: str) -> nn.Module:
        """Returns the final layer of that name, from states (B, N, D) and c to patches (B, N, p, p, C)."""
        return FinalLayer(dtype=self.dtype, patch_size=self.patch_size, channels=self.channels, name=name)

    def final(self, name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Returns what makes patches of F (B, N, p, p, C) of states (B, N, D) and c, by the final layer so named."""
        return self.final_layer(name)

    @property
    def blocks(self) -> int:
        """The number of blocks in all stacks."""
        return self.depth

    @property
    def context_tokens(self) -> dict[str, int]:
        """The numbers of tokens in front of those of the image, by the names of their modules."""
        classes = self.class_tokens if self.condition == "class" else 0
        guidance = self.guidance_tokens if self.guidance_input else 0
        counts = {"class_tokens": classes, "scale_tokens": guidance, "interval_tokens": guidance}
        return {name: count for name, count in counts.items() if count}

    # What they are made of; a network of several stacks, or with another order of things, has its own.

    def cut(self, x: jax.Array) -> jax.Array:
        """Cuts images (B, h, w, C) into the patches (B, N, p, p, C) of this device."""
        return sequence.part(patchify(x, self.patch_size), self.tokens, 1)

    def embed(self, groups: tuple[Query, ...]) -> Streams:
        """Returns the states of the image's tokens before the first block."""
        embed = self.patch_embedder()
        streams = tuple(embed(self.cut(q.x_t)) for q in groups)
        for name in image_inputs(self):
            embed = Linear((self.width,), (None, None, None, "embed"), dtype=self.dtype, name=f"{name}_patch")
            streams = tuple(x + embed(self.cut(q.condition[name])) for x, q in zip(streams, groups))
        places = [self.position_embedding(*self.grid(q)) for q in groups]
        return tuple(
            x if place is None else x + sequence.part(place, self.tokens)[None].astype(x.dtype)
            for x, place in zip(streams, places)
        )

    @nn.nowrap
    def grid(self, q: Query) -> tuple[int, int]:
        """Returns the numbers of patches along the height and the width of a group's images."""
        h, w = (n // self.patch_size for n in q.x_t.shape[1:3])
        return h, w

    def contexts(self, groups: tuple[Query, ...]) -> Contexts:
        """Returns what the blocks see."""
        T = self.time_embedder()
        interval = None if self.decoupled_depth else self.interval_embedder(T)
        if self.guidance_input:
            guidance = GuidanceEmbedder(self.width, self.dtype, name="guidance_embedder")
        embed = self.label_embedder() if self.condition == "class" else self.text_embedder()
        counts = self.context_tokens
        front = {name: ContextTokens(count, self.dtype, name=name) for name, count in counts.items()}

        def context(q: Query) -> Context:
            more: dict[str, jax.Array] = {}
            text = mask = None
            if self.guidance_input:
                scale, low, high = guidance(q.condition["guidance"])
                more = {"scale_tokens": scale, "interval_tokens": low + high}
            if self.condition == "class":
                more["class_tokens"] = embed(q.condition["label"])
            else:
                text, mask = embed(q.condition["text"]), q.condition["mask"]
            given = tuple(more.values())

            def modulating(time: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
                c, delta, time = (
                    nn.with_logical_constraint(e, ("batch", "embed")) for e in (self.joined(time, given), delta, time)
                )
                return c, delta, time

            if interval is None:
                first, end = (modulating(e, e) for e in (T(q.t), T(q.r)))
            else:
                more["delta_tokens"] = delta = interval(q.t, q.r)
                time = T(q.t) if "delta_tokens" in counts else T(q.t) + delta
                first, end = modulating(time, delta), None
            tokens = None
            if front:
                tokens = jnp.concatenate([front[name](more[name]) for name in front], axis=1)
                tokens = sequence.part(tokens, self.tokens, 1)
            h, w = self.grid(q)
            # Tokens of conditions have no place in the image: they are not rotated, and come last in the numbers.
            tables = [*(self.rope(h, w) or ()), jnp.arange(h * w)]
            away = [jnp.full((1, *table.shape[1:]), value, table.dtype) for value, table in zip((1, 0), tables[:-1])]
            tables = [sequence.part(table, self.tokens) for table in tables]
            if count := sum(counts.values()):
                away = [*(jnp.repeat(table, count, 0) for table in away), h * w + jnp.arange(count)]
                tables = [jnp.concatenate([sequence.part(a, self.tokens), b]) for a, b in zip(away, tables)]
            *rope, numbers = tables
            return Context(*first, end, tuple(rope) or None, numbers, text, mask, q.key, tokens)

        return tuple(map(context, groups))

    def trunk(
        self, groups: tuple[Query, ...], streams: Streams, contexts: Contexts, wanted: tuple[int, ...]
    ) -> tuple[Streams, Contexts, States]:
        """Runs all blocks.

        Args:
            groups: What the network is called on.
            streams: The states of the image's tokens before the first block.
            contexts: What the blocks see.
            wanted: The numbers, from 1, of blocks whose states are returned.

        Returns:
            The states of the image's tokens after the last block, what the final layer sees, and the wanted states.
        """
        streams = join(streams, contexts)
        first, layers = self._slice(groups)
        block, states = self.block(groups), dict.fromkeys(wanted, streams)
        streams, states = self.layers(block, streams, contexts, states, self.depth, first, layers)
        states = {n: image(xs, contexts) for n, xs in states.items()}
        return image(streams, contexts), tuple(context.seen(True) for context in contexts), states

    def layers(
        self,
        block: nn.Module,
        streams: Streams,
        contexts: Contexts,
        states: States,
        depth: int,
        first: jax.Array | int = 0,
        layers: int = 0,
        before: int = 0,
    ) -> tuple[Streams, States]:
        """Runs layers of one stack, in a scan.

        Args:
            block: As `stacked` makes it.
            streams: The states before the first of these layers.
            contexts: What the layers see.
            states: Where states after some blocks are kept, by their numbers from 1.
            depth: How many layers the stack has.
            first: The first of those that run.
            layers: How many run; 0: all.
            before: How many layers of other stacks come before, which count in the numbers of blocks.
        """
        layers = layers or depth

        def layer_step(block: Any, carry: Any, layer: jax.Array) -> tuple[Any, None]:
            streams, states = carry
            late = layer >= self.blocks - self.decoupled_depth
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
        if layers < depth:
            own = functools.partial(jax.tree.map, lambda x: jax.lax.dynamic_slice_in_dim(x, first, layers))
            run = nn.map_variables(lambda *args: scan(*args), "params", own)
        (streams, states), _ = run(block, (streams, states), before + first + jnp.arange(layers))
        return streams, states

    def stacked(self, kind: type[Block], groups: tuple[Query, ...], name: str = "blocks", **fields: Any) -> nn.Module:
        """Returns a layer of the stack of that name, as a scan runs it: with `remat`, and its parameters with `read`.

        Args:
            kind: What it is.
            groups: What the network is called on.
            name: A name in STACKS.
            **fields: The block's own, and those that are not the network's.
        """
        block: Any = kind
        policy, read = REMAT[self.remat], self.read
        if read is not None and not self.is_initializing():
            block = nn.map_variables(kind, "params", lambda variables: {"params": read(name, variables["params"])})
            policy = policy or keep_all_but_gathered
        # Inside a rolled scan nothing can merge a recomputation with the first pass; unrolled, it must be prevented.
        make = block if policy is None else nn.remat(block, policy=policy, prevent_cse=self.unroll)
        own = ("heads", "dropout", "dtype", "attention", "tokens")
        in_jvp = tuple(isinstance(q, TangentQuery) for q in groups)
        return make(**{key: getattr(self, key) for key in own} | fields, in_jvp=in_jvp, name=name)

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
