"""Attention in blocks against attention as it is written down: numbers, derivatives, memory, company."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tim_jax.bench import __main__ as command
from tim_jax.bench import attention as bench
from tim_jax.config import identity
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.network import warn_once
from tim_jax.networks.attention import blockwise, pallas, tpu, xla
from tim_jax.networks.attention.modules import ATTENTION, LINEAR_FROM, attention
from tim_jax.networks.layers import wide
from tim_jax.system import flops, timing
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.training.state import TrainState


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    """Blocks of at most eight, so that small inputs have several; but for tests of memory."""
    if "memory" not in request.node.name:
        monkeypatch.setattr(blockwise, "BLOCK", 8)


LINEAR = {  # the kernels interpreted, with small blocks
    "blockwise": blockwise.attention,
    "tpu": pallas.attention_by(tpu.Kernels(block=8, unit=8, interpret=True)),
}

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "permute")
# Queries, keys, width of a head, mask (see `make_mask`), scale of q and k.
CASES = {
    "one token": (1, 1, 16, None, 1),
    "one block": (7, 7, 64, None, 1),
    "whole blocks": (16, 24, 16, None, 1),
    "odd lengths": (19, 37, 72, None, 1),
    "wide heads, masked": (9, 13, 128, "prefix", 1),
    "all but one key": (5, 21, 16, "one", 1),
    "no key in one row": (11, 20, 64, "none", 1),
    "large logits": (13, 18, 64, None, 12),
    "large logits, masked": (3, 33, 16, "prefix", 12),
}
# Type: (steps of rounding that are let pass, times the error of `xla` in the same type that is let pass).
TYPES = {jnp.float64: (100, 1), jnp.float32: (8, 2), jnp.bfloat16: (2, 1.5)}


def make_mask(kind, M):
    """(2, M), the first row different from the second; None for none."""
    if kind is None:
        return None
    mask = np.ones((2, M), bool)
    mask[0] = {"prefix": np.arange(M) < 3, "one": np.arange(M) == M // 2, "none": np.zeros(M, bool)}[kind]
    return jnp.asarray(mask)


def make_inputs(N, M, K, scale=1, heads=2):
    """(q, k, v), their tangents and a gradient of the output, as float64 numbers that bfloat16 can hold."""
    rng = np.random.default_rng(0)

    def draw(length, scale=1):
        return scale * rng.integers(-32, 33, (2, length, heads, K)) / 16

    qkv, dots = (draw(N, scale), draw(M), draw(M)), (draw(N), draw(M), draw(M))
    return qkv, dots, draw(N)


def results(attend, mask, dtype, inputs, through_tangent=False):
    """{name: array}: output, tangent, and gradients of q, k, v without and within a jvp."""
    qkv, dots, do = jax.tree.map(lambda x: jnp.asarray(x, dtype), inputs)

    def plain(qkv):
        o = attend(*qkv, mask)
        return jnp.sum((o * do).astype(wide(dtype))), o

    def in_jvp(qkv):
        o, o_dot = jax.jvp(lambda *qkv: attend(*qkv, mask, in_jvp=True), qkv, dots)
        through = o_dot if through_tangent else jax.lax.stop_gradient(o_dot)
        return jnp.sum((o * do).astype(wide(dtype))) + jnp.sum(jnp.sin(through).astype(wide(dtype))), (o, o_dot)

    plain_grads, plain_o = jax.grad(plain, has_aux=True)(qkv)
    grads, (o, o_dot) = jax.grad(in_jvp, has_aux=True)(qkv)
    names = ("plain output", "output", "tangent", *("plain " + x for x in ("dq", "dk", "dv")), "dq", "dk", "dv")
    return dict(zip(names, (plain_o, o, o_dot, *plain_grads, *grads), strict=True))


@functools.cache
def exact(case):
    """The answers of `xla` in float64."""
    N, M, K, kind, scale = CASES[case]
    mask, inputs = make_mask(kind, M), make_inputs(N, M, K, scale)
    return jax.jit(functools.partial(results, xla.attention, mask, jnp.float64))(inputs)


def grid():
    """All cases and types for each implementation; of the kernels, whose interpreter is slow, some by default."""
    types = (jnp.float32, jnp.bfloat16)
    for name in LINEAR:
        for i, case in enumerate(CASES):
            for dtype in TYPES if name == "blockwise" else types:
                chosen = (
                    name == "blockwise"
                    and dtype == list(TYPES)[i % len(TYPES)]
                    or (name == "tpu" and i % 2 == 0 and dtype == types[i // 2 % 2])
                )
                marks = () if chosen else pytest.mark.slow
                yield pytest.param(name, case, dtype, marks=marks, id=f"{name}-{case}-{dtype.__name__}")


@pytest.mark.parametrize("name, case, dtype", list(grid()))
def test_output_tangent_and_gradients_are_those_of_float64(name, case, dtype, x64):
    N, M, K, kind, scale = CASES[case]
    mask, inputs = make_mask(kind, M), make_inputs(N, M, K, scale)
    of = lambda attend: jax.jit(functools.partial(results, attend, mask, dtype))(inputs)  # noqa: E731
    here, there = of(LINEAR[name]), exact(case) if dtype == jnp.float64 else of(xla.attention)
    steps, times = TYPES[dtype]
    for what, truth in exact(case).items():
        assert here[what].dtype == dtype and np.isfinite(here[what]).all(), what
        error, usual = (float(np.linalg.norm(x[what].astype(np.float64) - truth)) for x in (here, there))
        # Where the right answer is zero, as with a single key, what is left is rounding of the others' size.
        size = max(float(np.linalg.norm(truth)), float(np.linalg.norm(inputs[2])))
        bound = times * usual + steps * float(jnp.finfo(dtype).eps) * size
        assert error <= bound, (what, error, bound)


@pytest.mark.parametrize("name", LINEAR)
def test_a_single_key_gives_its_value_and_the_tangent_of_that(name):
    qkv, dots, _ = make_inputs(5, 21, 16)
    o, o_dot = jax.jvp(lambda *qkv: LINEAR[name](*qkv, make_mask("one", 21), in_jvp=True), qkv, dots)
    for y, x in ((o, qkv[2]), (o_dot, dots[2])):
        np.testing.assert_allclose(y[0], np.broadcast_to(x[0, 10], y[0].shape), rtol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_rows_without_any_key_are_zero(name):
    inputs = make_inputs(11, 20, 64)
    found = jax.jit(functools.partial(results, LINEAR[name], make_mask("none", 20), jnp.float32))(inputs)
    assert all(not y[0].any() and y[1].any() for y in found.values())


@pytest.mark.parametrize("name", LINEAR)
def test_what_the_masked_keys_hold_changes_no_bit(name):
    qkv, dots, do = make_inputs(9, 13, 16)
    mask = make_mask("prefix", 13)
    of = jax.jit(lambda inputs: results(LINEAR[name], mask, jnp.float32, inputs))
    hidden = lambda x: np.where(mask[:, :, None, None], x, 7.0)  # noqa: E731
    other = ((qkv[0], *map(hidden, qkv[1:])), (dots[0], *map(hidden, dots[1:])), do)
    jax.tree.map(np.testing.assert_array_equal, of((qkv, dots, do)), of(other))


# Differentiating the tangent


@pytest.mark.parametrize(
    "name, case",
    [("blockwise", "odd lengths"), ("blockwise", "no key in one row"), ("tpu", "odd lengths")],
)
def test_gradients_through_the_tangent_are_right_too(name, case, x64, monkeypatch):
    N, M, K, kind, _ = CASES[case]
    of = lambda attend: jax.jit(  # noqa: E731
        functools.partial(results, attend, make_mask(kind, M), jnp.float64, through_tangent=True)
    )(make_inputs(N, M, K))
    here, there = of(LINEAR[name]), of(xla.attention)
    assert np.abs(there["dk"] - exact(case)["dk"]).max() > 0.1, "the tangent must matter"
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), here, there)
    monkeypatch.setattr(xla, "attention", None)  # as below, where it must not be missed
    with pytest.raises(TypeError):
        of(LINEAR[name])


def test_what_cannot_be_differentiated_is_refused():
    """By JAX itself, since the rule is not there: what must never come is a gradient of zero."""
    qkv, dots, _ = make_inputs(9, 13, 16)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(blockwise.attention, qkv, dots)
    with pytest.raises(NotImplementedError, match="reverse-mode"):
        jax.grad(lambda qkv: blockwise.attention(*qkv, in_jvp=True).sum())(qkv)


# Company


@pytest.mark.parametrize("name", LINEAR)
def test_mapped_over_an_axis(name):
    inputs = jax.tree.map(lambda x: np.stack([x, np.flip(x)]), make_inputs(9, 13, 16))
    of = functools.partial(results, LINEAR[name], make_mask("prefix", 13), jnp.float32)
    both, first = jax.jit(jax.vmap(of))(inputs), jax.jit(of)(jax.tree.map(lambda x: x[0], inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-5), both, first)


def test_in_layers_that_are_scanned_mapped_and_computed_anew():
    """Gradients through a jvp through all of it, as in the train step."""
    (x, *_), (x_dot, *_), do = make_inputs(9, 9, 16)
    x, x_dot, do = (jnp.asarray(np.stack([y, np.flip(y)]) / 4, jnp.float32) for y in (x, x_dot, do))
    w = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 16, 16)) / 4, jnp.float32)

    def loss(attend, w, x, x_dot, do):
        def layer(x, w):
            return x + attend(*(x @ w[i] for i in range(3)), make_mask("prefix", 9), in_jvp=True), None

        y, y_dot = jax.jvp(lambda x: jax.lax.scan(jax.checkpoint(layer), x, w)[0], (x,), (x_dot,))
        return jnp.sum(do * y) + jnp.sum(jax.lax.stop_gradient(y_dot) * y)

    of = lambda attend: jax.jit(  # noqa: E731
        jax.grad(lambda w: jax.vmap(functools.partial(loss, attend, w))(x, x_dot, do).sum())
    )(w)
    here, there = of(LINEAR["tpu"]), of(xla.attention)
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5 * np.abs(there).max())


@pytest.mark.parametrize("name, way", [("blockwise", "compiler"), ("blockwise", "shard_map"), ("tpu", "shard_map")])
def test_split_over_rows_and_heads(name, way):
    inputs, mask = make_inputs(9, 13, 16), make_mask("prefix", 13)
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = P("rows", None, "heads")
    of = lambda mask, inputs: results(LINEAR[name], mask, jnp.float32, inputs)  # noqa: E731
    whole = jax.jit(of)(mask, inputs)
    if way == "shard_map":
        check = name == "blockwise"  # which JAX's interpreter of kernels does not pass
        split = jax.jit(jax.shard_map(of, mesh=mesh, in_specs=(P("rows"), spec), out_specs=spec, check_vma=check))
    else:
        split = jax.jit(of, in_shardings=jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), (P("rows"), spec)))
    program = split.lower(mask, inputs).compile()
    assert not any(word in program.as_text() for word in COLLECTIVES)
    placed = [jax.device_put(x, jax.NamedSharding(mesh, s)) for x, s in ((mask, P("rows")), (inputs, spec))]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), program(*placed), whole)


# The whole step

SMALL = {
    "model.width": "16", "model.depth": "2", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "20", "training.sample_steps": "1", "training.sample_every": "0",
}  # fmt: skip
TEXT = {"model.condition": "text", "data.text_width": "6", "data.text_tokens": "11"}


def step_of(devices=1, **changes):
    """Metrics and gradients of one step on made-up rows, from parameters that are nowhere zero."""
    overrides = SMALL | {name.replace("__", "."): str(value) for name, value in changes.items()}
    run = build(load_config("digits", overrides), jax.devices()[:devices])
    trainer = dataclasses.replace(
        run.trainer, step=dataclasses.replace(run.trainer.step, tx=optax.sgd(lambda _: 1.0), emas={})
    )
    rng = np.random.default_rng(0)
    draw = lambda x: jax.device_put(0.3 * rng.standard_normal(x.shape, np.float32), x.sharding)  # noqa: E731
    params = jax.tree.map(draw, trainer.abstract.params)
    state = TrainState(jnp.int32(0), params, {}, trainer.step.tx.init(params))
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, run.config.data.batch_size))
    before = jax.device_get(params)
    with on_mesh(run.mesh):
        after, metrics, _ = trainer.jitted(state, batch, trainer.seed_array, {})
    return jax.device_get(metrics), jax.tree.map(np.subtract, before, jax.device_get(after.params))


@functools.cache
def step_of_xla(**changes):
    return step_of(model__attention="xla", **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention, text, remat, mesh",
    [
        pytest.param("blockwise", False, "full", (1, 1), marks=pytest.mark.nightly),
        ("blockwise", True, "dots", (1, 1)),
        ("pallas", False, "none", (2, 2)),
        pytest.param("blockwise", False, "dots", (1, 1), marks=pytest.mark.nightly),
        pytest.param("blockwise", True, "full", (2, 2), marks=pytest.mark.nightly),
    ],
)
def test_the_train_step_is_the_same_and_never_goes_back_through_the_tangent(attention, text, remat, mesh, monkeypatch):
    condition = {name.replace(".", "__"): value for name, value in (TEXT if text else {}).items()}
    metrics, grads = step_of_xla(**condition)
    # With this the rule of the tangent cannot work: no loss that takes the tangent as a constant may need it.
    monkeypatch.setattr(xla, "attention", None)
    changes = {"model__remat": remat, "mesh__fsdp": mesh[0], "mesh__tensor": mesh[1]}
    found, found_grads = step_of(mesh[0] * mesh[1], model__attention=attention, **condition, **changes)
    assert metrics["tangent_rms"] > 0.1 and np.abs(grads["online"]["blocks"]["attn"]["qkv"]["kernel"]).max() > 1e-3
    for name in ("loss", "grad_norm", "tangent_rms", "error_equal", "error_moving"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-4), name
    size = max(np.abs(x).max() for x in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * size), found_grads, grads)


def test_the_number_of_keys_chooses(monkeypatch):
    called = []
    for name in ATTENTION:
        monkeypatch.setitem(ATTENTION, name, lambda q, *_, name=name: called.append(name) or q)
    for keys in (LINEAR_FROM - 1, LINEAR_FROM):
        q, k = (jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32) for n in (3, keys))
        assert jax.eval_shape(attention, q, k, k).shape == q.shape
    assert called == ["xla", "blockwise"]


def test_without_kernels_pallas_is_blockwise_to_the_bit_and_says_so_once(capfd):
    qkv, dots, do = make_inputs(9, 13, 16)
    of = lambda attend: jax.jit(  # noqa: E731
        functools.partial(results, attend, make_mask("prefix", 13), jnp.float32)
    )((qkv, dots, do))
    jax.tree.map(np.testing.assert_array_equal, of(pallas.attention), of(blockwise.attention))
    warn_once.cache_clear()
    for _ in range(2):
        build(load_config("digits", SMALL | {"model.attention": "pallas"}), jax.devices()[:1])
    said = "which has no kernels for cpu with heads of width 8 in float32; it runs as 'blockwise'"
    assert capfd.readouterr().err == f"warning: model.attention is 'pallas', {said}\n"
    build(load_config("digits", SMALL), jax.devices()[:1])
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    "platform, capability, width, dtype, has",
    [("tpu", None, 256, "float32", True), ("gpu", "9.0", 128, "bfloat16", True), ("gpu", "9.0", 64, "float32", False),
     ("gpu", "9.0", 256, "bfloat16", False), ("gpu", "8.0", 64, "bfloat16", False),
     ("gpu", "10.0", 72, "bfloat16", False), ("gpu", "gfx942", 64, "bfloat16", False),
     ("cpu", None, 64, "bfloat16", False)],
)  # fmt: skip
def test_which_devices_have_kernels(platform, capability, width, dtype, has):
    device = types.SimpleNamespace(platform=platform)
    if capability:
        device.compute_capability = capability
    assert pallas.has_kernels(device, width, jnp.dtype(dtype)) == has


def test_a_run_may_go_on_with_another_implementation():
    assert identity.of(load_config("digits", {"model.attention": "xla"})) == identity.of(load_config("digits", {}))
    with pytest.raises(
        ValueError, match="^model.attention is 'flash'; it must be one of auto, xla, blockwise, pallas$"
    ):
        build(load_config("digits", {"model.attention": "flash"}), jax.devices()[:1])


# Memory and the benchmark


def test_memory_is_linear_in_tokens():
    def of(implementation, tokens, mode="jvp_grad"):
        return timing.temporary_bytes(bench.compile_mode(implementation, mode, (1, tokens, 2, 64), jnp.float32))

    assert of("blockwise", 16384) <= 4.4 * of("blockwise", 4096)
    assert of("blockwise", 4096) <= of("xla", 4096) / 5


def test_operations_of_kernels_are_counted():
    """Products of all queries by all keys: 2 for the output, 6 with its tangent, 3 for dq, 4 for dk and dv. Where the
    platform decides, those of `blockwise`, which shares two between dq, dk and dv."""
    qkv, dots, _ = make_inputs(16, 16, 16)
    product = 2 * 2 * 2 * 16 * 16 * 16
    for attend, backward in ((LINEAR["tpu"], 7), (pallas.attention, 5), (blockwise.attention, 5)):
        for mode, products in ((bench.forward, 2), (bench.jvp, 6), (bench.jvp_grad, 6 + backward)):
            assert flops.count(jax.make_jaxpr(functools.partial(mode, attend))(qkv, dots)) == products * product


def test_benchmark_writes_rows(tmp_path, capsys):
    file = tmp_path / "attention.json"
    sizes = ["--tokens=16,32", "--keys=12", "--masked", "--head-width=8"]
    command.main(["attention", *sizes, "--run-to=16", "--repeats=1", f"--json={file}"])
    rows = json.loads(file.read_text())["rows"]
    found = {(row["implementation"], row["mode"], row["tokens"]) for row in rows}
    assert found == {(i, m, n) for i in ("xla", "blockwise") for m in ("forward", "jvp", "jvp_grad") for n in (16, 32)}
    for row in rows:
        assert (
            row["temporary_bytes"] > 0
            and row["compile_seconds"] > 0
            and (row["seconds"] is None) == (row["tokens"] == 32)
        )
    said = capsys.readouterr()
    assert "not run" in said.out
    assert "pallas is left out: it has no kernels for cpu with heads of width 8 in float32" in said.err


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--implementations=blockwse", "--implementations has 'blockwse': no such name; did you mean blockwise?"),
        (
            "--tokens=1024,0",
            "--tokens is '1024,0'; it must be numbers of at least 1, with commas between, of nine digits at most",
        ),
        ("--heads=0", "--heads is 0; it must be at least 1"),
        ("--keys=0", "--keys is 0; it must be at least 1"),
        (
            "--implementations=xla,pallas",
            "--implementations is xla,pallas; it must be without pallas, which has no kernels for cpu with heads of "
            "width 64 in float32",
        ),
        ("--dtype=float16", "--dtype is 'float16'; it must be one of float32, bfloat16"),
    ],
)
def test_wrong_arguments_of_the_benchmark_are_one_line(argument, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["attention", argument])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"
