"""Products in int8: exact integer arithmetic, and where in a network they take place."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.networks.test_networks import CONDITIONS, make_net, make_params, make_query
from tim_jax.networks import int8

product = jax.jit(int8.product, static_argnums=2)


@pytest.mark.parametrize(
    "shape, kernel, n_in", [((2, 3, 8), (8, 5), 1), ((4, 2, 6), (2, 6, 3), 2), ((7, 16), (16, 2, 4), 1)]
)
def test_product_is_that_of_the_rounded_integers(shape, kernel, n_in):
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(kernel).astype(np.float32)
    rows = x.reshape(-1, np.prod(kernel[:n_in], dtype=int)).astype(np.float64)
    columns = W.reshape(rows.shape[1], -1).astype(np.float64)
    s_x, s_W = np.abs(rows).max(1, keepdims=True) / 127, np.abs(columns).max(0, keepdims=True) / 127
    integers = np.rint(rows / s_x).astype(np.int64) @ np.rint(columns / s_W).astype(np.int64)
    found = np.asarray(product(jnp.asarray(x), jnp.asarray(W), n_in))
    assert found.shape == shape[: len(shape) - n_in] + kernel[n_in:]
    flat = found.reshape(len(rows), -1)
    # A value that lies between two integers may round either way in float32.
    step = (s_x * s_W) * 127
    assert np.abs(flat - s_x * s_W * integers).max() < 1.01 * step.max()
    assert np.median(np.abs(flat - s_x * s_W * integers)) < 1e-5
    # Each factor is off by half of its scale at most.
    bound = 0.5 * (s_x * np.abs(columns).sum(0) + s_W * np.abs(rows).sum(1, keepdims=True) + len(columns) * s_x * s_W)
    assert (np.abs(flat - rows @ columns) <= bound).all()


def test_rows_and_channels_of_zeros_stay_zero():
    x, W = jnp.zeros((2, 4)).at[1].set(1.0), jnp.ones((4, 3)).at[:, 2].set(0.0)
    np.testing.assert_allclose(product(x, W, 1), [[0, 0, 0], [4, 4, 0]], rtol=1e-6)


def products(jaxpr, times=1):
    """Counter of the input types of the matrix products in a jaxpr, those of a scan as often as they take place."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found[str(equation.invars[0].aval.dtype)] += times
        for inner in jaxprs_in_params(equation.params):
            found += products(inner, times * equation.params.get("length", 1))
    return found


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_products_of_blocks_with_tokens_are_in_int8_and_no_others(condition):
    net = make_net(condition=condition)
    params, query = make_params(net), make_query(net)
    plain = lambda query: net.apply({"params": params}, (query,))[0].F  # noqa: E731
    quantised = int8.with_int8(plain)
    before, after = (products(jax.make_jaxpr(f)(query).jaxpr) for f in (plain, quantised))
    # q, k, v and the output of each attention, the projection of the interval, gate, up and down.
    assert after["int8"] == sum(count_blocks(params, net.depth).values())
    assert before == products(jax.make_jaxpr(plain)(query).jaxpr), "the change is over"
    assert before["int8"] == 0 and before["float32"] == after["int8"] + after["float32"]

    F, approximate = jax.jit(plain)(query), jax.jit(quantised)(query)
    assert 1e-4 < float(jnp.linalg.norm(approximate - F) / jnp.linalg.norm(F)) < 0.03


def test_a_network_without_such_products_is_refused():
    with pytest.raises(ValueError, match="sampling.int8 is True; it must be False for a network without"):
        int8.with_int8(lambda x: x + 1)(jnp.zeros(2))


def count_blocks(params, depth):
    """Counter of the kernels in blocks but for those of the modulation, by name."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params["blocks"])]
    kernels = [path for path in paths if path.endswith("['kernel']") and "modulation" not in path]
    return collections.Counter({path: depth for path in kernels})
