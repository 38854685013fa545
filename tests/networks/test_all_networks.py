"""What every network must do, whatever its architecture: those of NETWORKS."""

import jax
import jax.numpy as jnp
import pytest

from tim_jax.networks import NETWORKS
from tim_jax.types import Query

every_network = pytest.mark.parametrize("name", NETWORKS)

# Parameters by network and name: (size, further fields, their number).
COUNTS = {
    "tim": {
        "B/4": ("B", {"patch_size": 4}, 128_828_224),
        "XL/2": ("XL", {}, 664_128_016),
        "XL text": ("XL", {"patch_size": 1, "channels": 32, "condition": "text"}, 864_978_080),
    },
}


def a_query(net, rows=1, h=8, w=8):
    """Zeros for a network."""
    x, t = jnp.zeros((rows, h, w, net.channels)), jnp.zeros((rows,))
    text = {"text": jnp.zeros((rows, 3, net.text_width)), "mask": jnp.ones((rows, 3), bool)}
    return Query(x, t, t, {"label": jnp.zeros((rows,), jnp.int32)} | text)


@pytest.mark.parametrize(("name", "published"), [(name, one) for name, counts in COUNTS.items() for one in counts])
def test_number_of_parameters_is_the_published_one(name, published):
    size, fields, count = COUNTS[name][published]
    net = NETWORKS[name](**NETWORKS[name].SIZES[size] | fields)
    shapes = jax.eval_shape(net.init, jax.random.key(0), (a_query(net),))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@every_network
def test_every_size_is_a_valid_network(name):
    for fields in NETWORKS[name].SIZES.values():
        assert NETWORKS[name](**fields).width == fields["width"]
