"""Attention as fused kernels, for TPUs (by Mosaic) and for NVIDIA GPUs (by Triton); elsewhere it is `blockwise`.

All passes have one form: a block that stays (of queries, or of keys for the gradients of k and v) meets, one after
another, the blocks that pass by, and folds them into a state. A `Pass` defines the folding; its arithmetic is that of
`online`. `_on_tpu` and `_on_gpu` place blocks and state: on a TPU the blocks that pass by are the last axis of the grid
and the state stays in scratch memory; on a GPU they are a loop inside the kernel and the state is in registers.

Compilers cannot split a kernel over devices, so under a mesh every device runs it on its own examples and heads.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# JAX has called this back end deprecated since 0.11. The kernels stay on it until they move to Mosaic GPU.
from jax.experimental.pallas import triton
from jax.sharding import AxisType, ManualAxisType, PartitionSpec

from tim_jax.networks.attention import blockwise, online, rules
from tim_jax.networks.layers import wide


@dataclasses.dataclass(frozen=True)
class Pass:
    """How the blocks that pass by are folded into a state.

    All arguments and results are tuples of blocks: matrices (n, K) of n queries or keys, or rows (1, n) with a number
    for each of them.

    Attributes:
        name: The name of the kernel.
        start: (*stay) -> state.
        step: (state, stay, by) -> state.
        finish: state -> outputs, which are blocks like those that stay.
    """

    name: str
    start: Callable
    step: Callable
    finish: Callable


@dataclasses.dataclass(frozen=True)
class Platform:
    """How arrays are cut into blocks, and which kernels fold them.

    Attributes:
        call: `_on_tpu` or `_on_gpu`.
        block: The largest number of queries or keys in a block.
        unit: Blocks are multiples of this.
        power: Whether heads are padded to a power of two, at least 16.
        interpret: Whether to interpret the kernels, slowly and on any platform, for tests.
    """

    call: Callable
    block: int
    unit: int
    power: bool
    interpret: bool = False

    def size(self, length: int) -> int:
        """Returns the size of the blocks of `length` queries or keys: equal blocks with the least padding."""
        number = math.ceil(length / self.block)
        return math.ceil(length / number / self.unit) * self.unit

    def run(self, of: Pass, stay: tuple, by: tuple):
        """Returns the outputs of a pass over arrays that the methods below have prepared."""
        return self.call(of, stay, by, (self.size(_length(stay)), self.size(_length(by))), self.interpret)

    def matrices(self, *arrays) -> list[jax.Array]:
        """Returns (B, H, N, K) as (B H, N, K), with zeros after the last query or key and after the head's width."""
        width = arrays[0].shape[3]
        more = max(16, pl.next_power_of_2(width)) - width if self.power else 0
        return [self._padded(x, more) for x in arrays]

    def row(self, x) -> jax.Array:
        """Returns (B, H, N) as (B H, 1, N), with zeros after the last."""
        return self._padded(x[..., None], 0).swapaxes(1, 2)

    def keep(self, mask, k) -> jax.Array | None:
        """Returns (B, 1, M), 1 for keys that may be attended to, 0 for others and padding; None if there are none."""
        length = k.shape[2]
        if mask is None:
            if length % self.size(length) == 0:
                return None
            mask = jnp.ones((1, length), bool)
        return self.row(mask[:, None].astype(jnp.int32))

    def _padded(self, x, more: int):
        length = x.shape[2]
        behind = -length % self.size(length)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, behind), (0, more)))
        return x.reshape(-1, *x.shape[2:])


# The passes. keep: (1, m), 1 where a key may be attended to, else 0; None if all may.


def _forward(scale, dtype):
    def step(state, stay, by):
        (q,), (k, v, keep) = stay, by
        return online.advance(state, q, k, v, _true(keep), scale)

    def finish(state):
        o, L = online.finish(state, dtype)
        return o, L.T

    return Pass("attention", lambda q: online.start(q, q), step, finish)


def _forward_and_tangent(scale, dtype):
    def step(state, stay, by):
        *by, keep = by
        return online.advance_with_tangent(state, *stay, *by, _true(keep), scale)

    def finish(state):
        o, L, o_dot = online.finish_with_tangent(state, dtype)
        return o, L.T, o_dot

    return Pass("attention_and_tangent", lambda q, q_dot: online.start_with_tangent(q, q), step, finish)


def _gradient_of_queries(scale, dtype):
    def start(q, do, L, D):
        return jnp.zeros_like(q, wide(dtype)), L.T, D.T

    def step(state, stay, by):
        (dq, L, D), (q, do, *_), (k, v, keep) = state, stay, by
        _, ds = online.pull(q, k, do, v, L, D, _true(keep), scale)
        return dq + online.dot("nm,mk->nk", ds, k), L, D

    return Pass("attention_dq", start, step, lambda state: (state[0].astype(dtype),))


def _gradients_of_keys(scale, dtype):
    def start(k, v, keep):
        return jnp.zeros_like(k, wide(dtype)), jnp.zeros_like(v, wide(dtype))

    def step(state, stay, by):
        (dk, dv), (k, v, keep), (q, do, L, D) = state, stay, by
        keep = None if keep is None else _true(keep.T)
        p, ds = online.pull(k, q, v, do, L, D, keep, scale)  # transposed: keys by queries
        return dk + online.dot("mn,nk->mk", ds, q), dv + online.dot("mn,nk->mk", p, do)

    return Pass("attention_dk_dv", start, step, lambda state: tuple(x.astype(dtype) for x in state))


def _true(keep):
    return None if keep is None else keep != 0


# The kernels. Arrays are (G, N, K) or rows (G, 1, N), G the number of examples times heads; N is a whole number of
# blocks. An array that heads have in common has a shorter first axis.


def _on_tpu(of: Pass, stay, by, sizes: tuple[int, int], interpret: bool):
    flat, tree = jax.tree.flatten((stay, by))
    state, outs = _shapes(of, stay, flat, sizes[0])
    a, b = len(flat), len(flat) + len(outs)

    def kernel(*refs):
        states = refs[b:]
        stay, by = jax.tree.unflatten(tree, [ref[...] for ref in refs[:a]])
        read = lambda: jax.tree.unflatten(jax.tree.structure(state), [ref[...] for ref in states])  # noqa: E731

        @pl.when(pl.program_id(2) == 0)
        def _():
            _write(states, of.start(*stay))

        _write(states, of.step(read(), stay, by))

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            _write(refs[a:b], of.finish(read()))

    groups = outs[0].shape[0]
    staying = lambda x: _spec(x, sizes[0], groups, lambda g, i, j: (g, i))  # noqa: E731
    passing = lambda x: _spec(x, sizes[1], groups, lambda g, i, j: (g, j))  # noqa: E731
    return pl.pallas_call(
        kernel,
        grid=(groups, _length(stay) // sizes[0], _length(by) // sizes[1]),
        in_specs=[*map(staying, jax.tree.leaves(stay)), *map(passing, jax.tree.leaves(by))],
        out_specs=[*map(staying, outs)],
        out_shape=outs,
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype) for x in jax.tree.leaves(state)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=of.name,
    )(*flat)


def _on_gpu(of: Pass, stay, by, sizes: tuple[int, int], interpret: bool):
    # Chosen from the compiler's report of registers and shared memory for an H100: up to 256 bytes of width nothing is
    # spilled. The wider the heads, the fewer keys pass by at a time.
    width, itemsize = stay[0].shape[2], stay[0].dtype.itemsize
    passing = min(sizes[1], max(16, sizes[1] * 128 // (width * itemsize)))
    flat, tree = jax.tree.flatten((stay, by))
    _, outs = _shapes(of, stay, flat, sizes[0])

    def kernel(*refs):
        stay, by = jax.tree.unflatten(tree, refs[: len(flat)])
        stay = jax.tree.map(lambda ref: ref[...], stay)

        def step(j, state):
            at = pl.ds(j * passing, passing)
            return of.step(state, stay, jax.tree.map(lambda ref: ref[:, at] if _is_row(ref) else ref[at, :], by))

        _write(refs[len(flat) :], of.finish(jax.lax.fori_loop(0, turns, step, of.start(*stay))))

    groups, turns = outs[0].shape[0], _length(by) // passing
    staying = lambda x: _spec(x, sizes[0], groups, lambda i, g: (g, i))  # noqa: E731
    whole = lambda x: _spec(x, _length(by), groups, lambda i, g: (g, 0))  # noqa: E731
    return pl.pallas_call(
        kernel,
        grid=(_length(stay) // sizes[0], groups),
        in_specs=[*map(staying, jax.tree.leaves(stay)), *map(whole, jax.tree.leaves(by))],
        out_specs=[*map(staying, outs)],
        out_shape=outs,
        compiler_params=triton.CompilerParams(
            num_warps=4 if width <= 64 else 8, num_stages=2 if width * itemsize <= 256 else 1
        ),
        interpret=interpret,
        name=of.name,
    )(*flat)


def _shapes(of: Pass, stay, inputs: list, size: int):
    """Returns the shapes of the state and those of the whole outputs."""
    block = lambda x: jax.ShapeDtypeStruct((1, size) if _is_row(x) else (size, x.shape[2]), x.dtype)  # noqa: E731
    state = jax.eval_shape(of.start, *jax.tree.map(block, stay))
    groups, length, _ = stay[0].shape
    # The axes of a `jax.shard_map` over which the outputs differ: a kernel does not tell JAX by itself.
    varying = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in inputs))

    def whole(x):
        shape = (groups, 1, length) if _is_row(x) else (groups, length, x.shape[1])
        return jax.ShapeDtypeStruct(shape, x.dtype, manual_axis_type=ManualAxisType(varying=varying))

    return state, [whole(x) for x in jax.eval_shape(of.finish, state)]


def _spec(x, size: int, groups: int, at: Callable) -> pl.BlockSpec:
    """Returns the blocks of `size` of x, for a function from indices of the grid to (group, number of the block)."""
    share = groups // x.shape[0]

    def index(*ids):
        group, number = at(*ids)
        return (group // share, 0, number) if _is_row(x) else (group // share, number, 0)

    return pl.BlockSpec((None, 1, size) if _is_row(x) else (None, size, x.shape[2]), index)


def _write(refs, values):
    for ref, value in zip(refs, jax.tree.leaves(values), strict=True):
        ref[...] = value


def _is_row(x) -> bool:
    return x.shape[-2] == 1


def _length(arrays) -> int:
    return arrays[0].shape[1]


# The passes over whole arrays, as `rules.differentiable` takes them.


def forward(platform, q, k, v, mask):
    """Returns (output, L)."""
    of = _forward(q.shape[-1] ** -0.5, q.dtype)
    o, L = platform.run(of, platform.matrices(q), (*platform.matrices(k, v), platform.keep(mask, k)))
    return _cut(o, q), _cut_row(L, q)


def forward_and_tangent(platform, q, k, v, q_dot, k_dot, v_dot, mask):
    """Returns (output, L, tangent of the output)."""
    of = _forward_and_tangent(q.shape[-1] ** -0.5, q.dtype)
    keys = *platform.matrices(k, v, k_dot, v_dot), platform.keep(mask, k)
    o, L, o_dot = platform.run(of, platform.matrices(q, q_dot), keys)
    return _cut(o, q), _cut_row(L, q), _cut(o_dot, q)


def backward(platform, q, k, v, mask, o, L, do):
    """Returns the gradients of q, k and v for the gradient `do` of the output."""
    scale, work = q.shape[-1] ** -0.5, wide(q.dtype)
    D = jnp.sum(do.astype(work) * o.astype(work), -1)
    queries = *platform.matrices(q, do), platform.row(L), platform.row(D)
    keys = *platform.matrices(k, v), platform.keep(mask, k)
    (dq,) = platform.run(_gradient_of_queries(scale, q.dtype), queries, keys)
    dk, dv = platform.run(_gradients_of_keys(scale, q.dtype), keys, queries)
    return _cut(dq, q), _cut(dk, k), _cut(dv, v)


def _cut(x, like):
    """Returns (G, N, K) without its padding, as (B, H, N, K) like `like`."""
    return x[:, : like.shape[2], : like.shape[3]].reshape(like.shape)


def _cut_row(x, like):
    return x[:, 0, : like.shape[2]].reshape(like.shape[:3])


def _by_device(run: Callable) -> Callable:
    """Returns `run`, a function of (B, H, ...) arrays and a mask (B, M) or None, for each device's examples and heads.

    To JAX's transformations it is one operation: a mapped axis becomes more examples, and `jax.checkpoint` saves or
    repeats the whole. (What it saves from within a `jax.shard_map` inside another one, JAX 0.10 cannot lower.)
    """

    @jax.custom_batching.custom_vmap
    def each(*arrays):
        mesh = jax.sharding.get_abstract_mesh()
        free = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual]
        if mesh.size == 1 or not free:
            return run(*arrays)
        named = zip(nn.logical_to_mesh_axes(("batch", "heads")), arrays[0].shape, strict=False)
        split = [_fitting(axes, size, {axis: mesh.shape[axis] for axis in free}) for axes, size in named]
        specs = jax.tree.map(lambda x: PartitionSpec(*(split if x.ndim > 2 else split[:1])), arrays)
        return jax.shard_map(run, in_specs=specs, out_specs=PartitionSpec(*split), axis_names=set(free))(*arrays)

    @each.def_vmap
    def mapped(size, is_batched, *arrays):
        def flattened(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        outs = each(*jax.tree.map(flattened, arrays, tuple(is_batched)))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), outs), jax.tree.map(lambda _: True, outs)

    return each


def _fitting(axes, size: int, free: dict[str, int]) -> tuple[str, ...] | None:
    """Returns those of the axes that are free, if they divide the size."""
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if axis in free)
    return axes if size % math.prod(free[axis] for axis in axes) == 0 else None


def attention_on(platform: Platform) -> Callable:
    """Returns `attention` by the kernels of one platform, wherever it is called."""
    return rules.differentiable(
        *(_by_device(functools.partial(run, platform)) for run in (forward, forward_and_tangent, backward))
    )


TPU = Platform(_on_tpu, block=512, unit=128, power=False)
GPU = Platform(_on_gpu, block=64, unit=64, power=True)
MAX_WIDTH_ON_GPU = 128  # of a head: the registers hold no more


def has_kernels(device: jax.Device, width: int) -> bool:
    """Returns whether there are kernels for heads of this width on a device like this one; else `blockwise` takes over.

    On TPUs there are kernels for any width, on NVIDIA GPUs of compute capability 8.0 or more up to MAX_WIDTH_ON_GPU.
    """
    if device.platform == "tpu":
        return True
    capability = str(getattr(device, "compute_capability", ""))  # AMD's begin with letters
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8 and width <= MAX_WIDTH_ON_GPU


def _where_it_runs(run: Callable) -> Callable:
    """Returns a pass by the kernels for the platform that the program is compiled for, else by `blockwise`.

    That need not be the platform of the process that traces it: the planner compiles for devices that are not there.
    """
    otherwise: Callable = getattr(blockwise, run.__name__)

    def each(q, *arrays):
        if q.dtype == jnp.float64:
            return otherwise(q, *arrays)
        kernels = {"tpu": functools.partial(run, TPU), "cuda": functools.partial(run, GPU)}
        width, here = q.shape[3], jax.local_devices()[0]
        if width > MAX_WIDTH_ON_GPU or (here.platform == "gpu" and not has_kernels(here, width)):
            del kernels["cuda"]
        return jax.lax.platform_dependent(q, *arrays, **kernels, default=otherwise)

    return _by_device(each)


attention = rules.differentiable(*(_where_it_runs(run) for run in (forward, forward_and_tangent, backward)))
