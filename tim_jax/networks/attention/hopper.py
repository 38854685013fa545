"""Attention as kernels for NVIDIA Hopper GPUs, by Pallas Mosaic GPU.

All passes have one form. A tile stays (of queries, or of keys for the gradients of k and v), the tiles of the other
side pass by one after another, and a carry in registers gathers what they give. A thread block is three warpgroups: two
compute, each with a tile of its own in shared memory, and the third loads what passes by for both, STAGES tiles ahead.
Products are WGMMA instructions, with factors in bfloat16 and sums in float32.

With logits s_nm of query n and key m and their tangents ṡ_nm, the carry of the output and its tangent is

    m  the largest logit             z  Σ exp(s − m)             y  Σ exp(s − m) v
    a  the weighted mean of ṡ                                    ẏ  Σ exp(s − m) ((ṡ − a) v + v̇)

as in `online`, where m, z and a are vectors. The bias of a key is 0, or −∞ where it may not be attended to.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

COMPUTE = 2  # warpgroups of a thread block that compute
STAGES = 2  # tiles of each array that are in shared memory while they pass by
REGISTERS = {"compute": 232, "load": 40}  # of a thread
MAX_WIDTH = 128  # of a head: shared memory and registers hold no more


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a warpgroup does with its tiles, references to matrices (n, K) and vectors (n,).

    Attributes:
        name: Of the kernel.
        start: (*stay) -> carry.
        step: (carry, stay, by) -> carry.
        finish: carry -> tiles like those that stay: so many matrices, then so many vectors.
        matrices: Each is written over a matrix that has stayed.
        vectors: In float32.
    """

    name: str
    start: Callable
    step: Callable
    finish: Callable
    matrices: int
    vectors: int = 0


# The passes. `multiply` is below; its `scale` is the factor 1 / sqrt(K) of q k^T.


def _forward(multiply, scale):
    def start(q):
        m, z, y = _vector(q, jnp.finfo(jnp.float32).min), _vector(q), _matrix(q)
        return m, z, y

    def step(carry, stay, by):
        (m, z, y), (q,), (k, v, bias) = carry, stay, by
        s = _biased(multiply((q, k), transposed=True) * scale, bias)
        m, z, p, shrink = _softmax(m, z, s)
        y = multiply((p, v), onto=y * _columns(shrink, y))
        return m, z, y

    def finish(carry):
        m, z, y = carry
        return y / _columns(_nonzero(z), y), m + jnp.log(_nonzero(z))

    return Pass("attention", start, step, finish, matrices=1, vectors=1)


def _forward_and_tangent(multiply, scale):
    def start(q, q_dot):
        m, z, y = _vector(q, jnp.finfo(jnp.float32).min), _vector(q), _matrix(q)
        a, y_dot = _vector(q), _matrix(q)
        return m, z, y, a, y_dot

    def step(carry, stay, by):
        (m, z, y, a, y_dot), (q, q_dot), (k, v, k_dot, v_dot, bias) = carry, stay, by
        s = _biased(multiply((q, k), transposed=True) * scale, bias)
        s_dot = multiply((q_dot, k), (q, k_dot), transposed=True) * scale
        old = z
        m, z, p, shrink = _softmax(m, z, s)
        a_new = (old * shrink * a + (p * s_dot).sum(axis=1)) / _nonzero(z)
        y_dot = _columns(shrink, y) * (y_dot + _columns(a - a_new, y) * y)
        y_dot = multiply((p * (s_dot - _columns(a_new, s)), v), (p, v_dot), onto=y_dot)
        y = multiply((p, v), onto=y * _columns(shrink, y))
        return m, z, y, a_new, y_dot

    def finish(carry):
        m, z, y, _, y_dot = carry
        z = _nonzero(z)
        return y / _columns(z, y), y_dot / _columns(z, y), m + jnp.log(z)

    return Pass("attention_and_tangent", start, step, finish, matrices=2, vectors=1)


def _gradient_of_queries(multiply, scale):
    def step(dq, stay, by):
        (q, do, L, D), (k, v, bias) = stay, by
        s = _biased(multiply((q, k), transposed=True) * scale, bias)
        p = jnp.exp(s - _columns(L[...], s))
        ds = p * (multiply((do, v), transposed=True) - _columns(D[...], s)) * scale
        return multiply((ds, k), onto=dq)

    return Pass("attention_dq", lambda q, *_: _matrix(q), step, lambda dq: (dq,), matrices=1)


def _gradients_of_keys(multiply, scale):
    def step(carry, stay, by):
        (dk, dv), (k, v, bias), (q, do, L, D) = carry, stay, by
        s = multiply((k, q), transposed=True) * scale  # keys by queries
        if bias is not None:
            s += _columns(bias[...], s)
        p = jnp.exp(s - _rows(L[...], s))
        ds = p * (multiply((v, do), transposed=True) - _rows(D[...], s)) * scale
        return multiply((ds, q), onto=dk), multiply((p, do), onto=dv)

    return Pass("attention_dk_dv", lambda k, v, *_: (_matrix(k), _matrix(v)), step, lambda carry: carry, matrices=2)


def _softmax(m, z, s):
    """Returns m and z after the logits s, exp(s − m), and the factor of the older sums."""
    m_new = jnp.maximum(m, s.max(axis=1))
    p, shrink = jnp.exp(s - _columns(m_new, s)), jnp.exp(m - m_new)
    return m_new, shrink * z + p.sum(axis=1), p, shrink


def _biased(s, bias):
    return s if bias is None else s + _rows(bias[...], s)


def _nonzero(z):
    return jnp.where(z == 0, jnp.ones_like(z), z)


def _vector(like, value=0.0):
    return jnp.full(like.shape[:1], value, jnp.float32)


def _matrix(like):
    return jnp.zeros(like.shape, jnp.float32)


def _columns(x, like):
    """Returns a vector (n,) with a number for each row of a matrix (n, m), as that matrix."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def _rows(x, like):
    """Returns a vector (m,) with a number for each column of a matrix (n, m), as that matrix."""
    return lax.broadcast_in_dim(x, like.shape, [1])


# The kernel.


def _multiply(*pairs, onto=None, transposed=False):
    """Returns onto + Σ a b, or Σ a b^T if `transposed`, in float32; a is a tile or numbers, b is a tile."""
    (a, b), *_ = pairs
    shape = a.shape[0], b.shape[0 if transposed else 1]

    def accumulate(sums):
        for a, b in pairs:
            a = a.astype(b.dtype) if isinstance(a, jax.Array) else a
            plgpu.wgmma(sums, a, b.T if transposed else b)
        return sums[...] if onto is None else None

    if onto is None:
        return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))
    return pl.run_state(accumulate)(plgpu.ACC.init(onto))


def _interpreted(*pairs, onto=None, transposed=False):
    """`_multiply` for JAX's interpreter of Mosaic GPU, which has none with a in registers or b transposed."""
    dot = functools.partial(
        lax.dot_general,
        dimension_numbers=(((1,), (1 if transposed else 0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    products = sum(dot(a.astype(b.dtype) if isinstance(a, jax.Array) else a[...], b[...]) for a, b in pairs)
    return products if onto is None else onto + products


def _run(of: Pass, stay, by, tile: int, interpret) -> list[jax.Array]:
    """Returns the outputs of a pass: matrices (G, N, K), then vectors (G, N).

    Args:
        of: The pass.
        stay: Tuple of matrices (G, N, K) and vectors (G, N), G the number of examples times heads, N a multiple of
            COMPUTE tiles. What heads have in common has a shorter first axis; what is None is not there.
        by: The same for what passes by, N a multiple of a tile.
        tile: Rows of a tile.
        interpret: Parameters of the interpreter, or None.
    """
    (stay, stay_tree), (by, by_tree) = jax.tree.flatten(stay), jax.tree.flatten(by)
    groups, length, _ = stay[0].shape
    steps = by[0].shape[1] // tile
    stages = min(STAGES, steps)
    # WGMMA and copies reach shared memory by one proxy, ordinary loads (of vectors; interpreted, of all) by another.
    loads = interpret is not None or any(x.ndim == 2 for x in by)
    outs = [jax.ShapeDtypeStruct(stay[0].shape, stay[0].dtype)] * of.matrices
    outs += [jax.ShapeDtypeStruct((groups, length), jnp.float32)] * of.vectors

    def attention(*refs):
        refs, (kept, vectors, passing, ready, loaded, consumed) = refs[:-6], refs[-6:]
        sources, passers, targets = (
            refs[: len(stay)], refs[len(stay) : len(stay) + len(by)], refs[len(stay) + len(by) :]
        )  # fmt: skip
        warpgroup, group = lax.axis_index("warpgroup"), lax.axis_index("group")

        def tile_of(ref, number):
            mine = lax.div(group, jnp.int32(groups // ref.shape[0]))
            return ref.at[mine, pl.ds(number * tile, tile)]

        @pl.when(warpgroup < COMPUTE)
        def _compute():
            plgpu.set_max_registers(REGISTERS["compute"], action="increase")
            number = lax.axis_index("tile") * COMPUTE + warpgroup
            here = [ref.at[warpgroup] for ref in kept]
            for source, target in zip(sources, here, strict=True):
                plgpu.copy_gmem_to_smem(tile_of(source, number), target, ready.at[warpgroup])
            plgpu.barrier_wait(ready.at[warpgroup])
            tiles = jax.tree.unflatten(stay_tree, here)

            def turn(j, carry):
                slot = lax.rem(j, jnp.int32(stages))
                plgpu.barrier_wait(loaded.at[slot])
                carry = of.step(carry, tiles, jax.tree.unflatten(by_tree, [ref.at[slot] for ref in passing]))
                if loads:  # a barrier alone does not order them with the next copy into the slot
                    plgpu.commit_smem()
                plgpu.barrier_arrive(consumed.at[slot])
                return carry

            results = of.finish(lax.fori_loop(0, steps, turn, of.start(*tiles)))
            here = [*here[: of.matrices], *(ref.at[warpgroup] for ref in vectors)]
            for ref, result in zip(here, results, strict=True):
                ref[...] = result.astype(ref.dtype)
            plgpu.commit_smem()
            for ref, target in zip(here, targets, strict=True):
                plgpu.copy_smem_to_gmem(ref, tile_of(target, number))
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == COMPUTE)
        def _load():
            plgpu.set_max_registers(REGISTERS["load"], action="decrease")

            def load(j, slot):
                for source, target in zip(passers, passing, strict=True):
                    plgpu.copy_gmem_to_smem(tile_of(source, j), target.at[slot], loaded.at[slot])

            for j in range(stages):
                load(j, j)

            @pl.loop(0, steps)
            def _(j):
                slot = lax.rem(j, jnp.int32(stages))
                plgpu.barrier_wait(consumed.at[slot])
                pl.when(j + stages < steps)(lambda: load(j + stages, slot))

    results = plgpu.kernel(
        attention,
        out_type=outs,
        scratch_types=(
            [_shared(x, COMPUTE, tile) for x in stay],
            [_shared(x, COMPUTE, tile) for x in outs[of.matrices :]],
            [_shared(x, stages, tile) for x in by],
            plgpu.Barrier(num_arrivals=len(stay), num_barriers=COMPUTE),
            plgpu.Barrier(num_arrivals=len(by), num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=stages),
        ),
        grid=(length // (COMPUTE * tile), groups),
        grid_names=("tile", "group"),
        num_threads=COMPUTE + 1,
        thread_name="warpgroup",
        kernel_name=of.name,
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )(*stay, *by)
    return [_varying_as(x, (*stay, *by)) for x in results]


def _varying_as(x, inputs):
    """Returns x as varying over the axes of a `jax.shard_map` that the inputs vary over: a kernel does not tell JAX."""
    axes = frozenset().union(*(jax.typeof(y).manual_axis_type.varying for y in inputs))
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def _shared(x, slots: int, tile: int):
    """Returns tiles of an array in shared memory; matrices as WGMMA reads them, with the widest swizzle that fits."""
    if x.ndim == 2:
        return plgpu.SMEM((slots, tile), x.dtype)
    row = x.shape[2] * x.dtype.itemsize
    swizzle = next((size for size in (128, 64) if row % size == 0), 32)
    transforms = plgpu.TilingTransform((8, swizzle // x.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM((slots, tile, x.shape[2]), x.dtype, transforms=transforms)


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The passes over whole arrays (B, H, N, K), as `rules.differentiable` takes them.

    Attributes:
        tile: Rows of a tile: 64, those of a WGMMA instruction.
        interpret: Parameters of JAX's interpreter of Mosaic GPU, with tiles of any size, for tests; None: compiled.
    """

    tile: int = 64
    interpret: Any = None

    def forward(self, q, k, v, mask):
        """Returns (output, L)."""
        o, L = self._run(_forward, q, self._padded(q), (*self._padded(k, v), self._bias(mask, k)))
        return _cut(o, q), _cut(L, q)

    def forward_and_tangent(self, q, k, v, q_dot, k_dot, v_dot, mask):
        """Returns (output, L, tangent of the output)."""
        keys = *self._padded(k, v, k_dot, v_dot), self._bias(mask, k)
        o, o_dot, L = self._run(_forward_and_tangent, q, self._padded(q, q_dot), keys)
        return _cut(o, q), _cut(L, q), _cut(o_dot, q)

    def backward(self, q, k, v, mask, o, L, do):
        """Returns the gradients of q, k and v for the gradient `do` of the output."""
        D = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), -1)
        queries, keys = self._padded(q, do, L, D), (*self._padded(k, v), self._bias(mask, k))
        (dq,) = self._run(_gradient_of_queries, q, queries, keys)
        dk, dv = self._run(_gradients_of_keys, q, keys, queries)
        return _cut(dq, q), _cut(dk, k), _cut(dv, v)

    def _run(self, make: Callable, q, stay, by):
        of = make(_multiply if self.interpret is None else _interpreted, q.shape[-1] ** -0.5)
        return _run(of, stay, by, self.tile, self.interpret)

    def _padded(self, *arrays) -> tuple[jax.Array, ...]:
        """Returns (B, H, N, K) as (B H, N, K) and (B, H, N) as (B H, N), with zeros to whole thread blocks and, since
        WGMMA takes so many at a time, to a multiple of 16 numbers in a row."""
        return tuple(self._with(x, 0, -x.shape[3] % 16 if x.ndim == 4 else None) for x in arrays)

    def _bias(self, mask, k):
        """Returns (B, M), or (1, M) where only what is behind the last key is masked, or None if nothing is."""
        if mask is None:
            if k.shape[2] % (COMPUTE * self.tile) == 0:
                return None
            mask = jnp.ones((1, k.shape[2]), bool)
        return self._with(jnp.where(mask, 0.0, -jnp.inf).astype(jnp.float32)[:, None], -jnp.inf)

    def _with(self, x, value: float, more: int | None = None):
        behind = -x.shape[2] % (COMPUTE * self.tile)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, behind), *([] if more is None else [(0, more)])), constant_values=value)
        return x.reshape(-1, *x.shape[2:])


def _cut(x, like):
    """Returns (G, N, K) or (G, N) without its padding, as (B, H, N, K) or (B, H, N) like `like`."""
    shape = like.shape[: x.ndim + 1]
    return x[tuple(map(slice, (x.shape[0], *shape[2:])))].reshape(shape)
