"""The sampler: published trajectories, exact grids, guidance intervals, stochastic marginals."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tim_jax.codecs.official import from_official
from tim_jax.networks import TiM
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampler import (
    STOCHASTIC,
    Sampling,
    evaluations,
    guided_steps,
    image_keys,
    make_plan,
    sample,
    start_noise,
    time_grid,
)
from tim_jax.transitions.transports import edm
from tim_jax.types import Output, Query

CASES = {name: make() for name, make in TRANSPORTS.items()} | {"edm_2": edm(2.0)}
every_transport = pytest.mark.parametrize("transport", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def published(golden):
    network = TiM(patch_size=2, channels=4, width=64, depth=3, heads=4, bottleneck=24, encoder_depth=2, z_dim=16,
                  projector_width=32, num_classes=10, rope_order="official")  # fmt: skip
    query = Query(jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)})
    template = nn.unbox(jax.eval_shape(lambda: network.init(jax.random.key(0), (query,))))["params"]
    params = from_official(load_file(pathlib.Path(__file__).parent / "golden" / "c2i_tiny.safetensors"), template)
    return lambda queries: network.apply({"params": params}, queries)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", ["ot_fm", "trigflow"])
def test_published_trajectories(name, guidance, published, golden):
    arrays = golden("sampler.npz")
    noise = jnp.asarray(arrays["z"].transpose(0, 2, 3, 1))
    condition = {"label": jnp.asarray(arrays["y"], jnp.int32)}
    null = {"label": jnp.full(4, 10)}
    sampling = Sampling(guidance, 0.1, 0.9, exclusive_ends=True)
    run = jax.jit(
        lambda plan: sample(published, plan, noise, condition, null, image_keys(0, jnp.arange(4)), guidance, True)
    )
    for steps in (1, 2, 4, 8):
        expected = arrays[f"{name}/steps{steps}/cfg{guidance}"].transpose(0, 1, 3, 4, 2)
        with jax.default_matmul_precision("highest"):
            trajectory = run(make_plan(TRANSPORTS[name](), steps, sampling))
        np.testing.assert_allclose(trajectory, expected, rtol=1e-5, atol=1e-5)


def gaussian_net(flow):
    """The exact map as a network, for a transport whose c_noise is the time itself."""

    def net(queries):
        return tuple(Output(flow.F(q.x_t, q.t, q.r)) for q in queries)

    return net


def unnoised(transport):
    return transport.__class__(**{**transport.__dict__, "c_noise": lambda t: t})


@every_transport
@pytest.mark.parametrize("steps", [1, 3, 16])
def test_the_exact_map_gives_the_same_images_at_every_step_count(transport, steps, x64):
    transport = unnoised(transport)
    flow = Gaussian(transport, 0.4, 0.6)
    keys = image_keys(0, jnp.arange(5))
    noise = start_noise(keys, (2, 2, 1)).astype(jnp.float64) * flow.marginal_std(jnp.asarray(transport.T_max))
    exact = flow.flow_map(noise, jnp.full(5, transport.T_max), jnp.full(5, transport.T_min))
    plan = make_plan(transport, steps, Sampling())
    images = jax.jit(lambda noise: sample(gaussian_net(flow), plan, noise, None, None, keys))(noise)
    np.testing.assert_allclose(images, exact, atol=1e-8)


@every_transport
@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_stochastic_sampling_keeps_the_marginal_of_a_gaussian(transport, rho):
    """At 512 steps within 2%; 'renoise' is exact, so its error is that of 40,000 draws."""
    plain = unnoised(transport)
    flow = Gaussian(plain, 0.0, 0.8)
    keys = image_keys(1, jnp.arange(400))
    noise = start_noise(keys, (10, 10, 1)) * flow.marginal_std(jnp.float32(plain.T_max))
    plan = make_plan(plain, 512, Sampling(stochasticity=rho))
    images = jax.jit(lambda n: sample(gaussian_net(flow), plan, n, None, None, keys))(noise)
    exact = flow.marginal_std(jnp.float32(plain.T_min))
    assert float(images.std() / exact) == pytest.approx(1, abs=0.02)
    assert float(jnp.abs(jnp.corrcoef(images.ravel(), noise.ravel())[0, 1])) < 0.9, "no fresh noise came in"


@pytest.mark.parametrize("name", ["ot_fm", "trigflow", "cosine", "vp"])
def test_the_published_stochastic_form_agrees_to_first_order(name):
    transport = unnoised(TRANSPORTS[name]())
    fine = [make_plan(transport, 20_000, Sampling(stochasticity=0.7, stochastic=form)) for form in STOCHASTIC]
    middle = slice(5_000, 15_000)
    np.testing.assert_allclose(fine[0].c[middle], fine[1].c[middle], rtol=2e-3)


@pytest.mark.parametrize("stochastic", STOCHASTIC)
@every_transport
def test_no_noise_enters_the_first_and_last_step(transport, stochastic):
    plan = make_plan(transport, 6, Sampling(stochasticity=1.0, stochastic=stochastic))
    assert plan.c[0] == 0 and plan.c[-1] == 0 and (plan.c[1:-1] > 0).all()
    assert all(np.isfinite(part).all() for part in plan)
    quiet = make_plan(transport, 6, Sampling())
    assert (quiet.c == 0).all()


@every_transport
def test_grid_and_guidance_interval(transport):
    grid = time_grid(transport, 10)
    assert grid.dtype == np.float64 and grid[0] == transport.T_max and grid[-1] == transport.T_min
    inclusive = Sampling(2.0, guidance_low=grid[7] / transport.T_max, guidance_high=grid[2] / transport.T_max)
    exclusive = Sampling(**{**inclusive.__dict__, "exclusive_ends": True})
    assert guided_steps(transport, grid[:-1], inclusive).tolist() == [2 <= i <= 7 for i in range(10)]
    assert guided_steps(transport, grid[:-1], exclusive).tolist() == [2 < i < 7 for i in range(10)]
    assert evaluations(transport, 10, inclusive) == 16 and evaluations(transport, 10, exclusive) == 14
    assert evaluations(transport, 10, Sampling(1.0)) == 10 and evaluations(transport, 10, Sampling(2.0)) == 20
    assert guided_steps(transport, grid[:-1], Sampling(2.0))[0], "the first step is guided"


def test_an_image_does_not_depend_on_its_batch():
    both, one = (
        start_noise(image_keys(3, jnp.arange(8)), (4, 4, 1)),
        start_noise(image_keys(3, jnp.array([5])), (4, 4, 1)),
    )
    np.testing.assert_array_equal(both[5], one[0])
    assert len(np.unique(np.asarray(both).round(6))) == both.size
    other = start_noise(image_keys(4, jnp.arange(8)), (4, 4, 1))
    assert jnp.abs(both - other).min() > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": -1.0},
        {"stochasticity": -0.1},
        {"stochastic": "milstein"},
        {"guidance_low": 0.5, "guidance_high": 0.4},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(settings))}"):
        Sampling(**settings).check()


def test_steps_below_one_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        make_plan(TRANSPORTS["ot_fm"](), 0, Sampling())
