"""The discriminator on taps: its formula, where it starts, and the same numbers on a mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.networks.test_networks import make_net, make_params, make_query
from tests.networks.test_sequence import make_mesh
from tim_jax.networks.discriminator import Discriminator
from tim_jax.plan import collectives
from tim_jax.training import sharding

K, HIDDEN, WIDTH = 2, 24, 32  # WIDTH of test_networks


def make_discriminator(**fields):
    """A discriminator, its boxed parameters as initialised, and some that are nowhere zero."""
    made = Discriminator(K, HIDDEN, **fields)
    boxed = jax.jit(made.init)(jax.random.key(0), (jnp.zeros((1, 1, WIDTH)),) * K)["params"]
    rng = np.random.default_rng(0)
    return (
        made,
        boxed,
        jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), nn.unbox(boxed)),
    )


def make_states(dtype=jnp.float32):
    return tuple(jax.random.normal(jax.random.key(k), (3, 5, WIDTH)).astype(dtype) for k in range(K))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_those_of_the_formula_and_zero_at_first(dtype):
    made, boxed, params = make_discriminator(dtype=dtype)
    states = make_states(dtype)
    apply = jax.jit(lambda params: made.apply({"params": params}, states))
    logits = apply(params)
    assert logits.shape == (3, K, 5) and logits.dtype == jnp.float32
    assert not apply(nn.unbox(boxed)).any()
    for k, x in enumerate(np.asarray(state, np.float64) for state in states):
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[f"head_{k}"])
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        h = x @ p["in"]["kernel"] + p["in"]["bias"].reshape(1, 1, -1)
        expected = (h / (1 + np.exp(-h)) @ p["out"]["kernel"])[..., 0] + p["out"]["bias"]
        np.testing.assert_allclose(logits[:, k], expected, atol=1e-5 if dtype == jnp.float32 else 0.05)


def test_parameters_learn_at_once_and_states_once_they_have():
    made, boxed, params = make_discriminator()
    slope = jax.jit(jax.grad(lambda p, s: made.apply({"params": p}, s).mean(), (0, 1)))
    for values, learnt in ((nn.unbox(boxed), False), (params, True)):
        gradient, taps = slope(values, make_states())
        assert all(gradient[f"head_{k}"]["out"]["kernel"].all() for k in range(K))
        assert all(bool(tap.all()) == bool(tap.any()) == learnt for tap in taps)


def test_axis_names_and_another_number_of_taps():
    made, boxed, params = make_discriminator()
    specs = nn.get_partition_spec(boxed)["head_1"]
    assert (specs["in"]["kernel"], specs["out"]["kernel"]) == (P("embed", "mlp"), P("mlp", None))
    with pytest.raises(ValueError, match="^taps are of 1 blocks; they must be of 2"):
        made.apply({"params": params}, make_states()[:1])


def slopes(mesh, net, made, params, boxed, query):
    """Logits of taps of a network, and the gradients of a sum of them by both parameters and by the state x_t."""
    init = lambda key: net.init(key, (query,))["params"]  # noqa: E731
    boxed = {"network": jax.eval_shape(init, jax.random.key(0)), "discriminator": boxed}
    placed = jax.device_put(params, sharding.shardings(mesh, boxed, params))
    query = jax.device_put(query, sharding.batch_sharding(mesh))
    weight = jnp.cos(jnp.arange(query.x_t.shape[0] * K * 8.0)).reshape(-1, K, 8)

    def loss(params, x_t):
        (output,) = sharding.apply_on_mesh(
            mesh, init, net, params["network"], (query._replace(x_t=x_t),), taps=(1, 3), hidden=True
        )
        logits = made.apply({"params": params["discriminator"]}, output.taps)
        return jnp.sum(logits * weight), logits

    with sharding.on_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(placed, query.x_t)


MESHES = [dict(data=2, sequence=4), dict(fsdp=2, tensor=2, sequence=2)]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_taps_and_logits_on_a_mesh_are_those_of_one_device(sizes):
    net = make_net(class_tokens=4)
    made, boxed, drawn = make_discriminator()
    params = {"network": make_params(net), "discriminator": drawn}
    run = functools.partial(slopes, net=net, made=made, params=params, boxed=boxed, query=make_query(net, rows=4))
    mesh = make_mesh(**sizes)
    expected, found = run(make_mesh()), run(mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max()), found, expected)
    where = jax.NamedSharding(mesh, P(sharding.EXAMPLES, None, "sequence"))
    assert found[0][1].sharding.is_equivalent_to(where, 3)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_weights_and_gradients_pass_between_devices_and_states_do_not(sizes):
    """But for the sums that every product over `tensor` takes."""
    mesh = make_mesh(**sizes)
    made, boxed, params = make_discriminator()
    placed = sharding.shardings(mesh, boxed, params)
    states = jax.NamedSharding(mesh, P(sharding.EXAMPLES, "sequence"))
    shapes = jax.eval_shape(lambda: (params, (jnp.zeros((16, 32, WIDTH)),) * K))

    def loss(params, taps):
        return jnp.square(made.apply({"params": params}, taps)).mean()

    with sharding.on_mesh(mesh):
        layout = dict(in_shardings=(placed, states), out_shardings=(placed, states))
        step = jax.jit(jax.grad(loss, (0, 1)), **layout).lower(*shapes)
        found = collectives.read(step.compile().as_text())
    others = [shape for c in found if c.axes(mesh) != ("tensor",) for _, shape in c.arrays]
    assert others and max(map(len, others)) == 2
