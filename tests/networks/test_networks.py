"""TiM: groups, tangents, positions, masks, dropout, precision, memory policies, complaints."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from jax.sharding import PartitionSpec as P

from tim_jax.networks import TiM
from tim_jax.networks.attention.modules import attention
from tim_jax.networks.block import REMAT, keyed_dropout
from tim_jax.networks.embeddings import INTERVALS
from tim_jax.networks.heads import HEADS
from tim_jax.types import Query

TINY = {
    "channels": 3, "width": 32, "depth": 3, "heads": 2, "bottleneck": 8, "encoder_depth": 2, "z_dim": 5,
    "projector_width": 16, "num_classes": 10, "text_width": 6,
}  # fmt: skip
CONDITIONS = ("class", "text")


def make_net(**fields):
    return TiM(**TINY | fields)


def make_query(net, seed=0, rows=2, h=4, w=8, tokens=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, h, w, net.channels)).astype(np.float32)
    r, t = np.sort(rng.uniform(size=(2, rows)).astype(np.float32), axis=0)
    text = rng.standard_normal((rows, tokens, net.text_width)).astype(np.float32)
    conditions = {
        "class": {"label": rng.integers(0, net.num_classes + 1, rows, np.int32)},
        "text": {"text": text, "mask": np.ones((rows, tokens), bool)},
    }
    more = {"guidance": np.ones((rows, 3), np.float32)} if net.guidance_input else {}
    return Query(*map(jnp.asarray, (x, t, r)), jax.tree.map(jnp.asarray, conditions[net.condition] | more))


@functools.cache
def make_params(net):
    """Random everywhere: as initialised, the network's output is zero."""
    net = net.clone(dropout=0.0, remat="none", unroll=False, dtype=jnp.float32, rope_order="row_major")
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), (make_query(net),)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.15 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@functools.cache
def forward(net, hidden):
    return jit(lambda params, groups: net.apply({"params": params}, groups, hidden=hidden))


def run(net, *groups, hidden=False, params=None):
    return forward(net, hidden)(make_params(net) if params is None else params, groups)


def assert_close(a, b, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), a, b)


# Initialisation


@pytest.fixture(scope="module")
def initial():
    net = make_net(width=64, condition="class")
    variables = jit(net.init)(jax.random.key(0), (make_query(net),))
    return net, variables["params"]


def test_output_starts_at_zero_and_the_hidden_state_does_not(initial):
    net, params = initial
    (out,) = run(net, make_query(net), hidden=True, params=nn.unbox(params))
    assert not out.F.any() and out.hidden.any()


# Path: standard deviation. A xavier uniform distribution has variance 2 / (fan in + fan out).
SPREADS = {
    ("blocks", "attn", "qkv", "kernel"): (2 / (64 + 3 * 64)) ** 0.5,
    ("blocks", "attn", "out", "kernel"): (2 / (64 + 64)) ** 0.5,
    ("blocks", "modulation", "gate", "kernel"): (2 / (64 + 8)) ** 0.5,
    ("patch", "kernel"): (2 / (2 * 2 * 3 + 64)) ** 0.5,
    ("t_embedder", "in", "kernel"): 0.02,
    ("delta_embedder", "in", "kernel"): (2 / (256 + 64)) ** 0.5,
    ("label_embedder", "table"): 0.02,
}


@pytest.mark.parametrize("path", SPREADS)
def test_spread_of_initial_weights(initial, path):
    leaf = functools.reduce(lambda tree, key: tree[key], path, nn.unbox(initial[1]))
    np.testing.assert_allclose(np.std(leaf), SPREADS[path], rtol=0.1)
    if path[0] == "blocks":
        assert not np.allclose(leaf[0], leaf[1])


def test_axis_names_are_the_documented_ones(initial):
    net, params = initial
    specs = nn.get_partition_spec(params)
    assert specs["blocks"]["attn"]["qkv"]["kernel"] == P("layers", "embed", "qkv", "heads", "head")
    assert specs["blocks"]["mlp"]["down"]["kernel"] == P("layers", "mlp", "embed")
    documented = {None, "batch", "tokens", "embed", "heads", "head", "mlp", "layers", "qkv"}
    assert {name for spec in jax.tree.leaves(specs) for name in spec} <= documented


RULES = (("batch", "fsdp"), ("embed", "fsdp"), ("heads", "tensor"), ("mlp", "tensor"))


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices")
@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_a_mesh_changes_no_number_and_moves_weights_rather_than_activations(shape):
    net = make_net(width=48)
    params, query = make_params(net), make_query(net, rows=12)
    specs = nn.get_partition_spec(jax.eval_shape(net.init, jax.random.key(0), (query,)))["params"]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(shape), ("fsdp", "tensor"))
    placed = jax.device_put(params, nn.logical_to_mesh_sharding(specs, mesh, RULES))
    rows = jax.device_put(query, jax.NamedSharding(mesh, P("fsdp")))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        step = jit(lambda p, q: net.apply({"params": p}, (q,), hidden=True)).lower(placed, rows).compile()
    assert_close(step(placed, rows), run(net, query, hidden=True))
    assert "all-gather" in step.as_text() and "all-to-all" not in step.as_text()


# Groups and tangents


@pytest.mark.parametrize("condition", CONDITIONS)
def test_two_groups_in_one_call_equal_two_calls(condition):
    net = make_net(condition=condition)
    a, b = make_query(net, 0), make_query(net, 1, rows=3, h=6, w=4)
    assert_close(run(net, a, b, hidden=True), (*run(net, a, hidden=True), *run(net, b, hidden=True)))


def test_hidden_states_leave_the_output_alone_and_follow_encoder_depth():
    net = make_net()
    query = make_query(net)
    (plain,), (full,) = run(net, query), run(net, query, hidden=True)
    assert plain.hidden is None and full.hidden.shape == (2, 8, 5)
    assert_close(plain.F, full.F)
    (deeper,) = run(net.clone(encoder_depth=3), query, hidden=True, params=make_params(net))
    assert not np.allclose(deeper.hidden, full.hidden, atol=1e-3)


def with_tangent(net, params, plain, query, hidden=False):
    """Outputs of (plain..., query) and their tangents along (x_t, t, 0), for the last group only."""

    def F(x_t, t):
        return net.apply({"params": params}, (*plain, query._replace(x_t=x_t, t=t)), hidden=hidden)

    return jax.jvp(F, (query.x_t, query.t), (jnp.ones_like(query.x_t), jnp.ones_like(query.t)))


@pytest.mark.parametrize(("condition", "remat"), [("class", "dots"), ("text", "none")])
def test_tangent_in_one_group(condition, remat):
    net = make_net(condition=condition, remat=remat)
    params, a, b = make_params(net), make_query(net, 0), make_query(net, 1)
    both = jit(functools.partial(with_tangent, net, hidden=True))
    outputs, tangents = both(params, (a,), b)
    assert_close((outputs[1:], tangents[1:]), both(params, (), b))
    assert_close(outputs[:1], run(net, a, hidden=True))
    assert not any(leaf.any() for leaf in jax.tree.leaves(tangents[0]))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_plain_group_costs_no_tangent_work(remat, hidden):
    net = make_net(unroll=True, remat=remat)
    params, a, b = make_params(net), make_query(net, 0), make_query(net, 1)

    def flops(f, *args):
        return jax.jit(f).lower(*args).cost_analysis()["flops"]

    tangent = functools.partial(with_tangent, net, hidden=hidden)
    plain = flops(lambda p, q: net.apply({"params": p}, (q,), hidden=hidden), params, a)
    alone, both = flops(tangent, params, (), b), flops(tangent, params, (a,), b)
    assert alone > 1.8 * plain
    np.testing.assert_allclose(both, plain + alone, rtol=0.01)


def test_unrolled_scan_shows_all_layers_to_the_flop_count():
    def flops(depth):
        net = make_net(depth=depth, unroll=True)
        compiled = jit(net.apply).lower({"params": make_params(net)}, (make_query(net),)).compile()
        return compiled.cost_analysis()["flops"]

    two, three, four = map(flops, (2, 3, 4))
    np.testing.assert_allclose(four - three, three - two, rtol=0.02)
    assert four > 1.5 * two


# Times and intervals


def test_interval_embeddings_run_and_differ():
    fields = [{"conditioning": name} for name in INTERVALS] + [{"separate_interval_embedder": False}]
    nets = [make_net(depth=1, encoder_depth=1, **f) for f in fields]
    query, params = make_query(nets[0]), make_params(nets[0])
    shared = {key: value for key, value in params.items() if key != "delta_embedder"}
    Fs = [run(n, query, params=params if n.separate_interval_embedder else shared)[0].F for n in nets]
    for i, a in enumerate(Fs):
        assert np.isfinite(a).all()
        assert all(not np.allclose(a, b, atol=1e-3) for b in Fs[:i])


def test_interval_reaches_the_output_only_through_delta():
    net = make_net()
    query = make_query(net)
    later = query._replace(r=query.r - 0.25)
    assert not np.allclose(run(net, query)[0].F, run(net, later)[0].F, atol=1e-3)


# Attention and masks


def test_attention_is_the_textbook_formula_in_float64(x64):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 2, 8))
    logits = np.einsum("bnhk,bmhk->bhnm", q, k) / 8**0.5
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention(*map(jnp.asarray, (q, k, v))), np.einsum("bhnm,bmhk->bnhk", weights, v), 1e-12)


def test_attention_under_a_mask_is_attention_to_the_rest():
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4, 2, 8)), jnp.float32)
    mask = jnp.array([[True, True, False, False], [False] * 4])
    y = attention(q, k, v, mask)
    np.testing.assert_allclose(y[:1], attention(q[:1], k[:1, :2], v[:1, :2]), rtol=1e-5)
    assert not y[1].any()


def test_padded_text_tokens_change_nothing():
    net = make_net(condition="text")
    query = make_query(net)
    text, mask = query.condition["text"], query.condition["mask"].at[0, 3:].set(False)
    other = text.at[0, 3:].set(7.0)
    a, b = ({"text": text, "mask": mask}, {"text": other, "mask": mask})
    assert_close(*(run(net, query._replace(condition=c)) for c in (a, b)))
    short = {"text": text[:1, :3], "mask": mask[:1, :3]}
    one = Query(query.x_t[:1], query.t[:1], query.r[:1], short)
    assert_close(run(net, one)[0].F, run(net, query._replace(condition=a))[0].F[:1])
    a, b = (c | {"mask": jnp.ones_like(mask)} for c in (a, b))
    assert not np.allclose(*(run(net, query._replace(condition=c))[0].F[:1] for c in (a, b)), atol=1e-3)


# Dropout


def test_dropout_depends_on_the_row_key_alone():
    net = make_net(dropout=0.3)
    query = make_query(net)
    keys = jax.random.split(jax.random.key(1), 2)
    keyed = query._replace(key=keys)
    swapped = jax.tree.map(lambda a: a[::-1], keyed)
    (a,), (b, c) = run(net, keyed), run(net, query, swapped)
    assert_close(a.F, c.F[::-1])
    assert_close(b.F, run(net.clone(dropout=0.0), keyed)[0].F)
    assert not np.allclose(a.F, b.F, atol=1e-3)
    assert not np.allclose(a.F, run(net, query._replace(key=keys[::-1]))[0].F, atol=1e-3)


def test_dropout_is_the_same_in_a_pass_with_tangents():
    net = make_net(dropout=0.3)
    query = make_query(net)._replace(key=jax.random.split(jax.random.key(1), 2))
    (out,), _ = jit(functools.partial(with_tangent, net))(make_params(net), (), query)
    assert_close(out.F, run(net, query)[0].F)


def test_layers_and_branches_drop_different_entries():
    keys, ones = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 64, 64))
    drops = [
        keyed_dropout(ones, keys, 0.25, layer, branch, jnp.arange(64)) for layer in range(2) for branch in range(2)
    ]
    for i, a in enumerate(drops):
        np.testing.assert_allclose(a.mean(), 1, atol=0.03)
        assert all((a != b).mean() > 0.3 for b in drops[:i])


# Precision, memory policies, unrolling


@pytest.mark.parametrize("condition", CONDITIONS)
def test_bfloat16_is_close_to_float32_and_returns_float32(condition):
    net = make_net(condition=condition)
    params = make_params(net)
    (full,) = run(net, make_query(net), hidden=True, params=params)
    (half,) = run(net.clone(dtype=jnp.bfloat16), make_query(net), hidden=True, params=params)
    assert half.F.dtype == half.hidden.dtype == jnp.float32
    for a, b in ((half.F, full.F), (half.hidden, full.hidden)):
        assert 0 < np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)


def test_bfloat16_tangent_differentiates():
    net = make_net(dtype=jnp.bfloat16, remat="full")
    query = make_query(net)
    loss = lambda p: jnp.square(with_tangent(net, p, (query,), query)[1][1].F).mean()  # noqa: E731
    grads = jit(jax.grad(loss))(make_params(net))
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_float64_has_float64_parameters_and_answers(x64):
    net = make_net(dtype=jnp.float64)
    query = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, make_query(net))
    boxed = jax.eval_shape(net.init, jax.random.key(0), (query,))
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype(jnp.float64)}
    params = jax.tree.map(lambda p: p.astype(jnp.float64), make_params(make_net()))
    _, (slope,) = jit(functools.partial(with_tangent, net))(params, (), query)
    at = lambda e: run(net, query._replace(x_t=query.x_t + e, t=query.t + e), params=params)[0].F  # noqa: E731
    e = 1e-5
    np.testing.assert_allclose(slope.F, (at(e) - at(-e)) / (2 * e), atol=1e-6, rtol=1e-6)


@functools.cache
def gradient(remat, unroll):
    net = make_net(depth=2, encoder_depth=1, remat=remat, unroll=unroll)

    def loss(params):
        (out,), (tangent,) = with_tangent(net, params, (), make_query(net), hidden=True)
        return sum(jnp.square(y).mean() for y in (out.F, out.hidden, tangent.F))

    return jit(jax.value_and_grad(loss))(make_params(net))


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "unroll"), [*((name, False) for name in REMAT), ("full", True)][1:])
def test_memory_policies_and_unrolling_give_the_same_gradients(remat, unroll):
    assert_close(gradient(remat, unroll), gradient("none", False))


# Complaints

BAD_FIELDS = {
    "heads is 3": {"heads": 3},
    "heads is 16": {"heads": 16},
    "encoder_depth is 0": {"encoder_depth": 0},
    "encoder_depth is 4": {"encoder_depth": 4},
    "dropout is 1.0": {"dropout": 1.0},
    "patch_size is 0": {"patch_size": 0},
    "condition is 'image'": {"condition": "image"},
    "conditioning is 'r-t'": {"conditioning": "r-t"},
    "rope_order is 'hilbert'": {"rope_order": "hilbert"},
    "remat is 'some'": {"remat": "some"},
}


@pytest.mark.parametrize("message", BAD_FIELDS)
def test_wrong_fields_are_named_in_one_line(message):
    with pytest.raises(ValueError, match=f"^model.{message}; it must") as error:
        make_net(**BAD_FIELDS[message])
    assert "\n" not in str(error.value)


BAD_INPUTS = {
    "patch does not divide": (lambda q: q._replace(x_t=q.x_t[:, :3]), "x_t has shape"),
    "channels": (lambda q: q._replace(x_t=q.x_t[..., :2]), "x_t has shape"),
    "times": (lambda q: q._replace(t=q.t[:1]), "t, r have shapes"),
    "condition": (lambda q: q._replace(condition={"text": None}), r"must have \['label'\]"),
}


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_wrong_inputs_are_named_in_one_line(fault):
    damage, message = BAD_INPUTS[fault]
    net = make_net()
    with pytest.raises(ValueError, match=message) as error:
        net.apply({"params": make_params(net)}, (damage(make_query(net)),))
    assert "\n" not in str(error.value)


def test_a_bare_query_and_hidden_without_projector_are_refused():
    net = make_net()
    with pytest.raises(ValueError, match="tuple of Queries"):
        net.apply({"params": make_params(net)}, make_query(net))
    with pytest.raises(ValueError, match="z_dim > 0"):
        make_net(z_dim=0).apply({"params": {}}, (make_query(net),), hidden=True)


# Further outputs and inputs


def test_heads_tell_more_and_change_nothing_else():
    plain, net = make_net(), make_net(output_heads=tuple(HEADS))
    query, wide = make_query(net), make_query(net, seed=1, rows=3, h=2)
    params = make_params(net)
    outputs = run(net, query, wide, hidden=True)
    for q, output, without in zip((query, wide), outputs, run(plain, query, wide, hidden=True, params=params)):
        assert_close(output.F, without.F)
        assert_close(output.hidden, without.hidden)
        assert {name: value.shape for name, value in output.heads.items()} == {
            "velocity": q.x_t.shape, "log_variance": q.t.shape, "joint_log_variance": q.t.shape,
            "pooled": (len(q.t), net.width),
        }  # fmt: skip
        assert jnp.abs(output.heads["velocity"] - output.F).max() > 0.01
    # What is pooled are the states that a network of as many blocks ends with.
    last = make_net(output_heads=("pooled",), encoder_depth=3)
    assert jnp.abs(run(last, query, params=params)[0].heads["pooled"] - outputs[0].heads["pooled"]).max() > 1e-3


def test_heads_start_at_zero_and_log_variance_knows_time_only():
    net = make_net(output_heads=("velocity", "log_variance"))
    query = make_query(net)
    (output,) = run(net, query, params=nn.unbox(jax.jit(net.init)(jax.random.key(0), (query,)))["params"])
    assert (output.heads["velocity"] == 0).all() and (output.heads["log_variance"] == 0).all()
    other = make_query(net, seed=1)._replace(t=query.t)
    assert_close(*(run(net, q)[0].heads["log_variance"] for q in (query, other)))
    later = query._replace(t=query.t + 0.1)
    assert jnp.abs(run(net, query)[0].heads["log_variance"] - run(net, later)[0].heads["log_variance"]).max() > 1e-3


def test_guidance_is_an_input_of_its_rows():
    net = make_net(guidance_input=True)
    query = make_query(net)
    with pytest.raises(ValueError, match="guidance"):
        run(net, make_query(make_net()))
    guidance = jnp.array([[1.0, 0.1, 0.9], [4.0, 0.1, 0.9]])
    query = query._replace(condition=query.condition | {"guidance": guidance})
    before = run(net, query)[0].F
    for column in range(3):
        after = run(net, query._replace(condition=query.condition | {"guidance": guidance.at[1, column].mul(1.1)}))[0].F
        assert_close(after[0], before[0])
        assert jnp.abs(after[1] - before[1]).max() > 1e-4


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="output_heads.*'speed'.*velocity"):
        make_net(output_heads=("speed",))
