"""Tokens over several devices: the numbers of one device, the exchanges that must be, and memory that falls."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.networks import TiM
from tim_jax.networks.attention import blockwise, modules, sequence
from tim_jax.networks.block import REMAT
from tim_jax.networks.heads import HEADS
from tim_jax.networks.transformer import keep_all_but_gathered
from tim_jax.plan import collectives
from tim_jax.plan.compile import compile_step
from tim_jax.runs.generation import Generator
from tim_jax.runs.outputs.requests import read_size
from tim_jax.system.topologies import topology
from tim_jax.training import mesh, sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.types import Query


def make_mesh(data=1, fsdp=1, tensor=1, sequence=1):
    sizes = dict(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence)
    return mesh.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


def assert_close(found, expected):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())

    jax.tree.map(close, found, expected)


# Attention by itself

B, N, K = 2, 24, 4
INPUTS = P("data", "sequence", "tensor")


def derivatives(attend, inputs):
    """Output and tangent of a call within a jvp, and the gradients of a sum that knows them and of a plain call."""
    qkv, dots, weight = inputs

    def in_jvp(qkv):
        o, o_dot = jax.jvp(functools.partial(attend, in_jvp=True), qkv, dots)
        return jnp.sum(weight * o), (o, o_dot)

    plain = jax.grad(lambda qkv: jnp.sum(weight * attend(*qkv, in_jvp=False)))(qkv)
    return plain, *jax.grad(in_jvp, has_aux=True)(qkv)


def make_inputs(heads):
    draw = lambda seed: jnp.asarray(np.random.default_rng(seed).standard_normal((B, N, heads, K), np.float32))  # noqa: E731
    return (draw(0), draw(1), draw(2)), (draw(3), draw(4), draw(5)), draw(6)


@functools.cache
def exact(heads):
    attend = functools.partial(modules.attention, implementation="xla")
    return jax.device_get(jax.jit(functools.partial(derivatives, attend))(make_inputs(heads)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [None, REMAT["full"], keep_all_but_gathered], ids=["once", "remat", "kept"])
@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
@pytest.mark.parametrize(
    "sizes, heads, kinds",
    [
        (dict(data=2, sequence=4), 4, {"all-to-all"}),
        (dict(data=2, sequence=4), 6, {"all-gather", "reduce-scatter"}),
        (dict(tensor=2, sequence=4), 8, {"all-to-all"}),
        (dict(tensor=2, sequence=4), 4, {"all-gather", "reduce-scatter"}),
        (dict(tensor=4, sequence=2), 4, {"all-gather", "reduce-scatter"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_attention_among_devices_is_attention(sizes, heads, kinds, implementation, policy, monkeypatch):
    """Output, tangent, gradients; what is exchanged stays among the devices that share tokens, also where the compiler
    splits heads over `tensor`."""
    monkeypatch.setattr(blockwise, "BLOCK", 5)
    mesh = make_mesh(**sizes)

    def attend(*qkv, in_jvp):
        def attend_here(*qkv):
            call = functools.partial(modules.attention, in_jvp=in_jvp, implementation=implementation)
            y = sequence.attend(call, *(nn.with_logical_constraint(x, modules.HEADS) for x in qkv), "sequence")
            return nn.with_logical_constraint(y, modules.HEADS)

        spec = P("data", "sequence")
        here = attend_here if policy is None else jax.checkpoint(attend_here, policy=policy)
        return jax.shard_map(here, in_specs=spec, out_specs=spec, axis_names={"data", "sequence"})(*qkv)

    inputs = jax.device_put(make_inputs(heads), NamedSharding(mesh, INPUTS))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.AMONG_SAME_EXAMPLES):
        program = jax.jit(functools.partial(derivatives, attend)).lower(inputs).compile()
        assert_close(program(inputs), exact(heads))
    found = collectives.read(program.as_text())
    assert {c.kind for c in found} == kinds and {c.axes(mesh) for c in found} == {("sequence",)}


# The network

FIELDS = {
    "channels": 3, "width": 32, "depth": 2, "heads": 4, "bottleneck": 8, "encoder_depth": 1, "z_dim": 5,
    "projector_width": 8, "text_width": 6, "condition": "text", "dropout": 0.2, "output_heads": tuple(HEADS),
}  # fmt: skip


def make_query(rows, h, w):
    rng = np.random.default_rng(rows)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    condition = {"text": draw(rows, 5, 6), "mask": np.arange(5)[None] < np.arange(1, rows + 1)[:, None]}
    condition["guidance"] = np.linspace([1, 0.1, 0.8], [3, 0.3, 0.9], rows, dtype=np.float32)
    t, r = np.linspace([0.3, 0.1], [0.9, 0.4], rows, dtype=np.float32).T
    return Query(draw(rows, h, w, 3), t, r, condition, jax.random.split(jax.random.key(0), rows))


def outputs(mesh, net, queries):
    """Of a network with parameters that are nowhere zero."""
    init = lambda key: net.init(key, queries)["params"]  # noqa: E731
    boxed = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.15 * rng.standard_normal(x.shape, np.float32), nn.unbox(boxed))
    placed = jax.device_put(params, sharding.shardings(mesh, boxed, params))
    with on_mesh(mesh):
        apply = functools.partial(sharding.apply_on_mesh, mesh, init, net, hidden=True)
        return jax.device_get(jax.jit(apply)(placed, queries))


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"guidance_tokens": 2, "guidance_input": True, "decoupled_depth": 1}])
@pytest.mark.parametrize("sizes", [dict(data=2, sequence=4), dict(fsdp=2, tensor=2, sequence=2)], ids=str)
def test_places_dropout_hidden_states_and_heads_are_those_of_one_device(sizes, options):
    queries = make_query(4, 8, 12), make_query(2, 4, 16)
    net = TiM(**FIELDS | options)
    expected = outputs(make_mesh(), net, queries)
    assert_close(outputs(make_mesh(**sizes), net, queries), expected)
    assert not np.allclose(expected[0].F, outputs(make_mesh(), net.clone(dropout=0.0), queries)[0].F, atol=1e-2)


# What cannot be split


def test_shapes_that_the_axis_does_not_divide_are_refused():
    text = "; they must give a multiple of mesh.sequence, 4, tokens, and give {}$"

    def make_run(model={}, **data):
        changes = {"mesh.sequence": "4", "model.patch_size": "2"} | {f"data.{k}": str(v) for k, v in data.items()}
        changes |= {f"model.{k}": str(v) for k, v in model.items()}
        return build(load_config("digits", changes), jax.devices()[:4])

    with pytest.raises(ValueError, match="^data.height, data.width are 6, 6" + text.format(9)):
        make_run(height=6, width=6)
    with pytest.raises(ValueError, match="^model.class_tokens, model.guidance_tokens are 3, 0" + text.format(3)):
        make_run({"class_tokens": 3})
    with pytest.raises(
        ValueError,
        match=r"^data.buckets.table is \(\(6, 10\),\); each of them must have a multiple of mesh.sequence, 4, ",
    ):
        make_run(**{"buckets.table": "((6, 10),)"})
    run = make_run()
    assert read_size("--size is", "4x6", dataclasses.replace(run, mesh=make_mesh(sequence=2))) == (4, 6)
    with pytest.raises(ValueError, match="^--size is 6, 6" + text.format(9)):
        read_size("--size is", "6x6", run)


# Sampling


def test_samples_are_those_of_one_device():
    small = {"model.width": "32", "model.depth": "2", "model.heads": "2", "model.bottleneck": "16",
             "model.encoder_depth": "1", "model.patch_size": "2", "sampling.guidance": "1.5"}  # fmt: skip

    def images(**mesh):
        changes = small | {f"mesh.{axis}": str(size) for axis, size in mesh.items()}
        run = build(load_config("digits", changes), jax.devices()[: np.prod(list(mesh.values()))])
        rng = np.random.default_rng(0)
        draw = lambda x: jax.device_put(0.1 * rng.standard_normal(x.shape, np.float32), x.sharding)  # noqa: E731
        weights = jax.tree.map(draw, run.trainer.abstract_online)
        return Generator(run, 4)(weights, np.arange(4), steps=3, size=(8, 12))

    assert_close(images(data=2, tensor=1, sequence=2), images(data=1))


# Memory


@pytest.mark.nightly
def test_memory_of_a_step_falls_with_the_devices_that_share_tokens():
    """4,096 tokens; of four heads each of four devices has one, of two heads it has keys and values of all tokens."""

    def of(devices, heads):
        changes = {
            "model.width": "64", "model.depth": "2", "model.heads": str(heads), "model.bottleneck": "16",
            "model.encoder_depth": "1", "model.patch_size": "1", "model.attention": "blockwise", "data.height": "64",
            "data.width": "64", "data.batch_size": "4", "model.remat": "full", "mesh.data": "1",
            "mesh.sequence": str(devices),
        }  # fmt: skip
        return compile_step(load_config("digits", changes), topology(f"cpu:{devices}")).memory.activations

    alone = of(1, 4)
    assert of(4, 4) <= 0.3 * alone and of(4, 2) <= 0.4 * alone
