"""What every network must do, whatever its architecture: those of NETWORKS."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.test_networks import assert_close
from tests.networks.test_sequence import make_mesh, outputs
from tim_jax.networks import NETWORKS
from tim_jax.networks.single_time import SingleTime
from tim_jax.training.optimizer import STACKS
from tim_jax.types import Query, TangentQuery

TINY = {
    "channels": 3, "width": 32, "depth": 2, "heads": 4, "encoder_depth": 1, "z_dim": 5, "projector_width": 8,
    "num_classes": 10,
}  # fmt: skip
# Further fields of TINY networks.
OWN = {
    "tim": {"bottleneck": 8},
    "jit": {"patch_bottleneck": 8, "class_tokens": 4, "context_start": 1},
    "ddt": {"decoder_depth": 1},
    "ditdh": {"decoder_depth": 1, "decoder_width": 48, "decoder_heads": 6},
}  # further fields of TINY networks
NAMES = tuple({kind: name for name, kind in reversed(NETWORKS.items())}.values())  # one for each
every_network = pytest.mark.parametrize("name", NAMES)
# What networks share needs one of them where every test run has it.
one_quickly = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dit" else pytest.mark.slow) for name in NAMES]
)
of_one_time = pytest.mark.parametrize("name", [name for name in NAMES if issubclass(NETWORKS[name], SingleTime)])
with_places = pytest.mark.parametrize("name", [name for name in NAMES if hasattr(NETWORKS[name], "positions")])

# Parameters of TiM: (size, further fields, their number).
COUNTS = {
    "B/4": ("B", {"patch_size": 4}, 128_828_224),
    "XL/2": ("XL", {}, 664_128_016),
    "XL text": ("XL", {"patch_size": 1, "channels": 32, "condition": "text"}, 864_978_080),
}


def make(name, **fields):
    """A tiny network."""
    return NETWORKS[name](**TINY | OWN.get(name, {}) | fields)


def make_query(net, seed=0, rows=2, h=8, w=8, kind=Query):
    """Random examples for a network."""
    rng = np.random.default_rng(seed)
    x, times = rng.standard_normal((rows, h, w, net.channels)), np.sort(rng.uniform(size=(2, rows)), axis=0)
    r, t = (jnp.asarray(time, net.dtype) for time in times)
    return kind(jnp.asarray(x, net.dtype), t, r, {"label": jnp.asarray(rng.integers(0, 11, rows), jnp.int32)})


@functools.cache
def make_params(net):
    """Random everywhere: as initialised, the network's output is zero."""
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), (make_query(net),)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.15 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def count(net):
    """How many parameters it has."""
    text = {"text": jnp.zeros((1, 3, net.text_width)), "mask": jnp.ones((1, 3), bool)}
    zero = jnp.zeros((1,))
    query = Query(jnp.zeros((1, 8, 8, net.channels)), zero, zero, {"label": jnp.zeros((1,), jnp.int32)} | text)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), (query,))))


@functools.cache
def _call(net, options):
    return jax.jit(functools.partial(net.apply, **dict(options)))


def run(net, *groups, params=None, **options):
    return _call(net, tuple(options.items()))({"params": make_params(net) if params is None else params}, groups)


@pytest.mark.parametrize("published", COUNTS)
def test_number_of_parameters_of_tim(published):
    size, fields, number = COUNTS[published]
    assert count(NETWORKS["tim"](**NETWORKS["tim"].SIZES[size] | fields)) == number


@every_network
def test_every_size_is_a_valid_network(name):
    assert {"XS", "S"} <= NETWORKS[name].SIZES.keys()
    for fields in NETWORKS[name].SIZES.values():
        assert NETWORKS[name](**fields).width == fields["width"]


def test_the_optimizer_knows_the_stacks_of_every_network():
    assert {stack for kind in NETWORKS.values() for stack in kind.STACKS} <= set(STACKS)


@every_network
def test_two_groups_in_one_call_equal_two_calls_with_hidden_states_and_taps(name):
    net = make(name)
    a, b = make_query(net), make_query(net, 1, rows=3, h=4, w=4)
    options = {"hidden": True, "taps": (1, net.depth)}
    both = run(net, a, b, **options)
    assert_close(both, (*run(net, a, **options), *run(net, b, **options)))
    for q, out in zip((a, b), both):
        tokens = q.x_t.shape[1] * q.x_t.shape[2] // net.patch_size**2
        assert out.F.shape == q.x_t.shape and out.hidden.shape == (len(q.t), tokens, 5)
        assert [tap.shape[:2] for tap in out.taps] == [(len(q.t), tokens)] * 2
    later, other = a._replace(r=a.r / 2), a._replace(condition={"label": (a.condition["label"] + 1) % 11})
    for changed in (later, other, a._replace(t=a.t + 0.1), a._replace(x_t=a.x_t[:, ::-1])):
        assert jnp.abs(run(net, changed, b, **options)[0].F - both[0].F).max() > 1e-3


@one_quickly
def test_a_tangent_is_that_of_finite_differences(name, x64):
    """Also with attention of its own rules, in a group beside one without tangents."""
    net = make(name, dtype=jnp.float64, attention="blockwise", remat="dots")
    params, plain, query = make_params(net), make_query(net, 1, h=4, w=4), make_query(net, kind=TangentQuery)

    def F(e, kind=Query):
        moved = kind(query.x_t * (1 + e), query.t + e, query.r, query.condition)
        return run(net, plain, moved, params=params)[1].F

    slope = jax.jvp(lambda e: F(e, TangentQuery), (0.0,), (1.0,))[1]
    np.testing.assert_allclose(slope, (F(1e-5) - F(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6 * np.abs(slope).max())


@pytest.mark.parametrize("interval", ["modulation", pytest.param("tokens", marks=pytest.mark.slow)])
@of_one_time
def test_the_interval_changes_nothing_before_it_is_learned(name, interval):
    net = make(name, interval=interval)
    params, query = dict(make_params(net)), make_query(net)
    params["delta_embedder"] = jax.tree.map(jnp.zeros_like, params["delta_embedder"])
    at_t = run(net, query._replace(r=query.t), params=params)[0].F
    np.testing.assert_array_equal(run(net, query, params=params)[0].F, at_t)
    first = nn.unbox(jax.jit(net.init)(jax.random.key(0), (query,)))["params"]["delta_embedder"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(first["out"])) and first["in"]["kernel"].any()


@of_one_time
def test_the_last_blocks_alone_see_r_where_times_are_decoupled(name):
    net = make(name, decoupled_depth=make(name).blocks - 1)
    query = make_query(net)
    both, later = (run(net, q, taps=(1, 2))[0] for q in (query, query._replace(r=query.r / 2)))
    assert_close(both.taps[0], later.taps[0])
    assert jnp.abs(both.taps[1] - later.taps[1]).max() > 1e-3


@with_places
def test_rectangles_have_places_by_interpolation_or_rotation_alone(name):
    rectangle = make_query(make(name), h=4, w=8)
    with pytest.raises(ValueError, match=r"^model.positions is 'sincos'; it must be .* 2 × 4 patches") as error:
        run(make(name), rectangle)
    assert "\n" not in str(error.value)
    for positions in ("interpolated", "rope"):
        net = make(name, positions=positions)
        whole = run(net, rectangle)[0].F
        assert whole.shape == rectangle.x_t.shape
        assert (
            jnp.abs(run(net, rectangle._replace(x_t=rectangle.x_t[:, :, ::-1]))[0].F - whole[:, :, ::-1]).max() > 1e-3
        )


@every_network
def test_conditions_that_a_network_does_not_have_are_refused(name):
    if "text" not in NETWORKS[name].CONDITIONS:
        with pytest.raises(ValueError, match=r"^model.condition is 'text'; it must be one of class$"):
            make(name, condition="text")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2, "sequence": 2}, {"data": 2, "sequence": 4}], ids=str)
@every_network
def test_a_mesh_of_eight_changes_no_number(name, sizes):
    net = make(name)
    queries = make_query(net, rows=4), make_query(net, 1, h=4, w=4)
    assert_close(outputs(make_mesh(**sizes), net, queries), outputs(make_mesh(), net, queries))
