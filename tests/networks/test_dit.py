"""DiT, SiT and REPA's SiT: the published networks' own numbers, and what they have beside these."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import published_networks as published
from tests.networks.test_all_networks import count
from tim_jax.networks import NETWORKS

TINY = {"width": 64, "depth": 2, "heads": 4, "num_classes": 10, "encoder_depth": 1}
# By file: the name of the network, and its fields.
NETS = {
    "net_sit": ("sit", {"learn_sigma": True}),
    "net_dit": ("dit", {"learn_sigma": True}),
    "net_repa_sit": ("sit", {"z_dim": 24, "projector_width": 32}),
}
MODULES = {
    "patch": "x_embedder.proj", "t_embedder/in": "t_embedder.mlp.0", "t_embedder/out": "t_embedder.mlp.2",
    "label_embedder": "y_embedder", "blocks/modulation": "blocks.*.adaLN_modulation.1",
    "blocks/attn/qkv": "blocks.*.attn.qkv", "blocks/attn/out": "blocks.*.attn.proj",
    "blocks/mlp/in": "blocks.*.mlp.fc1", "blocks/mlp/out": "blocks.*.mlp.fc2",
    "final/modulation": "final_layer.adaLN_modulation.1",
    "final/linear": "final_layer.linear", "projector/in": "projectors.0.0", "projector/mid": "projectors.0.2",
    "projector/out": "projectors.0.4",
}  # fmt: skip


def load(name, dtype, **fields):
    """(network, parameters, its queries, the published answers)."""
    kind, own = NETS[name]
    net, found = NETWORKS[kind](**TINY | own | fields, dtype=dtype), published.answers(name)
    groups = published.queries(found["x"], found["t"], found["labels"], dtype)
    return net, published.parameters(net, groups, name, MODULES), groups, found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", NETS)
def test_a_published_network_gives_its_own_numbers(name, dtype, x64):
    net, params, groups, found = load(name, dtype)
    hidden = name == "net_repa_sit"
    (out,), seen = published.call(net, params, groups, hidden=hidden, capture_intermediates=of_final)
    published.assert_close(out.F, found["output"][..., :4], dtype)
    if hidden:
        published.assert_close(out.hidden, found["projection"], dtype)
    if found["output"].shape[-1] == 8:  # the variances, too, which are left out
        (patches,) = seen["intermediates"]["final"]["__call__"]
        B, h, w, C = found["output"].shape
        cut = found["output"].reshape(B, h // 2, 2, w // 2, 2, C).swapaxes(2, 3).reshape(patches.shape)
        published.assert_close(patches, cut, dtype)


def of_final(module, method):
    return module.name == "final" and method == "__call__"


def test_clock_and_sign_are_those_of_published_weights(x64):
    """A velocity data − noise of a time from noise to data: F at t is minus the output at 1 − t."""
    net, params, groups, found = load("net_sit", jnp.float64, clock="1-t", negated=True)
    groups = tuple(q._replace(t=1 - q.t, r=1 - q.t) for q in groups)
    published.assert_close(published.call(net, params, groups)[0].F, -found["output"], jnp.float64)


def test_the_time_r_changes_nothing_at_first(x64):
    """As does interpolation on the squares that the places are of."""
    net, params, groups, found = load("net_sit", jnp.float64, positions="interpolated", positions_side=4)
    groups = tuple(q._replace(r=q.t / 3) for q in groups)
    published.assert_close(published.call(net, params, groups)[0].F, found["output"], jnp.float64)
    params["delta_embedder"]["out"]["bias"] += 0.1
    assert np.abs(published.call(net, params, groups)[0].F - found["output"]).max() > 1e-3


def test_decoupled_times_leave_a_published_network_as_it_is(x64):
    net, params, groups, found = load("net_sit", jnp.float64, decoupled_depth=1)
    assert "delta_embedder" not in params
    published.assert_close(published.call(net, params, groups)[0].F, found["output"], jnp.float64)


# Millions of parameters by size (DiT, arXiv 2212.09748, table 1; patches of 2), which count the places of 16 × 16
# patches, and the variances' channels.
MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}


@pytest.mark.parametrize("size", MILLIONS)
def test_sizes_are_the_published_ones(size):
    fields = NETWORKS["dit"].SIZES[size]
    found = count(NETWORKS["dit"](**fields, learn_sigma=True, decoupled_depth=1)) + 16 * 16 * fields["width"]
    assert abs(found / 1e6 - MILLIONS[size]) < 0.6 and (size != "XL" or found == 675_129_632)
