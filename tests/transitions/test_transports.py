"""Every transport: exact jumps, inverse ratio, published numbers, the identity behind the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.derivative import central_difference, jvp
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import (
    coefficient_A,
    coefficient_B,
    data_and_noise,
    interpolate,
    jump,
    prediction_target,
    velocity,
)
from tim_jax.transitions.target import interval_factor, transition_target
from tim_jax.transitions.transports import edm, with_noise_std
from tim_jax.types import Output

CASES = {name: make() for name, make in TRANSPORTS.items()}
CASES |= {f"edm_{sigma_d}": edm(sigma_d) for sigma_d in (0.05, 1.0, 3.0)}
CASES |= {f"{name}_noise_2": with_noise_std(TRANSPORTS[name](), 2.0) for name in ("ot_fm", "ddpm", "edm")}
every_transport = pytest.mark.parametrize("transport", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def times(transport, fractions):
    return jnp.asarray(transport.T_min + np.asarray(fractions) * (transport.T_max - transport.T_min), jnp.float64)


def random_fractions(rng, rows):
    """Half uniform, half crowded towards either end, and the ends themselves."""
    u = rng.uniform(size=rows)
    tiny = 10.0 ** rng.uniform(-12, 0, rows)
    fractions = np.select([rng.uniform(size=rows) < 0.5, u < 0.5], [u, tiny], 1 - tiny)
    fractions[: rows // 20], fractions[-rows // 20 :] = 0.0, 1.0
    return rng.permutation(fractions)


@every_transport
@pytest.mark.parametrize("seed", range(3))
def test_jump_with_the_truth_is_exact_in_both_directions(transport, seed):
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, 5000, 3))
    t, r = times(transport, random_fractions(rng, 5000)), times(transport, random_fractions(rng, 5000))
    x_t, F = interpolate(transport, x, noise, t), prediction_target(transport, x, noise, t)
    error = jnp.abs(jump(transport, x_t, F, t, r) - interpolate(transport, x, noise, r))
    # Rounding scales with the terms that are added: from t = T_max of VP, A is 152.
    A, B = (coefficient(transport, t, r)[:, None] for coefficient in (coefficient_A, coefficient_B))
    assert (error <= 1e-12 * (1 + jnp.abs(A * x_t) + jnp.abs(B * F))).all()


@every_transport
def test_data_and_noise_come_back(transport):
    x, noise = np.random.default_rng(0).standard_normal((2, 9, 3))
    t = times(transport, np.linspace(0, 1, 9))
    x_hat, noise_hat = data_and_noise(
        transport, interpolate(transport, x, noise, t), prediction_target(transport, x, noise, t), t
    )
    scale = 1 + transport.T_max
    np.testing.assert_allclose(x_hat, x, atol=1e-11 * scale)
    np.testing.assert_allclose(noise_hat, noise, atol=1e-11 * scale)


@every_transport
def test_time_of_ratio_inverts_the_ratio_which_grows(transport):
    t = times(transport, np.linspace(0, 1, 101))
    ratio = transport.ratio(t)
    assert (jnp.diff(ratio) > 0).all() and ratio[0] >= 0
    np.testing.assert_allclose(transport.time_of_ratio(ratio), t, rtol=1e-9, atol=1e-12)


@every_transport
def test_time_of_level_inverts_the_level_and_stays_in_the_domain(transport):
    t = times(transport, np.linspace(0, 1, 101))
    np.testing.assert_allclose(transport.time_of_level(transport.level(t)), t, rtol=1e-7, atol=1e-9)
    ends = transport.time_of_level(jnp.array([-0.5, 0.0, 1.0, 1.5], jnp.float32))
    np.testing.assert_allclose(ends, np.repeat([transport.T_min, transport.T_max], 2), rtol=1e-6)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_more_noise_is_less_data(name):
    """x_t of x with noise of k times the size is k times that of x/k, and F with it."""
    plain, x, noise = TRANSPORTS[name](), *np.random.default_rng(0).standard_normal((2, 9, 3))
    t, scaled = times(plain, np.linspace(0, 1, 9)), with_noise_std(plain, 2.0)
    for of in (interpolate, prediction_target, velocity):
        np.testing.assert_allclose(of(scaled, x, noise, t), 2 * of(plain, x / 2, noise, t), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(scaled.ratio(t), 2 * plain.ratio(t), rtol=1e-12)
    assert scaled.noise_std == 2 and scaled.c_noise is plain.c_noise


CLOSED_FACTORS = {
    "ot_fm": lambda t, r: t - r,
    "ve": lambda t, r: t - r,
    "trigflow": lambda t, r: jnp.tan(t - r),
    "cosine": lambda t, r: (
        (2 / np.pi)
        * jnp.sin(np.pi / 2 * (t - r))
        * jnp.sin(np.pi / 2 * t + np.pi / 4)
        / jnp.sin(np.pi / 2 * r + np.pi / 4)
    ),
}


@pytest.mark.parametrize("name", CLOSED_FACTORS)
def test_interval_factor_equals_its_closed_form(name):
    transport = CASES[name]
    t, r = times(transport, np.random.default_rng(0).uniform(0.02, 0.98, (2, 50)))
    np.testing.assert_allclose(interval_factor(transport, t, r), CLOSED_FACTORS[name](t, r), rtol=1e-10)


@pytest.mark.parametrize("sigma_d", [0.1, 0.5, 1.0, 4.0])
def test_edm_closed_forms_hold_for_every_sigma_d(sigma_d):
    transport = edm(sigma_d)
    t, r = times(transport, np.random.default_rng(0).uniform(0, 1, (2, 50)) ** 3)
    s_t, s_r = jnp.sqrt(t**2 + sigma_d**2), jnp.sqrt(r**2 + sigma_d**2)
    np.testing.assert_allclose(coefficient_A(transport, t, r), (sigma_d**2 + t * r) / (s_t * s_r), rtol=1e-12)
    np.testing.assert_allclose(coefficient_B(transport, t, r), sigma_d * (t - r) / (s_t * s_r), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        interval_factor(transport, t, r), (t - r) * s_t**2 / (sigma_d**2 + t * r), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ["ot_fm", "trigflow", "edm_sigma1", "vp", "ve"])
def test_published_numbers(name, golden):
    transport = edm(1.0) if name.startswith("edm") else CASES[name]
    arrays = {
        key: golden("transports.npz")[f"{name}/{key}"]
        for key in ("t", "r", "x", "z", "x_t", "v_t", "dF_dt", "F_target", "F", "x_r", "c_noise")
    }
    t, r = arrays["t"].ravel(), arrays["r"].ravel()
    x, z, tolerance = arrays["x"], arrays["z"], dict(rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(interpolate(transport, x, z, t), arrays["x_t"], **tolerance)
    np.testing.assert_allclose(velocity(transport, x, z, jnp.asarray(t)), arrays["v_t"], **tolerance)
    np.testing.assert_allclose(transport.c_noise(t), arrays["c_noise"].ravel(), **tolerance)
    target = transition_target(transport, x, z, jnp.asarray(t), jnp.asarray(r), arrays["dF_dt"])
    np.testing.assert_allclose(target, arrays["F_target"], **tolerance)
    np.testing.assert_allclose(jump(transport, arrays["x_t"], arrays["F"], t, r), arrays["x_r"], **tolerance)


def test_ddpm_has_the_coefficients_of_the_discrete_process_at_its_times():
    """And `vp`, its limit in continuous time, misses them by what the docstring says."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    discrete, limit, steps = CASES["ddpm"], CASES["vp"], np.arange(1000.0)
    t = discrete.time_of_c_noise(steps)
    np.testing.assert_allclose(discrete.c_noise(t), steps, atol=1e-10)
    np.testing.assert_allclose(discrete.alpha(t), np.sqrt(kept), rtol=1e-8)
    np.testing.assert_allclose(discrete.sigma(t), np.sqrt(1 - kept), rtol=1e-8)
    missed = np.abs(limit.alpha(limit.time_of_c_noise(steps)) - np.sqrt(kept))
    assert 1e-3 < missed.max() < 2e-3 and limit.sigma(jnp.zeros(())) < 1e-12


def gaussian_case(transport, rows=64):
    """A Gaussian, random states and times, and posterior means in place of (x, ε)."""
    flow = Gaussian(transport, mean=0.3, std=0.7)
    rng = np.random.default_rng(1)
    high, low = np.sort(rng.uniform(0.02, 0.98, (2, rows)), axis=0)[::-1]
    t, r = times(transport, high), times(transport, low * 0.9)
    x_t = interpolate(transport, *rng.standard_normal((2, rows, 4)), t)
    x, noise = flow.posterior_means(x_t, t)
    return flow, x, noise, t, r, x_t


@every_transport
def test_gaussian_flow_map_comes_back_from_its_target(transport):
    flow, x, noise, t, r, x_t = gaussian_case(transport)
    exact = flow.F(x_t, t, r)
    v_t = velocity(transport, x, noise, t)
    _, dF_dt = jax.jvp(lambda x_t, t: flow.F(x_t, t, r), (x_t, t), (v_t, jnp.ones_like(t)))
    target = transition_target(transport, x, noise, t, r, dF_dt)
    np.testing.assert_allclose(target, exact, rtol=1e-10, atol=1e-10)
    # At r = t the target is the posterior mean whatever the derivative.
    np.testing.assert_allclose(transition_target(transport, x, noise, t, t, dF_dt), flow.F(x_t, t, t), atol=1e-12)


@every_transport
def test_gaussian_target_by_finite_difference_errs_by_epsilon_squared(transport):
    flow, x, noise, t, r, x_t = gaussian_case(transport)
    identity = transport.__class__(**{**transport.__dict__, "c_noise": lambda t: t})

    def net(queries):
        return tuple(Output(flow.F(q.x_t, q.t, q.r)) for q in queries)

    exact = flow.F(x_t, t, r)

    def error(epsilon):
        dF_dt = central_difference(net, identity, x, noise, t, r, None, epsilon=epsilon)
        return jnp.abs(transition_target(transport, x, noise, t, r, dF_dt) - exact).max()

    inside = float(jnp.minimum(t - transport.T_min, transport.T_max - t).min())
    epsilon = 0.02 * inside
    coarse, fine = error(epsilon), error(epsilon / 4)
    assert coarse / fine == pytest.approx(16, rel=0.3) or coarse < 1e-9
    # The exact derivative along the same call gives the target without that error.
    _, output, dF_dt = jvp(net, identity, x, noise, t, r, None)
    np.testing.assert_allclose(output.F, exact, atol=1e-12)
    assert jnp.abs(transition_target(transport, x, noise, t, r, dF_dt) - exact).max() < 1e-9


@every_transport
def test_finite_difference_never_leaves_the_time_domain(transport):
    seen = []

    def net(queries):
        seen.extend(q.t for q in queries)
        return tuple(Output(q.x_t) for q in queries)

    plain = transport.__class__(**{**transport.__dict__, "c_noise": lambda t: t})
    t = times(transport, np.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0]))
    zeros = jnp.zeros((5, 2))
    derivative = central_difference(net, plain, zeros, zeros + 1, t, 0 * t + transport.T_min, None)
    assert jnp.isfinite(derivative).all()
    for s in seen:
        assert (s >= transport.T_min).all() and (s <= transport.T_max).all()


@every_transport
def test_gaussian_flow_map_composes_and_transports_marginals(transport):
    flow = Gaussian(transport, mean=-0.2, std=1.4)
    t, s, r = times(transport, np.array([[0.9], [0.4], [0.1]]))
    x_t = np.random.default_rng(0).standard_normal((1, 7))
    direct = flow.flow_map(x_t, t, r)
    np.testing.assert_allclose(flow.flow_map(flow.flow_map(x_t, t, s), s, r), direct, atol=1e-12)
    np.testing.assert_allclose(jump(transport, x_t, flow.F(x_t, t, r), t, r), direct, atol=1e-10)
    # Its generator is the conditional mean of the velocity.
    _, generator = jax.jvp(lambda r: flow.flow_map(x_t, t, r), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(generator, velocity(transport, *flow.posterior_means(x_t, t), t), atol=1e-9)
