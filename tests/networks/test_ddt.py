"""DDT and DiT^DH: the numbers of published code, weights under published names, and what a decoder of its own brings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from tim_jax.codecs.official import from_official, to_official
from tim_jax.networks import NETWORKS
from tim_jax.networks.rope import spread_rope_table
from tim_jax.types import Query, TangentQuery

TINY = {"width": 64, "heads": 4, "depth": 2, "decoder_depth": 1, "encoder_depth": 1, "num_classes": 10}
LATENTS = TINY | {"channels": 24, "patch_size": 1}
# Network and fields of golden weights.
NETS = {
    "net_ddt": ("ddt", TINY | {"channels": 4}),
    "net_rae_ditdh": ("ditdh", LATENTS | {"decoder_width": 96}),
    "net_rae_ditdh_qknorm": ("ditdh", LATENTS | {"qk_norm": True}),
}
FIXED = ("pos_embed", "enc_feat_rope.", "dec_feat_rope.")  # what files carry beside parameters
BOUNDS = {"float32": 1e-5, "float64": 1e-9}


def query(x_NCHW, t, label, dtype=jnp.float32):
    t = jnp.asarray(t, dtype)
    return Query(jnp.asarray(x_NCHW.transpose(0, 2, 3, 1), dtype), t, t, {"label": jnp.asarray(label, jnp.int32)})


def made(file, dtype="float32", **fields):
    """The network of a golden file and the shapes of its parameters."""
    name, own = NETS[file]
    net = NETWORKS[name](**own | fields, dtype=jnp.dtype(dtype))
    x, t = jnp.zeros((1, 8, 8, net.channels), dtype), jnp.zeros((1,), dtype)
    init = jax.eval_shape(net.init, jax.random.key(0), (Query(x, t, t, {"label": jnp.zeros((1,), int)}),))
    return name, net, nn.unbox(init)["params"]


def state(file):
    found = load_file(f"tests/golden/{file}.safetensors")
    return {name: array for name, array in found.items() if not name.startswith(FIXED)}


def at_first(shapes):
    flat = flatten_dict(shapes, sep="/")
    return lambda paths: {path: np.zeros(flat[path].shape, flat[path].dtype) for path in paths}


def random_params(net, q, seed=0):
    """Parameters none of which is zero, so that all conditions have an effect."""
    params = nn.unbox(net.init(jax.random.key(seed), (q,)))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("file", NETS)
def test_forward_pass_is_the_published_one(golden, x64, file, dtype):
    name, net, shapes = made(file, dtype)
    params = from_official(state(file), shapes, name, first=at_first(shapes))
    run = jax.jit(lambda q: net.apply({"params": params}, (q,))[0].F)

    def F(x, t, label):
        with jax.default_matmul_precision("highest"):
            return np.asarray(run(query(x, t, label, dtype))).transpose(0, 3, 1, 2)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUNDS[dtype])

    there = golden(f"{file}.npz")
    close(F(there["x"], there["t"], there["labels"]), there["output"])
    if "x_rect" in there:
        close(F(there["x_rect"], there["t"][:2], there["labels"][:2]), there["output_rect"])
    if "guided" in there:  # of the first row at t = 0.4, of class 3 by 1.42
        with_class, without = (F(there["x"][:1], [0.4], [label]) for label in (3, net.num_classes))
        close(without + 1.42 * (with_class - without), there["guided"])


@pytest.mark.parametrize("file", NETS)
def test_weights_go_out_as_they_came_in(file):
    name, _, shapes = made(file)
    published = state(file)
    out = to_official(from_official(published, shapes, name, first=at_first(shapes)), name)
    assert out.keys() == published.keys()
    for key, array in published.items():
        np.testing.assert_array_equal(out[key], array)


def test_blocks_are_numbered_on_from_the_encoder_to_the_decoder():
    """Weights of another division of as many blocks do not fit where the widths differ; the first that does not is named."""
    name, _, shapes = made("net_rae_ditdh", depth=1, decoder_depth=2)
    with pytest.raises(ValueError, match=r"misshapen: blocks\.1\.\S+ \(384,\) instead of \(576,\)"):
        from_official(state("net_rae_ditdh"), shapes, name, first=at_first(shapes))


@pytest.mark.parametrize("interval", ["modulation", "tokens"])
@pytest.mark.parametrize("file", NETS)
def test_the_decoder_sees_what_the_encoder_does_not(x64, file, interval):
    """dF/dt by jax.jvp in float64 is the difference quotient, through the times of both stacks and the interval."""
    _, net, _ = made(file, "float64", interval=interval)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 4, net.channels)))
    t, r = jnp.array([0.7, 0.4]), jnp.array([0.2, 0.4])
    condition = {"label": jnp.array([1, 3])}
    params = random_params(net, Query(x, t, r, condition))

    def F(t, kind=Query):
        return net.apply({"params": params}, (kind(x, t, r, condition),))[0].F

    _, tangent = jax.jit(lambda t: jax.jvp(lambda t: F(t, TangentQuery), (t,), (jnp.ones(2),)))(t)
    quotient = jax.jit(lambda t: (F(t + 1e-5) - F(t - 1e-5)) / 2e-5)(t)
    np.testing.assert_allclose(tangent, quotient, rtol=0, atol=1e-7 * np.abs(quotient).max())


def test_a_decoupled_decoder_sees_r_alone():
    """With as many blocks decoupled as the decoder has, t reaches F through the encoder's states only."""
    _, net, _ = made("net_ddt", decoupled_depth=1)
    x, t, label = jnp.ones((1, 4, 4, 4)), jnp.array([0.7]), {"label": jnp.array([1])}
    q = Query(x, t, 0 * t, label)
    params = random_params(net, q)

    def F(t, r, blocks):
        kept = {k: v if k != "encoder" else jax.tree.map(lambda a: a * blocks, v) for k, v in params.items()}
        return net.apply({"params": kept}, (Query(x, jnp.array([t]), jnp.array([r]), label),))[0].F

    assert np.abs(F(0.7, 0.0, 1) - F(0.3, 0.0, 1)).max() > 1e-3
    np.testing.assert_array_equal(F(0.7, 0.0, 0), F(0.3, 0.0, 0))
    assert np.abs(F(0.7, 0.0, 0) - F(0.7, 0.5, 0)).max() > 1e-3


def test_positions_of_ddt_are_relative_to_the_image():
    """A grid twice as fine has the corners of the coarse one, at the same angles."""
    (cos, sin), (fine_cos, fine_sin) = spread_rope_table(3, 4, 8), spread_rope_table(5, 7, 8)
    corners, fine = np.array([0, 3, 8, 11]), np.array([0, 6, 28, 34])
    np.testing.assert_allclose(cos[corners], fine_cos[fine], atol=1e-5)
    np.testing.assert_allclose(sin[corners], fine_sin[fine], atol=1e-5)
    # Pairs alternate: those of columns are the same along a column, those of rows along a row.
    np.testing.assert_array_equal(cos.reshape(3, 4, 4)[0, :, ::2], cos.reshape(3, 4, 4)[2, :, ::2])
    np.testing.assert_array_equal(cos.reshape(3, 4, 4)[:, 0, 1::2], cos.reshape(3, 4, 4)[:, 3, 1::2])


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(decoder_depth=0), "model.decoder_depth is 0; it must be at least 1"),
        (dict(decoder_heads=3), "model.decoder_heads is 3; it must split model.decoder_width, 64, into heads"),
        (dict(decoder_width=-4), "model.decoder_width is -4; it must be at least 0"),
        (dict(slices=2), "model.slices is 2; it must be 1 for a network of an encoder and a decoder"),
        (dict(decoupled_depth=4), "model.decoupled_depth is 4; it must lie in 0 … 3, the blocks"),
        (dict(encoder_depth=3), "model.encoder_depth is 3; it must lie in 1 … model.depth, 2"),
    ],
)
def test_what_cannot_be_is_one_line(fields, said):
    with pytest.raises(ValueError) as error:
        NETWORKS["ddt"](**TINY | fields)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
