"""Conditions as tokens in front of the image, and times that change along the depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from tests.networks.test_networks import assert_close, make_net, make_params, make_query, run, with_tangent
from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.overrides import override
from tim_jax.networks.attention import blockwise
from tim_jax.networks.block import REMAT
from tim_jax.networks.heads import HEADS
from tim_jax.networks.int8 import with_int8
from tim_jax.runs import published
from tim_jax.training import names
from tim_jax.types import TangentQuery

TOKENS = {"class_tokens": 3, "guidance_tokens": 2, "guidance_input": True}
OPTIONS = {"tokens": TOKENS, "decoupled": {"decoupled_depth": 1}, "both": TOKENS | {"decoupled_depth": 2}}
every_option = pytest.mark.parametrize(
    "option", [pytest.param(name, marks=[] if name == "both" else pytest.mark.nightly) for name in OPTIONS]
)


def count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(make_params(net)))


def test_tokens_have_the_shapes_of_an_image_without_them_and_their_own_parameters():
    plain, net = make_net(guidance_input=True), make_net(**TOKENS, output_heads=tuple(HEADS))
    assert net.context_tokens == {"class_tokens": 3, "scale_tokens": 2, "interval_tokens": 2}
    assert count(net) - count(make_net(guidance_input=True, output_heads=tuple(HEADS))) == 7 * net.width
    (out,) = run(net, make_query(net), hidden=True)
    (other,) = run(plain, make_query(plain), hidden=True)
    assert (out.F.shape, out.hidden.shape) == (other.F.shape, other.hidden.shape)
    assert out.heads["velocity"].shape == out.F.shape and out.heads["pooled"].shape == (2, net.width)


def test_only_conditions_that_there_are_have_tokens():
    assert make_net(**TOKENS, condition="text").context_tokens == {"scale_tokens": 2, "interval_tokens": 2}
    assert make_net(class_tokens=3, guidance_tokens=2).context_tokens == {"class_tokens": 3}


@pytest.mark.parametrize("condition", ["class", "text"])
def test_tokens_carry_conditions_into_attention(condition):
    """Where nothing else does: of blocks that are modulated by nothing."""
    net = make_net(**TOKENS, condition=condition)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "modulation" in str(path) and "kernel" in str(path) else leaf,
        make_params(net),
    )
    query = make_query(net)
    before = run(net, query, params=params)[0].F
    changes = {"guidance": query.condition["guidance"].at[1, 0].set(3.0)}
    if condition == "class":
        changes["label"] = query.condition["label"].at[1].set((query.condition["label"][1] + 1) % 10)
    for name, value in changes.items():
        after = run(net, query._replace(condition=query.condition | {name: value}), params=params)[0].F
        assert_close(after[0], before[0])
        assert jnp.abs(after[1] - before[1]).max() > 1e-4


def test_tokens_have_no_order_among_them():
    """They are not rotated: each is known by what it has learned alone."""
    net, query = make_net(**TOKENS), make_query(make_net(**TOKENS))
    params = make_params(net)
    turned = params | {"class_tokens": {"tokens": params["class_tokens"]["tokens"][::-1]}}
    assert_close(run(net, query, params=turned)[0].F, run(net, query)[0].F)


@every_option
@pytest.mark.parametrize("implementation", ["blockwise", "pallas"])
def test_every_attention_gives_the_same_with_tangents(option, implementation, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 5)
    net = make_net(**OPTIONS[option], attention="xla")
    query = TangentQuery(*make_query(net))
    expected, found = (
        jit(lambda p, q, net=each: with_tangent(net, p, (), q))(make_params(net), query)
        for each in (net, net.clone(attention=implementation))
    )
    assert_close(found[0][0].F, expected[0][0].F)
    assert_close(found[1], expected[1])


@pytest.mark.slow
@every_option
def test_memory_policies_give_the_same_gradients(option):
    net = make_net(**OPTIONS[option])
    query = make_query(net)

    def gradient(net):
        return jit(jax.grad(lambda p: jnp.sum(net.apply({"params": p}, (query,))[0].F ** 2)))(make_params(net))

    expected = gradient(net)
    for remat in list(REMAT)[1:]:
        jax.tree.map(assert_close, gradient(net.clone(remat=remat)), expected)


@pytest.mark.slow
@every_option
def test_dropout_and_lower_precision(option):
    net = make_net(**OPTIONS[option])
    query = make_query(net)
    (plain,) = run(net, query)
    dropped = run(net.clone(dropout=0.3), query._replace(key=jax.random.split(jax.random.key(1), 2)))[0].F
    assert jnp.isfinite(dropped).all() and jnp.abs(dropped - plain.F).max() > 1e-3
    scale = jnp.abs(plain.F).max()
    low = run(net.clone(dtype=jnp.bfloat16), query)[0].F
    int8 = jit(with_int8(lambda q: net.apply({"params": make_params(net)}, q)))((query,))[0].F
    assert jnp.abs(low - plain.F).max() < 0.1 * scale and jnp.abs(int8 - plain.F).max() < 0.1 * scale


def test_where_r_is_t_the_depth_of_decoupling_says_nothing():
    """A flow-matching network is one of every depth: its jumps of no length are its own from the first step on."""
    nets = [make_net(decoupled_depth=depth) for depth in (1, 3)]
    query, params = make_query(nets[0]), make_params(nets[0])
    flow, same = (run(net, query._replace(r=query.t), params=params)[0].F for net in nets)
    assert_close(same, flow)
    jump, other = (run(net, query, params=params)[0].F for net in nets)
    assert jnp.abs(jump - flow).max() > 1e-3 and jnp.abs(jump - other).max() > 1e-3


def test_blocks_see_the_time_of_their_part():
    """Hidden states after the first blocks know t alone; the last part and the final layer know r alone."""
    net = make_net(decoupled_depth=1, encoder_depth=2)
    query = make_query(net)
    later, nearer = query._replace(t=query.t + 0.1), query._replace(r=query.r - 0.1)
    (before,), (moved_t,), (moved_r,) = (run(net, q, hidden=True) for q in (query, later, nearer))
    np.testing.assert_array_equal(moved_r.hidden, before.hidden)
    assert jnp.abs(moved_t.hidden - before.hidden).max() > 1e-4
    assert jnp.abs(moved_r.F - before.F).max() > 1e-4
    whole = make_net(decoupled_depth=3)
    (before,), (moved_t,) = (run(whole, q) for q in (query, later))
    np.testing.assert_array_equal(moved_t.F, before.F)


def test_a_flow_matching_network_has_all_parameters_of_decoupled_mean_flow_but_its_head():
    config = loading.load("objectives/dmf").get_config()

    def shapes(objective):
        run = build(override(config, {"objective.name": objective}), jax.devices()[:1])
        return names.by_name(run.trainer.abstract.params["online"])

    flow, dmf = shapes("flow_matching"), shapes("dmf")
    left = {name for name in dmf if not names.matches(name, ("joint_log_variance_head",))}
    assert left == flow.keys() and len(dmf) == len(flow) + 2
    assert all(dmf[name].shape == flow[name].shape for name in flow)


def test_the_published_code_cannot_use_such_networks():
    for key, value in {"class_tokens": "2", "decoupled_depth": "1"}.items():
        config = override(loading.load("digits").get_config(), {f"model.{key}": value})
        assert any(f"model.{key} is {value}" in reason for reason in published.obstacles(config, ()))
