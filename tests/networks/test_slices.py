"""Slices of the depth (DiffusionBlocks): which layers run, learn and change, in training and in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK
from tim_jax.config.batches import batch_spec, made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.training import sharding
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.times import QUANTILES, Times
from tim_jax.types import Query

SLICED = TINY_NETWORK | {"model.depth": "4", "model.slices": "2", "objective.name": "flow_matching"}


@pytest.fixture(scope="module")
def run():
    return build(load_config("base", SLICED), jax.devices()[:1])


def filled(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), tree)


def queries(t, rows=4):
    x = jax.random.normal(jax.random.key(0), (rows, 8, 8, 1))
    times = jnp.full(rows, t)
    return (Query(x, times, times, {"label": jnp.arange(rows)}),)


@pytest.mark.slow
@pytest.mark.parametrize("which, t", [(0, 0.2), (1, 0.8)])
def test_the_layers_of_a_slice_run_alone_and_get_gradients_alone(run, which, t):
    params = filled(run.trainer.abstract.params["online"])

    def F(params, network=run.network):
        return network.apply({"params": params}, queries(t))[0].F

    own = jax.tree.map(lambda x: x[2 * which : 2 * which + 2], params["blocks"])
    short = run.network.clone(depth=2, slices=1, slice_ends=())
    np.testing.assert_allclose(F(params), F(params | {"blocks": own}, short), atol=1e-5)
    gradients = jax.grad(lambda params: (F(params) ** 2).sum())(params)["blocks"]
    for gradient in jax.tree.leaves(gradients):
        by_slice = np.asarray(gradient).reshape(2, -1)
        assert not by_slice[1 - which].any() and by_slice[which].any()


@pytest.mark.slow
def test_a_step_changes_its_own_slice_alone_also_in_the_optimizer(run):
    state = run.trainer.create()
    state = state.replace(params={"online": filled(state.params["online"])})
    before = [jax.device_get(state)]
    for _ in range(3):
        state, metrics, per_example = run.trainer.detailed(
            state, sharding.put_batch(run.mesh, made_up_batch(run.config, 16))
        )
        which = len(before) - 1 & 1
        t = np.asarray(per_example["t"])
        (end,) = run.network.slice_ends
        assert (t <= end + 1e-6).all() if which == 0 else (t >= end - 1e-6).all()
        before.append(jax.device_get(state))
        old, new = ((s.params["online"]["blocks"], s.opt_state) for s in before[-2:])
        changed = jax.tree.map(lambda a, b: (a != b).reshape(2, -1).any(1), old[0], new[0])
        for leaf in jax.tree.leaves(changed):
            assert not leaf[1 - which]
        assert any(leaf[which] for leaf in jax.tree.leaves(changed))

        def moments(path, a, b, other=1 - which):
            if any(getattr(part, "key", None) == "blocks" for part in path):
                np.testing.assert_array_equal(a.reshape(2, -1)[other], b.reshape(2, -1)[other])

        jax.tree_util.tree_map_with_path(moments, old[1], new[1])


@pytest.mark.parametrize("distribution", QUANTILES)
def test_intervals_have_equal_probability_and_times_fill_them(distribution):
    transport = TRANSPORTS["edm" if distribution == "log_uniform" else "ot_fm"]()
    times = Times(distribution, -0.4, 1.0, share_equal=0.5, share_min=0.0)
    drawn = np.asarray(jax.jit(lambda key: times.draw_t(transport, key, (40_000,)))(jax.random.key(0)))
    quantile = jax.jit(lambda share: times.quantile(transport, share))
    ends = [float(quantile(jnp.asarray(share))) for share in (1 / 3, 2 / 3)]
    np.testing.assert_allclose([(drawn < end).mean() for end in ends], [1 / 3, 2 / 3], atol=0.01)
    draw = jax.jit(lambda key, k: times.draw_slice(transport, key, 4000, 1, 0, (k, 3)))
    for k, (low, high) in enumerate(zip([transport.T_min, *ends], [*ends, transport.T_max])):
        t, r = draw(jax.random.key(k), k)
        assert (t >= low - 1e-5).all() and (t <= high + 1e-5).all() and (r <= t).all()
        inside = drawn[(drawn >= low) & (drawn <= high)]
        np.testing.assert_allclose(np.quantile(t, [0.2, 0.5, 0.8]), np.quantile(inside, [0.2, 0.5, 0.8]), rtol=0.15)


@pytest.mark.nightly
def test_activations_fall_with_the_number_of_slices():
    def temporaries(slices):
        more = {"model.depth": "8", "model.slices": str(slices), "model.remat": "none", "data.batch_size": "256"}
        run = build(load_config("base", SLICED | more), jax.devices()[:1])
        traced = run.trainer.trace(sharding.abstract_batch(run.mesh, batch_spec(run.config, 256, (8, 8))))
        return traced.lower().compile().memory_analysis().temp_size_in_bytes

    whole, half, quarter = (temporaries(slices) for slices in (1, 2, 4))
    assert half < 0.65 * whole and quarter < 0.45 * whole


@pytest.mark.nightly
def test_a_mesh_takes_the_steps_of_one_device():
    def steps(devices, **mesh):
        run = build(load_config("base", SLICED | {"model.depth": "2"} | mesh), jax.devices()[:devices])
        state, found = run.trainer.create(), []
        for _ in range(2):
            batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 16))
            state, metrics, _ = run.trainer.detailed(state, batch)
            found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
        return found

    np.testing.assert_allclose(steps(4, **{"mesh.data": "2", "mesh.fsdp": "2"}), steps(1), rtol=1e-5)
