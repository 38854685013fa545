"""Attention as kernels for TPUs, by Pallas Mosaic TPU.

All passes have one form: a block that stays (of queries, or of keys for the gradients of k and v) meets, one after
another, the blocks that pass by, and folds them into a state in scratch memory. The blocks that pass by are the last
axis of the grid. A `Pass` defines the folding; its arithmetic is that of `online`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType

from tim_jax.networks.attention import online
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


# The kernel. Arrays are (G, N, K) or rows (G, 1, N), G the number of examples times heads; N is a whole number of
# blocks. An array that heads have in common has a shorter first axis.


def _run(of: Pass, stay, by, sizes: tuple[int, int], interpret: bool):
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


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The passes over whole arrays (B, H, N, K), as `rules.differentiable` takes them.

    Attributes:
        block: The largest number of queries or keys in a block.
        unit: Blocks are multiples of this.
        interpret: Whether to interpret the kernels, slowly and on any platform, for tests.
    """

    block: int = 512
    unit: int = 128
    interpret: bool = False

    def forward(self, q, k, v, mask):
        """Returns (output, L)."""
        of = _forward(q.shape[-1] ** -0.5, q.dtype)
        o, L = self._run(of, self._matrices(q), (*self._matrices(k, v), self._keep(mask, k)))
        return _cut(o, q), _cut_row(L, q)

    def forward_and_tangent(self, q, k, v, q_dot, k_dot, v_dot, mask):
        """Returns (output, L, tangent of the output)."""
        of = _forward_and_tangent(q.shape[-1] ** -0.5, q.dtype)
        keys = *self._matrices(k, v, k_dot, v_dot), self._keep(mask, k)
        o, L, o_dot = self._run(of, self._matrices(q, q_dot), keys)
        return _cut(o, q), _cut_row(L, q), _cut(o_dot, q)

    def backward(self, q, k, v, mask, o, L, do):
        """Returns the gradients of q, k and v for the gradient `do` of the output."""
        scale, work = q.shape[-1] ** -0.5, wide(q.dtype)
        D = jnp.sum(do.astype(work) * o.astype(work), -1)
        queries = *self._matrices(q, do), self._row(L), self._row(D)
        keys = *self._matrices(k, v), self._keep(mask, k)
        (dq,) = self._run(_gradient_of_queries(scale, q.dtype), queries, keys)
        dk, dv = self._run(_gradients_of_keys(scale, q.dtype), keys, queries)
        return _cut(dq, q), _cut(dk, k), _cut(dv, v)

    def _size(self, length: int) -> int:
        """Returns the size of the blocks of `length` queries or keys: equal blocks with the least padding."""
        number = math.ceil(length / self.block)
        return math.ceil(length / number / self.unit) * self.unit

    def _run(self, of: Pass, stay: tuple, by: tuple):
        return _run(of, stay, by, (self._size(_length(stay)), self._size(_length(by))), self.interpret)

    def _matrices(self, *arrays) -> list[jax.Array]:
        """Returns (B, H, N, K) as (B H, N, K), with zeros after the last query or key."""
        return [self._padded(x) for x in arrays]

    def _row(self, x) -> jax.Array:
        """Returns (B, H, N) as (B H, 1, N), with zeros after the last."""
        return self._padded(x[..., None]).swapaxes(1, 2)

    def _keep(self, mask, k) -> jax.Array | None:
        """Returns (B, 1, M), 1 for keys that may be attended to, 0 for others and padding; None if there are none."""
        length = k.shape[2]
        if mask is None:
            if length % self._size(length) == 0:
                return None
            mask = jnp.ones((1, length), bool)
        return self._row(mask[:, None].astype(jnp.int32))

    def _padded(self, x):
        length = x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -length % self._size(length)), (0, 0)))
        return x.reshape(-1, *x.shape[2:])


def _cut(x, like):
    """Returns (G, N, K) without its padding, as (B, H, N, K) like `like`."""
    return x[:, : like.shape[2]].reshape(like.shape)


def _cut_row(x, like):
    return x[:, 0, : like.shape[2]].reshape(like.shape[:3])
