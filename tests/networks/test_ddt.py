"""DDT and DiT^DH: the published networks' own numbers and names, and what a decoder of its own brings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import published_networks as published
from tim_jax.codecs.official import from_official, to_official
from tim_jax.networks import NETWORKS
from tim_jax.networks.rope import spread_rope_table
from tim_jax.types import TangentQuery

TINY = {"width": 64, "heads": 4, "depth": 2, "decoder_depth": 1, "encoder_depth": 1, "num_classes": 10}
# By file: the name of the network, and its fields.
NETS = {
    "net_ddt": ("ddt", {}),
    "net_rae_ditdh": ("ditdh", {"channels": 24, "patch_size": 1, "decoder_width": 96}),
    "net_rae_ditdh_qknorm": ("ditdh", {"channels": 24, "patch_size": 1, "qk_norm": True}),
}
FIXED = ("pos_embed", "enc_feat_rope.", "dec_feat_rope.")  # what files carry beside parameters
OWN = ("delta_embedder", "delta_tokens")  # what published networks do not have
every_file = pytest.mark.parametrize("name", NETS)


def state_of(name):
    state = load_file(published.GOLDEN / f"{name}.safetensors")
    return {key: array for key, array in state.items() if not key.startswith(FIXED)}


def published_part(params):
    return {name: part for name, part in params.items() if name not in OWN}


def load(name, dtype=jnp.float32, **fields):
    """(network, its parameters, a group of examples, the published answers); of the interval's embedder, small ones."""
    kind, own = NETS[name]
    net, found = NETWORKS[kind](**TINY | own | fields, dtype=dtype), published.answers(name)
    groups = published.queries(found["x"], found["t"], found["labels"], dtype)
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), groups))["params"]
    params, rng = from_official(state_of(name), published_part(shapes), kind), np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), dtype)  # noqa: E731
    return net, params | {own: jax.tree.map(fill, shapes[own]) for own in OWN if own in shapes}, groups, found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@every_file
def test_a_published_network_gives_its_own_numbers(name, dtype, x64):
    net, params, groups, found = load(name, dtype)
    params["delta_embedder"]["out"] = jax.tree.map(jnp.zeros_like, params["delta_embedder"]["out"])  # as at first

    def F(x, t, labels):
        return np.asarray(published.call(net, params, published.queries(x, t, labels, dtype, r=0 * t))[0].F)

    published.assert_close(F(found["x"], found["t"], found["labels"]), found["output"], dtype)
    if "x_rect" in found:
        published.assert_close(F(found["x_rect"], found["t"][:2], found["labels"][:2]), found["output_rect"], dtype)
    if "guided" in found:  # of the first row at t = 0.4, of class 3, by 1.42
        rows = len(found["x"])  # as many as above, for the same program
        x, t = np.repeat(found["x"][:1], rows, axis=0), np.full(rows, 0.4)
        unconditional = F(x, t, np.full(rows, net.num_classes))[:1]
        guided = unconditional + 1.42 * (F(x, t, np.full(rows, 3))[:1] - unconditional)
        published.assert_close(guided, found["guided"], dtype)


@every_file
def test_round_trip_from_published_names_is_exact(name):
    state, (_, params, _, _) = state_of(name), load(name)
    back = to_official(published_part(params), NETS[name][0])
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array)


def test_weights_of_another_division_of_the_blocks_are_refused():
    with pytest.raises(ValueError, match=r"misshapen: blocks\.1\.\S+ \(384,\) instead of \(576,\)"):
        load("net_rae_ditdh", depth=1, decoder_depth=2)


# By published name: network, size, further fields, side of latents, millions of parameters (arXiv 2504.05741 and, with
# the fixed position embedding, 2510.11690).
COUNTS = {
    "DDT-XL/2": ("ddt", "XL", {}, 32, 675),
    "DiT^DH-XL": ("ditdh", "XL", {"channels": 768, "patch_size": 1}, 16, 839),
}


@pytest.mark.parametrize("published_as", COUNTS)
def test_published_sizes_have_the_published_number_of_parameters(published_as):
    kind, size, fields, side, millions = COUNTS[published_as]
    net = NETWORKS[kind](**NETWORKS[kind].SIZES[size] | fields)
    zero = np.zeros(1)
    groups = published.queries(np.zeros((1, side, side, net.channels)), zero, zero, jnp.float32)
    shapes = published_part(nn.unbox(jax.eval_shape(net.init, jax.random.key(0), groups))["params"])
    fixed = side**2 * net.width if kind == "ditdh" else 0
    assert round((sum(leaf.size for leaf in jax.tree.leaves(shapes)) + fixed) / 1e6) == millions


@pytest.mark.parametrize("interval", ["modulation", "tokens"])
@pytest.mark.parametrize("name", ["net_ddt", "net_rae_ditdh"])
@pytest.mark.slow
def test_the_derivative_runs_through_both_stacks(name, interval, x64):
    """dF/dt by jax.jvp is the difference quotient; with tokens, too, which the decoder does not see."""
    net, params, groups, _ = load(name, jnp.float64, interval=interval)
    q = groups[0]._replace(r=groups[0].t / 2)

    def F(t, kind=TangentQuery):
        return net.apply({"params": params}, (kind(*q._replace(t=t)),))[0].F

    def both(t):
        _, tangent = jax.jvp(F, (t,), (jnp.ones_like(t),))
        return tangent, (F(t + 1e-6) - F(t - 1e-6)) / 2e-6

    tangent, quotient = jax.jit(both)(q.t)
    np.testing.assert_allclose(tangent, quotient, rtol=0, atol=1e-6 * np.abs(quotient).max())


def test_a_decoupled_decoder_sees_r_alone():
    """With as many blocks decoupled as the decoder has, t reaches F by the encoder's states only."""
    net, params, groups, _ = load("net_ddt", decoupled_depth=1)
    deaf = jax.tree.map(jnp.zeros_like, params["encoder"]["modulation"])
    params_deaf = params | {"encoder": params["encoder"] | {"modulation": deaf}}

    def change(params, **times):
        q = groups[0]._replace(r=groups[0].t / 2)
        return np.abs(
            published.call(net, params, (q._replace(**times),))[0].F - published.call(net, params, (q,))[0].F
        ).max()

    later, t = {"t": 0.9 * groups[0].t}, {"r": 0.4 * groups[0].t}
    assert change(params, **later) > 1e-3 and change(params, **t) > 1e-3
    assert change(params_deaf, **later) == 0 and change(params_deaf, **t) > 1e-3


def test_positions_of_ddt_are_relative_to_the_image():
    """A grid twice as fine has the corners of the coarse one, at the same angles."""
    coarse, fine = spread_rope_table(3, 4, 8), spread_rope_table(5, 7, 8)
    for table, finer in zip(coarse, fine, strict=True):
        table, finer = table.reshape(3, 4, 4), finer.reshape(5, 7, 4)
        np.testing.assert_allclose(table, finer[::2, ::2], atol=2e-5)
        assert (table[0, :, ::2] == table[2, :, ::2]).all() and (table[:, 0, 1::2] == table[:, 3, 1::2]).all()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"decoder_depth": 0}, "model.decoder_depth is 0; it must be at least 1"),
        ({"decoder_heads": 3}, "model.decoder_heads is 3; it must split model.decoder_width, 64, into heads"),
        ({"decoder_width": -4}, "model.decoder_width is -4; it must be at least 0"),
        ({"slices": 2}, "model.slices is 2; it must be 1 for a network of an encoder and a decoder"),
        ({"decoupled_depth": 4}, "model.decoupled_depth is 4; it must lie in 0 … 3, the blocks"),
        ({"encoder_depth": 3}, "model.encoder_depth is 3; it must lie in 1 … model.depth, 2"),
    ],
)
def test_what_cannot_be_is_one_line(fields, said):
    with pytest.raises(ValueError) as error:
        NETWORKS["ddt"](**TINY | fields)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
