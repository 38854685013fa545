"""Published weights: round trips, complaints, and the published network's own numbers."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from tim_jax.codecs.official import depth_of, from_official, to_official, transposed
from tim_jax.networks import TiM
from tim_jax.types import Query

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = {
    "patch_size": 2, "channels": 4, "width": 64, "depth": 3, "heads": 4, "bottleneck": 24, "encoder_depth": 2,
    "z_dim": 16, "projector_width": 32, "num_classes": 10, "rope_order": "official",
}  # fmt: skip
# Weights by name: the fields that differ from TINY.
NETS = {
    "c2i_tiny": {},
    "c2i_variant1": {"conditioning": "t,r"},
    "c2i_variant5": {"separate_interval_embedder": False},
    "c2i_variant6": {"interval_aware": False},
    "t2i_tiny": {"condition": "text", "text_width": 24},
}
# Answers by name: weights, array of inputs, array of the answer, array of hidden states.
ANSWERS = {
    "c2i_forward": ("c2i_tiny", "{}", "F", "h_proj"),
    "c2i_forward_rect": ("c2i_tiny", "{}_rect", "F_rect_official_rope", None),
    "c2i_variant1": ("c2i_variant1", "{}", "F", None),
    "c2i_variant5": ("c2i_variant5", "{}", "F", None),
    "c2i_variant6": ("c2i_variant6", "{}", "F", None),
    "t2i_forward": ("t2i_tiny", "{}", "F", "h_proj"),
}


BOUND = 4e-6  # of the largest value, in float32


def close(ours, theirs):
    """Rounding grows with the values, so that a flat bound is too wide for some networks and too narrow for others."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUND * np.abs(theirs).max())


def weights(name):
    return load_file(GOLDEN / f"{name}.safetensors")


@functools.cache
def template(name):
    net = TiM(**TINY | NETS[name])
    x, t = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1,))
    text = {"text": jnp.zeros((1, 7, 24)), "mask": jnp.ones((1, 7), bool)}
    query = Query(x, t, t, text if net.condition == "text" else {"label": jnp.zeros((1,), int)})
    return net, nn.unbox(jax.eval_shape(net.init, jax.random.key(0), (query,)))["params"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_forward_pass_is_the_published_one(golden, answer):
    name, form, F_name, hidden_name = ANSWERS[answer]
    arrays = golden(f"{answer.removesuffix('_rect')}.npz")
    x, t, r = (arrays[form.format(k)] for k in "xtr")
    net, shapes = template(name)
    if net.condition == "text":
        text = arrays["caption_features"]
        condition = {"text": text, "mask": np.ones(text.shape[:2], bool)}
    else:
        condition = {"label": arrays[form.format("y")].astype(np.int32)}
    query = Query(jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(t), jnp.asarray(r), condition)
    params = from_official(weights(name), shapes)
    forward = jax.jit(lambda p, q: net.apply({"params": p}, (q,), hidden=True))
    with jax.default_matmul_precision("highest"):
        (out,) = forward(params, query)
    close(out.F.transpose(0, 3, 1, 2), arrays[F_name])
    if hidden_name:
        close(out.hidden, arrays[hidden_name])


@pytest.mark.parametrize("name", ["c2i_tiny", "t2i_tiny"])
def test_float32_is_near_float64_where_predictions_are_large(name, x64):
    """Larger modulations give |F| above 10, where rounding is larger, too; float64 says what is right."""
    net, shapes = template(name)
    rng = np.random.default_rng(0)
    params = from_official(weights(name), shapes)
    params["final"]["linear"]["kernel"] = 6 * params["final"]["linear"]["kernel"]
    x, (t, r) = rng.standard_normal((2, 8, 8, 4)), np.array([[0.9, 0.5], [0.2, 0.1]])
    condition = {"label": np.array([3, 10], np.int32)}
    if net.condition == "text":
        condition = {"text": rng.standard_normal((2, 7, 24)), "mask": np.ones((2, 7), bool)}

    def F(dtype):
        cast = lambda a: jnp.asarray(a, dtype if np.issubdtype(np.asarray(a).dtype, np.floating) else None)  # noqa: E731
        given, query = jax.tree.map(cast, (params, Query(x, t, r, condition)))
        with jax.default_matmul_precision("highest"):
            return np.asarray(
                jax.jit(lambda p, q: net.clone(dtype=dtype).apply({"params": p}, (q,))[0].F)(given, query)
            )

    exact = F(jnp.float64)
    assert exact.dtype == np.float64 and np.abs(exact).max() > 10
    close(F(jnp.float32), exact)


@pytest.mark.parametrize("name", NETS)
def test_round_trip_from_official_names_is_exact(name):
    state, (_, shapes) = weights(name), template(name)
    params = from_official(state, shapes)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    back = to_official(params)
    assert back.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(back[key], state[key])


@pytest.mark.parametrize("name", ["c2i_tiny", "t2i_tiny"])
def test_round_trip_from_parameters_is_exact(name):
    _, shapes = template(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, leaf.dtype), shapes)
    jax.tree.map(np.testing.assert_array_equal, from_official(to_official(params), shapes), params)


def test_depth_is_read_from_the_names():
    assert depth_of(weights("c2i_tiny")) == 3
    assert depth_of({"x_embedder.proj.weight": np.zeros(1)}) == 0


FAULTS = {
    "missing": (lambda s: s.pop("blocks.1.attn.qkv.bias"), "missing: blocks.1.attn.qkv.bias"),
    "unknown": (lambda s: s.update({"pos_embed": np.zeros(2)}), "unknown: pos_embed"),
    "misshapen": (
        lambda s: s.update({"final_layer.linear.bias": np.zeros(3)}),
        r"misshapen: final_layer.linear.bias \(3,\) instead of \(16,\)",
    ),
    "depth": (lambda s: s.update({"blocks.3.attn.qkv.bias": np.zeros(192)}), "depth 4: the network has 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_named_in_one_line(fault):
    damage, message = FAULTS[fault]
    state, (_, shapes) = weights("c2i_tiny"), template("c2i_tiny")
    damage(state)
    with pytest.raises(ValueError, match=message) as error:
        from_official(state, shapes)
    assert "\n" not in str(error.value)


def test_parameters_without_official_name_keep_their_own():
    """Those of a network with an input for guidance and a second head, beside all others under official names."""
    net = TiM(**TINY, guidance_input=True, output_heads=("velocity", "log_variance"))
    x, t = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1,))
    query = Query(x, t, t, {"label": jnp.zeros((1,), int), "guidance": jnp.ones((1, 3))})
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), (query,)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, leaf.dtype), shapes)
    state = to_official(params)
    own = {name.split(".")[1].split("/")[0] for name in state if name.startswith("tim_jax.")}
    assert own == {"guidance_embedder", "velocity_head", "log_variance_head"}
    assert weights("c2i_tiny").keys() == {name for name in state if not name.startswith("tim_jax.")}
    jax.tree.map(np.testing.assert_array_equal, from_official(state, shapes), params)


@pytest.mark.parametrize("name", ["c2i_tiny", "t2i_tiny"])
def test_on_squares_transposed_parameters_read_the_other_order_of_positions(name):
    """F is the same to rounding on a square, so that both orders can be exported; on a rectangle it is another."""
    net, shapes = template(name)
    params = from_official(weights(name), shapes)
    turned = transposed(params)
    jax.tree.map(np.testing.assert_array_equal, transposed(turned), params)
    rng = np.random.default_rng(0)
    text = {"text": rng.standard_normal((2, 7, 24)).astype(np.float32), "mask": np.ones((2, 7), bool)}
    condition = text if net.condition == "text" else {"label": np.array([3, 10], np.int32)}
    row_major = net.clone(rope_order="row_major")

    @functools.partial(jax.jit, static_argnums=0)
    def apply(net, params, query):
        return net.apply({"params": params}, (query,))[0].F

    def F(net, params, x):
        query = Query(x, *np.array([[0.9, 0.5], [0.2, 0.1]], np.float32), condition)
        with jax.default_matmul_precision("highest"):
            return np.asarray(apply(net, params, query))

    square, wide = (rng.standard_normal((2, 8, width, 4)).astype(np.float32) for width in (8, 12))
    close(F(row_major, turned, square), F(net, params, square))
    for other, x in ((params, square), (turned, wide)):
        expected = F(net, params, x)
        assert np.abs(F(row_major, other, x) - expected).max() > 1e-3 * np.abs(expected).max()
