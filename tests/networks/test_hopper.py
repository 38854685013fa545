"""The kernels for Hopper GPUs, interpreted: warpgroups as threads, barriers and copies; only products are JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import PartitionSpec as P

from tim_jax.networks.attention import blockwise, hopper, pallas, xla

# Examples, queries, keys, heads, width of a head, keys that may be attended to in each example. Tiles have 8 rows, so
# that a pair of warpgroups has 16. The interpreter compiles for every warpgroup of every thread block: few of these.
CASES = {
    "slots used again, masked": (2, 13, 29, 1, 24, (3, 29)),
    "one tile": (1, 5, 7, 1, 64, None),
    "no padding, heads": (1, 32, 48, 2, 128, None),
    "no key in one example": (2, 16, 20, 2, 72, (0, 20)),
}


def interpreter():
    """Parameters, which JAX 0.10 has not yet made public; its interpreter looks for races between warpgroups.

    That of JAX 0.12 also finds tiles that are copied over before a fence has ordered the ordinary loads of them.
    """
    if hasattr(mosaic_gpu, "InterpretGPUParams"):
        return mosaic_gpu.InterpretGPUParams(detect_races=True)
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(detect_races=True)


def make_inputs(B, N, M, H, K, keys):
    """(q, k, v), their tangents, a gradient of the output and a mask, of numbers that bfloat16 can hold."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(-32, 33, (B, H, length, K)) / 16  # noqa: E731
    mask = None if keys is None else jnp.arange(M)[None] < jnp.array(keys)[:, None]
    return (draw(N), draw(M), draw(M)), (draw(N), draw(M), draw(M)), draw(N), mask


def results(passes, dtype, qkv, dots, do, mask):
    """{name: array} of the three passes, which have output and L in common."""
    qkv, dots, do = jax.tree.map(lambda x: jnp.asarray(x, dtype), (qkv, dots, do))
    o, L = passes.forward(*qkv, mask)
    o_too, L_too, o_dot = passes.forward_and_tangent(*qkv, *dots, mask)
    dq, dk, dv = passes.backward(*qkv, mask, o, L, do)
    return {"o": o, "o too": o_too, "o_dot": o_dot, "L": L, "L too": L_too, "dq": dq, "dk": dk, "dv": dv}


def truth(qkv, dots, do, mask):
    """The same by attention as it is written down, in float64."""
    attend = lambda *qkv: xla.attention(*(x.swapaxes(1, 2) for x in qkv), mask).swapaxes(1, 2)  # noqa: E731
    qkv, dots, do = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (qkv, dots, do))
    o, o_dot = jax.jvp(attend, qkv, dots)
    dq, dk, dv = jax.vjp(attend, *qkv)[1](do)
    return {"o": o, "o too": o, "o_dot": o_dot, "dq": dq, "dk": dk, "dv": dv}


# By default one tile, which takes a third of the time. Several heads are in "no key in one example" as well.
WHEN = {"slots used again, masked": pytest.mark.slow, "no key in one example": pytest.mark.slow,
        "no padding, heads": pytest.mark.nightly}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(name, marks=WHEN.get(name, ())) for name in CASES])
def test_output_tangent_and_gradients_are_those_of_float64(case, monkeypatch, capfd):
    monkeypatch.setattr(blockwise, "BLOCK", 8)
    inputs = make_inputs(*CASES[case])
    with jax.enable_x64(True):
        exact = jax.device_get(jax.jit(truth)(*inputs))
    usual = jax.jit(lambda *inputs: results(blockwise, jnp.bfloat16, *inputs))(*inputs)
    kernels = hopper.Kernels(tile=8, interpret=interpreter())
    found = jax.jit(lambda *inputs: results(kernels, jnp.bfloat16, *inputs))(*inputs)
    for name in ("L", "L too"):
        np.testing.assert_allclose(found[name], usual[name], rtol=1e-5, atol=1e-5)
    for name, right in exact.items():
        assert found[name].dtype == jnp.bfloat16 and jnp.isfinite(found[name]).all(), name
        error, blocks = (np.linalg.norm(np.asarray(x[name]).astype(np.float64) - right) for x in (found, usual))
        assert error <= 1.5 * blocks + 2 * float(jnp.finfo(jnp.bfloat16).eps) * np.linalg.norm(right), name
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "name, keys, fences",
    [("forward", 128, [False]), ("forward", 100, [True]), ("backward", 128, [False, True])],
)
def test_ordinary_loads_are_over_before_their_slot_is_copied_into(name, keys, fences):
    """Those of vectors (bias, L, D). WGMMA reads by the proxy of the copies, and must not wait for a fence."""
    q, k = (jax.ShapeDtypeStruct((1, 1, n, 64), jnp.bfloat16) for n in (128, keys))
    inputs = (q, k, k, None) + ((q, jax.ShapeDtypeStruct(q.shape[:3], jnp.float32), q) if name == "backward" else ())
    program = str(jax.make_jaxpr(getattr(hopper.Kernels(), name))(*inputs))
    assert [before.rstrip().endswith("commit_smem") for before in program.split("barrier_arrive")[:-1]] == fences


def test_kernels_of_all_platforms_have_one_type_within_a_shard_map():
    """In bfloat16 there are some for TPUs, for Hopper and blocks, and JAX traces all of them wherever it runs."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradients(*qkv):
        def loss(*qkv):
            o, o_dot = jax.jvp(lambda *qkv: pallas.attention(*qkv, in_jvp=True), qkv, qkv)
            return jnp.sum((o * jax.lax.stop_gradient(o_dot)).astype(jnp.float32))

        return jax.grad(loss, (0, 1, 2))(*qkv)

    x = jax.ShapeDtypeStruct((2, 16, 2, 16), jnp.bfloat16)
    split = jax.shard_map(gradients, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert jax.eval_shape(split, x, x, x) == (x, x, x)
