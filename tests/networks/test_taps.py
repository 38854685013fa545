"""Taps: states after blocks, in every way in which a network is called, and what they cost where nobody asks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.test_networks import assert_close, make_net, make_params, make_query
from tim_jax.networks import TiM
from tim_jax.networks.block import FinalLayer
from tim_jax.networks.taps import check_taps
from tim_jax.system import flops
from tim_jax.training.nets import frozen_net, make_nets
from tim_jax.transitions import as_net
from tim_jax.types import Output, Query, TangentQuery


def last_states(net, params, depth, queries):
    """The states of the image's tokens that the final layer sees, of a network of the first `depth` blocks alone."""
    params = params | {"blocks": jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])}

    @jax.jit
    def states(params, queries):
        seen = []

        def intercept(function, args, kwargs, context):
            if isinstance(context.module, FinalLayer) and context.method_name == "__call__":
                seen.append(args[0])
            return function(*args, **kwargs)

        with nn.intercept_methods(intercept):
            net.clone(depth=depth, encoder_depth=1).apply({"params": params}, queries)
        return tuple(seen)

    return states(params, queries)


@pytest.mark.parametrize("fields", [{}, {"condition": "text", "guidance_input": True, "guidance_tokens": 2}])
def test_states_after_a_block_are_those_that_a_network_of_as_many_blocks_ends_with(fields):
    net = make_net(**fields)
    params, queries = make_params(net), (make_query(net), make_query(net, 1, rows=3, h=2))
    called = jax.jit(net.apply, static_argnames=("hidden", "taps"))
    outputs = called({"params": params}, queries, hidden=True, taps=(1, 3))
    for k, depth in enumerate((1, 3)):
        assert_close(tuple(output.taps[k] for output in outputs), last_states(net, params, depth, queries))
    assert jnp.abs(outputs[0].taps[1] - outputs[0].taps[0]).max() > 1e-2
    plain = called({"params": params}, queries, hidden=True)
    assert_close(tuple(output._replace(taps=None) for output in outputs), plain)


@pytest.mark.slow
def test_tangents_of_taps_and_their_gradients_are_those_of_finite_differences(x64):
    net = make_net(dtype=jnp.float64, remat="full")
    wide = functools.partial(jax.tree.map, lambda a: a.astype(float) if a.dtype == jnp.float32 else a)
    params, plain, query = wide((make_params(make_net()), make_query(net, 1), make_query(net)))

    def states(e, kind=Query):
        moved = kind(query.x_t + e, query.t + e, query.r, query.condition)
        return [output.taps for output in net.apply({"params": params}, (plain, moved), taps=(1, 2))]

    def size(e):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(states(e)))

    def differences(f, e=1e-5):
        return jax.tree.map(lambda a, b: (a - b) / (2 * e), jax.jit(f)(e), jax.jit(f)(-e))

    slopes = jax.jit(lambda e: jax.jvp(lambda e: states(e, TangentQuery), (e,), (1.0,))[1])(0.0)
    assert not any(leaf.any() for leaf in slopes[0])
    for found, expected in zip(slopes[1], differences(states)[1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.grad(size))(0.0), differences(size), rtol=1e-6)


def test_gradients_of_a_tap_stop_at_its_block():
    net = make_net(remat="dots")
    tap = lambda params: net.apply({"params": params}, (make_query(net),), taps=(2,))[0].taps[0]  # noqa: E731
    gradient = jax.jit(jax.grad(lambda params: jnp.square(tap(params)).sum()))(make_params(net))
    for leaf in jax.tree.leaves(gradient["blocks"]["mlp"]):
        assert leaf[0].any() and leaf[1].any() and not leaf[2].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["final"]))


def costs(net, **options):
    """The operations of a call, and the numbers that the scan over layers carries, in units of a group's states."""
    query = make_query(net)
    traced = jax.make_jaxpr(lambda p, q: net.apply({"params": p}, (q,), **options))(make_params(net), query)
    (scan,) = [eqn for eqn in traced.eqns if eqn.primitive.name == "scan"]
    carried = scan.outvars[: scan.params["num_carry"]]
    rows, positions = len(query.t), query.x_t[0, ..., 0].size // net.patch_size**2
    return flops.count(traced), sum(v.aval.size for v in carried) / (rows * positions * net.width), len(traced.eqns)


def test_nothing_is_carried_or_computed_that_nobody_asks_for():
    net = make_net()
    alone, asked, hidden = costs(net), costs(net, taps=(1, 3)), costs(net, hidden=True)
    assert round(alone[1]) == 1 and alone[1] - 1 < 0.01
    assert asked[1] - alone[1] == pytest.approx(2) and asked[0] == alone[0]
    assert hidden[1] - alone[1] == pytest.approx(1)
    assert costs(net, hidden=True, taps=(2,)) == pytest.approx(hidden)  # which are those of encoder_depth
    assert costs(make_net(output_heads=("pooled",)))[1] == hidden[1]


class WithoutTaps(TiM):
    """A network that was written before there were taps."""

    def __call__(self, groups, hidden=False):
        return super().__call__(groups, hidden)


@pytest.mark.parametrize(
    "blocks, fields, kind, message",
    [
        ((0, 2), {}, make_net, "it must be ascending numbers of blocks in 1 … 3"),
        ((4,), {}, make_net, "it must be ascending numbers of blocks in 1 … 3"),
        ((3, 1), {}, make_net, "it must be ascending numbers of blocks in 1 … 3"),
        ((2, 2), {}, make_net, "it must be ascending numbers of blocks in 1 … 3"),
        ((1,), {"slices": 3}, make_net, "it must be () where model.slices is 3, as blocks are skipped"),
        ((1,), {}, WithoutTaps, "it must be () for WithoutTaps, whose __call__ has no argument taps"),
    ],
)
def test_blocks_that_cannot_be_tapped_are_refused_in_one_line(blocks, fields, kind, message):
    net = kind(**fields)
    if kind is WithoutTaps:
        net = kind(width=32, heads=2)
    with pytest.raises(ValueError) as error:
        check_taps("objective.adversary.blocks", blocks, net)
    assert str(error.value) == f"objective.adversary.blocks is {blocks}; {message}"
    check_taps("objective.adversary.blocks", (), net)


def test_a_call_checks_its_taps():
    net = make_net()
    with pytest.raises(ValueError, match=r"^taps is \(4,\)"):
        net.apply({"params": make_params(net)}, (make_query(net),), taps=(4,))


def test_every_network_of_a_step_has_taps():
    net = make_net()
    params, queries = make_params(net), (make_query(net),)
    nets = make_nets(net, hidden=True) | {"teacher": frozen_net(net, (1.0, 0.0, 1.0))}
    expected = jax.jit(lambda params: net.apply({"params": params}, queries, taps=(1, 2))[0].taps)(params)
    for name, make in nets.items():
        both = jax.jit(lambda params, make=make: (make(params)(queries), make(params)(queries, taps=(1, 2))))
        (without,), (output,) = both(params)
        assert without.taps is None and (output.hidden is not None) == (name == "online")
        assert_close(output.taps, expected)


def test_a_network_of_ones_own_has_taps_or_is_refused():
    query = Query(jnp.ones((4, 2)), jnp.ones(4), jnp.zeros(4), None)

    def net(x, t, r, taps=()):
        return Output(x, taps=tuple(n * x[:, None] for n in taps))

    (without,), (output,) = as_net(net)((query,)), as_net(net)((query,), taps=(1, 3))
    assert not without.taps and [float(state.mean()) for state in output.taps] == [1, 3]
    with pytest.raises(ValueError, match=r"^the network has no argument taps; it must .* blocks \(1,\)"):
        as_net(lambda x, t, r: x)((query,), taps=(1,))
    with pytest.raises(ValueError, match=r"^the network returned taps \[\]; it must .* 2 states \(B, N, D\)"):
        as_net(lambda x, t, r, taps=(): x)((query,), taps=(1, 2))
    with pytest.raises(ValueError, match=r"^the network returned taps \[\(4, 2\)\]; it must .* 1 states"):
        as_net(lambda x, t, r, taps=(): Output(x, taps=(x,)))((query,), taps=(1,))
