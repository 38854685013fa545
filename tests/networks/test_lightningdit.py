"""LightningDiT and JiT: the published networks' own numbers and names, and what they have beside these."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import published_networks as published
from tim_jax.codecs.official import from_official, to_official
from tim_jax.networks import NETWORKS

TINY = {"width": 64, "depth": 2, "heads": 4, "num_classes": 10, "encoder_depth": 1}
# By file: the name of the network, and its fields.
NETS = {
    "net_lightningdit": ("lightningdit", {"patch_size": 1, "qk_norm": False}),
    "net_lightningdit_qknorm_noshift": ("lightningdit", {"shift": False}),
    "net_jit": (
        "jit",
        {"channels": 3, "patch_size": 4, "patch_bottleneck": 16, "class_tokens": 4, "context_start": 1},
    ),
}
FIXED = ("pos_embed", "feat_rope.")


def load(name, dtype=jnp.float32, **fields):
    """(network, its parameters, a group of examples, the published answers)."""
    kind, own = NETS[name]
    net, found = NETWORKS[kind](**TINY | own | fields, dtype=dtype), published.answers(name)
    groups = published.queries(found["x"], found["t"], found["labels"], dtype)
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), groups))["params"]
    params = from_official(state_of(name), published_part(shapes), kind)
    # Of the interval they know nothing, as at first: whatever comes before its last layer, which is 0.
    params["delta_embedder"] = jax.tree.map(lambda leaf: np.ones(leaf.shape, dtype), shapes["delta_embedder"])
    params["delta_embedder"]["out"] = jax.tree.map(np.zeros_like, params["delta_embedder"]["out"])
    return net, params, groups, found


def published_part(params):
    return {name: part for name, part in params.items() if name != "delta_embedder"}


def state_of(name):
    state = load_file(published.GOLDEN / f"{name}.safetensors")
    return {key: array for key, array in state.items() if not key.startswith(FIXED)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", NETS)
def test_a_published_network_gives_its_own_numbers(name, dtype, x64):
    net, params, groups, found = load(name, dtype)
    published.assert_close(published.call(net, params, groups)[0].F, found["output"], dtype)


@pytest.mark.parametrize("name", NETS)
def test_round_trip_from_published_names_is_exact(name):
    state, (_, params, _, _) = state_of(name), load(name)
    back = to_official(published_part(params), NETS[name][0])
    assert back.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(back[key], state[key])


@pytest.mark.parametrize("name", ["net_lightningdit", "net_jit"])
def test_the_time_r_changes_nothing_at_first(name):
    net, params, groups, found = load(name)
    groups = tuple(q._replace(r=q.t / 3) for q in groups)
    published.assert_close(published.call(net, params, groups)[0].F, found["output"], jnp.float32)
    params["delta_embedder"]["out"]["bias"] += np.float32(0.1)
    assert np.abs(published.call(net, params, groups)[0].F - found["output"]).max() > 1e-3


def test_further_channels_of_the_final_layer_are_left_out():
    net = NETWORKS["lightningdit"](**TINY | {"learn_sigma": True})
    groups = published.queries(np.zeros((1, 4, 4, 4)), np.zeros(1), [0], jnp.float32)
    (out,), variables = jax.eval_shape(lambda key: net.init_with_output(key, groups), jax.random.key(0))
    assert nn.unbox(variables)["params"]["final"]["linear"]["kernel"].shape == (64, 2, 2, 8)
    assert out.F.shape == (1, 4, 4, 4)


def test_states_of_jit_after_a_block_are_those_of_the_image():
    """Also after the tokens of the class have joined, of which the blocks before know nothing."""
    net, params, groups, _ = load("net_jit")
    (out,) = published.call(net, params, groups, taps=(1, 2))
    assert [state.shape for state in out.taps] == [(3, 16, 64)] * 2
    params["class_tokens"]["tokens"] = params["class_tokens"]["tokens"] + np.float32(1)
    (other,) = published.call(net, params, groups, taps=(1, 2))
    np.testing.assert_array_equal(other.taps[0], out.taps[0])
    assert np.abs(other.taps[1] - out.taps[1]).max() > 1e-3


# Millions of parameters as their papers have them, and the side of an image, by network and its fields.
COUNTS = {
    "LightningDiT-XL/1": ("lightningdit", "XL", {"patch_size": 1, "channels": 32, "qk_norm": False}, 16, 675),
    "JiT-B/16": ("jit", "B", {"patch_size": 16, "channels": 3}, 256, 131),
    "JiT-L/16": ("jit", "L", {"patch_size": 16, "channels": 3}, 256, 459),
    "JiT-H/16": ("jit", "H", {"patch_size": 16, "channels": 3}, 256, 953),
    "JiT-B/32": ("jit", "B", {"patch_size": 32, "channels": 3}, 512, 133),
    "JiT-L/32": ("jit", "L", {"patch_size": 32, "channels": 3}, 512, 462),
    "JiT-H/32": ("jit", "H", {"patch_size": 32, "channels": 3}, 512, 956),
}


@pytest.mark.parametrize("published_as", COUNTS)
def test_published_sizes_have_the_published_number_of_parameters(published_as):
    kind, size, fields, side, millions = COUNTS[published_as]
    net = NETWORKS[kind](**NETWORKS[kind].SIZES[size] | fields)
    groups = published.queries(np.zeros((1, side, side, net.channels)), np.zeros(1), [0], jnp.float32)
    shapes = published_part(nn.unbox(jax.eval_shape(net.init, jax.random.key(0), groups))["params"])
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


WRONG = {
    "context_start is 2": {"context_start": 2},
    "context_start is 0": {"context_start": 0},
    "patch_bottleneck is 0": {"patch_bottleneck": 0},
    "slices is 2": {"slices": 2},
}


@pytest.mark.parametrize("message", WRONG)
def test_fields_that_cannot_be_are_refused_in_one_line(message):
    with pytest.raises(ValueError, match=rf"^model\.{message}; it must") as error:
        NETWORKS["jit"](**TINY | NETS["net_jit"][1] | WRONG[message])
    assert "\n" not in str(error.value)
