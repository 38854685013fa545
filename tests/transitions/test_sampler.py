"""Samplers: published trajectories, orders of convergence, counts, stochastic marginals, the way up and back."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.solving import moments
from tim_jax.codecs.official import from_official
from tim_jax.networks import TiM
from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampling.jumps import STOCHASTIC
from tim_jax.transitions.sampling.noise import image_keys, slerp, start_noise
from tim_jax.transitions.sampling.planning import evaluations, guided_times, make_plan, padded, steps_for, time_grid
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.sampler import sample, sample_and_count
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.transports import edm
from tim_jax.types import Output, Query

CASES = {name: make() for name, make in TRANSPORTS.items()} | {"edm_2": edm(2.0)}
every_transport = pytest.mark.parametrize("transport", CASES.values(), ids=CASES)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
SHAPES = ("flow_map", "heun", "unipc_3", "er_sde_2", "a_flops", "sada")  # one for each shape of a plan
# Those that reverse exactly are in test_reversible.py: from one state, the last interval of the grid edm, as long for
# any number of steps, is Euler's both ways.
upwards = pytest.mark.parametrize("sampler", [n for n, s in SAMPLERS.items() if s.invertible and not s.reversible])
STOCHASTIC_SAMPLERS = ("er_sde_1", "er_sde_2", "er_sde_3", "sde", "sde_heun", "consistency")
MORE = {"sde_heun": -1, "pseudo_corrector": 1, "flowturbo": 1}  # evaluations of the last step
# Of solvers of the probability-flow ODE; see test_orders.py.
MORE_RUNS = ((1.0, "ot_fm"), (2.5, "trigflow"))  # published trajectories of the slow suite
ORDERS = {name: one.order for name, one in SAMPLERS.items() if one.order and name not in STOCHASTIC_SAMPLERS}


@pytest.fixture(scope="module")
def published(golden):
    network = TiM(patch_size=2, channels=4, width=64, depth=3, heads=4, bottleneck=24, encoder_depth=2, z_dim=16,
                  projector_width=32, num_classes=10, rope_order="official")  # fmt: skip
    query = Query(jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)})
    template = nn.unbox(jax.eval_shape(lambda: network.init(jax.random.key(0), (query,))))["params"]
    params = from_official(load_file(pathlib.Path(__file__).parents[1] / "golden" / "c2i_tiny.safetensors"), template)
    return lambda queries: network.apply({"params": params}, queries)


@pytest.mark.parametrize(
    "guidance, name",
    [(2.5, "ot_fm"), (1.0, "trigflow"), *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_RUNS)],
)
def test_published_trajectories(name, guidance, published, golden):
    arrays = golden("sampler.npz")
    noise = jnp.asarray(arrays["z"].transpose(0, 2, 3, 1))
    condition = {"label": jnp.asarray(arrays["y"], jnp.int32)}
    null = {"label": jnp.full(4, 10)}
    sampling = Sampling(guidance=guidance, guidance_low=0.1, guidance_high=0.9, exclusive_ends=True)
    run = jax.jit(
        lambda plan: sample(published, plan, noise, condition, null, image_keys(0, jnp.arange(4)), guidance, True)
    )
    for steps in (1, 2, 4, 8):
        expected = arrays[f"{name}/steps{steps}/cfg{guidance}"].transpose(0, 1, 3, 4, 2)
        with jax.default_matmul_precision("highest"):
            transport = TRANSPORTS[name]()
            trajectory = run(make_plan(transport, time_grid(transport, steps), sampling))
        np.testing.assert_allclose(trajectory, expected, rtol=1e-5, atol=1e-5)


def gaussian_net(flow):
    """The exact map as a network, for a transport whose c_noise is the time itself."""

    def net(queries):
        return tuple(Output(flow.F(q.x_t, q.t, q.r)) for q in queries)

    return net


def unnoised(transport):
    return dataclasses.replace(transport, c_noise=lambda t: t)


def plan_of(transport, steps, sampling):
    return make_plan(transport, time_grid(transport, steps, sampling), sampling)


@functools.cache
def solver(name):
    """(plan, x, count) → states at the end, for the exact map of N(0.4, 0.6²); a program for all samplers alike."""
    net = gaussian_net(Gaussian(unnoised(CASES[name]), 0.4, 0.6))
    return jax.jit(
        lambda plan, x, count: sample(net, plan, x, None, None, image_keys(0, jnp.arange(len(x))), count=count)
    )


def error(name, times, sampler):
    """Largest distance from the exact map's states at the end of times, for three states of ordinary size."""
    transport = unnoised(CASES[name])
    flow = Gaussian(transport, 0.4, 0.6)
    start = jnp.asarray(times[0])
    x = transport.alpha(start) * 0.4 + flow.marginal_std(start) * jnp.array([[-1.5], [0.3], [1.2]])
    plan = make_plan(transport, times, Sampling(sampler=sampler))
    found = solver(name)(padded(plan), x, len(plan.t))
    exact = flow.flow_map(x, jnp.full(3, times[0]), jnp.full(3, times[-1]))
    return float(jnp.abs(found - exact).max())


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("ot_fm", "vp", "edm_2") else pytest.mark.slow) for n in CASES]
)
def test_solvers_reach_the_exact_data_from_end_to_end(name, sampler, x64):
    """From T_max to T_min, where α or σ may be 0."""
    few, many = (error(name, time_grid(CASES[name], steps, Sampling(grid="edm")), sampler) for steps in (32, 128))
    if sampler == "leapfrog" and name == "ve":  # the grid's last interval, see above
        assert many < few / 2 and many < 4e-2
        return
    assert many < few / 3.5 and many < {1: 4e-2, 2: 2e-3}.get(ORDERS[sampler], 1e-3) * (
        3 if sampler == "a_flops" else 1  # single numbers that turn around on their way have no rate there
    )
    # Some uniform grids have hardly a time at low noise, and steps that grow there in ln λ, over which polynomials lead
    # astray that are not kept from it, as published.
    kept = not sampler.endswith("published")
    if "edm" not in name and name != "ve" and (kept or name not in ("vp", "ddpm")):
        assert error(name, time_grid(CASES[name], 128), sampler) < 3e-2
    if sampler == "dpm_solver_3m":
        assert error(name, time_grid(CASES[name], 32), sampler) < 1.01 * error(
            name, time_grid(CASES[name], 32), "euler"
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 3, 16])
def test_the_flow_map_gives_the_same_images_at_every_step_count(name, steps, x64):
    for grid in ("uniform", "edm"):
        assert error(name, time_grid(CASES[name], steps, Sampling(grid=grid)), "flow_map") < 1e-8


@every_transport
def test_consistency_sampling_keeps_the_marginal_and_asks_for_data_only(transport):
    plain = unnoised(transport)
    flow = Gaussian(plain, 0.0, 0.8)
    keys = image_keys(1, jnp.arange(400))
    noise = start_noise(keys, (10, 10, 1)) * flow.marginal_std(jnp.float32(plain.T_max))
    plan = plan_of(plain, 5, Sampling(sampler="consistency"))
    assert (plan.s == plain.T_min).all() and plan.c[0] == 0 and (plan.c[1:-1] > 0).all() and plan.c[-1] == 0
    images = jax.jit(lambda n: sample(gaussian_net(flow), plan, n, None, None, keys))(noise)
    assert float(images.std() / flow.marginal_std(jnp.float32(plain.T_min))) == pytest.approx(1, abs=0.02)


@upwards
@pytest.mark.parametrize("name", CASES)
def test_the_way_up_leads_to_noise_and_back(name, sampler, x64):
    """Up to the exact map's noise, and down again to the image: exactly, or ever nearer with more steps."""
    transport = unnoised(CASES[name])
    flow = Gaussian(transport, 0.4, 0.6)
    images = jnp.array([[-0.9], [0.5], [1.3]])
    exact = flow.flow_map(images, jnp.full(3, transport.T_min), jnp.full(3, transport.T_max))

    def missed(steps):
        times = time_grid(transport, steps, Sampling(grid="edm"))
        up, down = (make_plan(transport, way, Sampling(sampler=sampler)) for way in (times[::-1], times))
        noise = solver(name)(padded(up), images, len(up.t))
        back = solver(name)(padded(down), noise, len(down.t))
        return np.array([jnp.abs(noise - exact).max(), jnp.abs(back - images).max()])

    if sampler == "flow_map":
        assert (missed(5) < 1e-9).all()
    else:
        assert (missed(128) < missed(32) / (0.6 * 4 ** ORDERS[sampler])).all()


def test_samplers_that_only_go_down_refuse_the_way_up():
    transport = TRANSPORTS["ot_fm"]()
    times = time_grid(transport, 4)[::-1]
    for sampling in (Sampling(sampler="dpm_solver_2s"), Sampling(sampler="consistency"), Sampling(stochasticity=0.5)):
        with pytest.raises(ValueError, match="flow_map, euler, heun"):
            make_plan(transport, times, sampling)
    for wrong in ([1.0], [1.0, 0.5, 0.5], [0.5, 1.0, 0.2]):
        with pytest.raises(ValueError, match="times"):
            make_plan(transport, np.array(wrong), Sampling())


@every_sampler
@every_transport
@pytest.mark.parametrize("steps", [1, 5])
def test_plans_are_finite_and_counts_are_those_of_the_network(transport, sampler, steps):
    """Also with guidance in an interval, where an evaluation is of two groups of rows."""
    for grid in ("uniform", "edm"):
        sampling = Sampling(guidance=2.0, guidance_low=0.3, guidance_high=0.7, sampler=sampler, grid=grid)
        plan = plan_of(transport, steps, sampling)
        assert all(np.isfinite(part).all() for part in jax.tree.leaves(plan))
        assert len(plan.t) == steps * SAMPLERS[sampler].evaluations + MORE.get(sampler, 0)
        counted = []

        def net(queries, counted=counted):
            counted.append(len(queries))
            return tuple(Output(0 * q.x_t) for q in queries)

        if transport.name == "ot_fm":
            with jax.disable_jit():
                _, made = sample_and_count(
                    net, plan, jnp.zeros((1, 2, 2, 1)), None, None, image_keys(0, jnp.arange(1)), 2.0
                )
            most = evaluations(transport, steps, sampling)
            assert made.tolist() == [sum(counted)]
            assert most == sum(counted) or SAMPLERS[sampler].skips and sum(counted) < most


@every_sampler
def test_steps_for_equal_evaluations(sampler):
    transport = TRANSPORTS["ot_fm"]()
    plain, each = Sampling(sampler=sampler), SAMPLERS[sampler].evaluations
    more = MORE.get(sampler, 0)
    budgets = [most for most in (3, 4, 128) if most >= each + more]
    assert [steps_for(transport, most, plain) for most in budgets] == [(most - more) // each for most in budgets]
    guided = dataclasses.replace(plain, guidance=2.0, guidance_high=0.5)
    for most in (max(6, evaluations(transport, 1, guided)), 9, 16):
        steps = steps_for(transport, most, guided)
        assert evaluations(transport, steps, guided) <= most < evaluations(transport, steps + 1, guided)
    with pytest.raises(ValueError, match=f"evaluations is 1; one step of {sampler} takes {2 * (each + more)}"):
        steps_for(transport, 1, dataclasses.replace(plain, guidance=2.0))


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=[] if name in SHAPES else pytest.mark.slow) for name in SAMPLERS]
)
def test_what_a_padded_plan_adds_does_not_take_place(sampler):
    transport = unnoised(TRANSPORTS["vp"]())
    net, keys = gaussian_net(Gaussian(transport, 0.4, 0.6)), image_keys(2, jnp.arange(3))
    plan, noise = plan_of(transport, 3, Sampling(sampler=sampler)), start_noise(keys, (2, 2, 1))
    whole = jax.jit(lambda plan: sample(net, plan, noise, None, None, keys))(plan)
    of_count = jax.jit(lambda plan, count: sample(net, plan, noise, None, None, keys, count=count))
    np.testing.assert_allclose(of_count(padded(plan), len(plan.t)), whole, atol=1e-6)
    path = jax.jit(lambda plan: sample(net, plan, noise, None, None, keys, trajectory=True))(plan)
    assert path.shape == (len(plan.t) + 1, *noise.shape)
    np.testing.assert_array_equal(path[0], noise)
    np.testing.assert_allclose(path[-1], whole, atol=1e-6)
    alone = jax.jit(lambda plan: sample(net, plan, noise[1:2], None, None, keys[1:2]))(plan)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-6, err_msg="an image depends on its batch")


@every_transport
@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_stochastic_sampling_keeps_the_marginal_of_a_gaussian(transport, rho):
    """By its exact moments: 'renoise' at any number of steps, and the published form ever better with more of them."""
    plain, host = unnoised(transport), host_transport(unnoised(transport))

    def error(form, steps):
        plan = plan_of(plain, steps, Sampling(stochasticity=rho, stochastic=form))
        mean, std = moments(plan, host, plain.T_max, 0.3, 0.8)
        end = host.alpha(plain.T_min), host.sigma(plain.T_min)
        return max(abs(mean / (0.3 * end[0]) - 1), abs(std / np.hypot(0.8 * end[0], end[1]) - 1))

    assert max(error("renoise", 5), error("renoise", 64)) < 1e-9
    if plain.name != "edm":  # whose uniform grid has hardly a time at low noise
        assert error("euler", 512) < error("euler", 64) / 4


def test_fresh_noise_is_drawn_and_changes_the_image():
    plain = unnoised(TRANSPORTS["ot_fm"]())
    flow = Gaussian(plain, 0.0, 0.8)
    keys = image_keys(1, jnp.arange(400))
    noise = start_noise(keys, (10, 10, 1)) * flow.marginal_std(jnp.float32(plain.T_max))
    exact = flow.marginal_std(jnp.float32(plain.T_min))
    plan = plan_of(plain, 64, Sampling(stochasticity=1.0))
    images = jax.jit(lambda plan: sample(gaussian_net(flow), plan, noise, None, None, keys))(plan)
    assert float(images.std() / exact) == pytest.approx(1, abs=0.02)
    assert float(jnp.abs(jnp.corrcoef(images.ravel(), noise.ravel())[0, 1])) < 0.9, "no fresh noise came in"


@pytest.mark.parametrize("name", ["ot_fm", "trigflow", "cosine", "vp"])
def test_the_published_stochastic_form_agrees_to_first_order(name):
    transport = unnoised(TRANSPORTS[name]())
    fine = [plan_of(transport, 20_000, Sampling(stochasticity=0.7, stochastic=form)) for form in STOCHASTIC]
    middle = slice(5_000, 15_000)
    np.testing.assert_allclose(fine[0].c[middle], fine[1].c[middle], rtol=2e-3)


@pytest.mark.parametrize("stochastic", STOCHASTIC)
@every_transport
def test_no_noise_enters_the_first_and_last_step(transport, stochastic):
    plan = plan_of(transport, 6, Sampling(stochasticity=1.0, stochastic=stochastic))
    assert (plan.c[[0, 1, -1]] == 0).all() and (plan.c[2:-1] > 0).all()
    assert all(np.isfinite(part).all() for part in plan.arrays().values())
    quiet = plan_of(transport, 6, Sampling())
    assert (quiet.c == 0).all()


@every_transport
def test_grid_and_guidance_interval(transport):
    grid = time_grid(transport, 10)
    assert grid.dtype == np.float64 and grid[0] == transport.T_max and grid[-1] == transport.T_min
    inclusive = Sampling(guidance=2.0, guidance_low=grid[7] / transport.T_max, guidance_high=grid[2] / transport.T_max)
    exclusive = Sampling(**{**inclusive.__dict__, "exclusive_ends": True})
    assert guided_times(transport, grid[:-1], inclusive).tolist() == [2 <= i <= 7 for i in range(10)]
    assert guided_times(transport, grid[:-1], exclusive).tolist() == [2 < i < 7 for i in range(10)]
    assert evaluations(transport, 10, inclusive) == 16 and evaluations(transport, 10, exclusive) == 14
    assert (
        evaluations(transport, 10, Sampling(guidance=1.0)) == 10
        and evaluations(transport, 10, Sampling(guidance=2.0)) == 20
    )
    assert guided_times(transport, grid[:-1], Sampling(guidance=2.0))[0], "the first step is guided"


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
        {"sampler": "dpm"},
        {"grid": "cosine"},
        {"shift": 0.0},
        {"stochasticity": 0.5, "sampler": "heun"},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(settings))}"):
        Sampling(**settings).check()


def test_the_way_between_two_noises_keeps_their_length():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 8, 8, 3))
    u = np.linspace(0, 1, 5)
    way = slerp(x, y, u)
    np.testing.assert_allclose(way[[0, -1]], [x, y], atol=1e-12)
    lengths = np.linalg.norm(way.reshape(5, -1), axis=1)
    np.testing.assert_allclose(lengths, (1 - u) * lengths[0] + u * lengths[-1], rtol=1e-12)
    steps = np.linalg.norm(np.diff((way / lengths[:, None, None, None]).reshape(5, -1), axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9, err_msg="equal angles")
    np.testing.assert_allclose(slerp(x, x, u), np.stack([x] * 5))
    assert np.isfinite(slerp(x, -x, u)).all()
