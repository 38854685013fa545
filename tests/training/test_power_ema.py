"""Power-function EMAs against closed forms, numerical integrals and averages that are summed up directly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from tim_jax.training import power_ema
from tim_jax.training.power_ema import PowerFunction, Profile
from tim_jax.training.state import update_emas

LENGTHS = (0.05, 0.1)
STEPS, EVERY = 2000, 40
STORED = [Profile(step, sigma_rel) for step in range(EVERY, STEPS + 1, EVERY) for sigma_rel in LENGTHS]


def averaged(values, sigma_rel):
    """The average at every step of values (T, …) that hold from one step to the next, in float64, summed up directly.

    ∫ over (τ − 1, τ] of the density (γ + 1) s^γ / t^{γ+1} is the share of step τ.
    """
    power = power_ema.gamma_of(sigma_rel) + 1
    ends = np.arange(len(values) + 1.0) ** power
    sums = np.cumsum(np.diff(ends).reshape(-1, *[1] * (values.ndim - 1)) * values, axis=0)
    return sums / ends[1:].reshape(-1, *[1] * (values.ndim - 1))


@pytest.mark.parametrize("gamma", [0.17, 1.0, 6.94, 16.97, 96.99])
def test_sigma_rel_is_the_standard_deviation_of_the_density(gamma):
    mean, square = (integrate.quad(lambda x: x**k * (gamma + 1) * x**gamma, 0, 1, epsabs=1e-13)[0] for k in (1, 2))
    assert power_ema.sigma_rel_of(gamma) == pytest.approx(np.sqrt(square - mean**2), rel=1e-7)
    assert power_ema.gamma_of(power_ema.sigma_rel_of(gamma)) == pytest.approx(gamma, rel=1e-9)


def test_the_published_exponents():
    """The numbers of section 3.1: σ_rel 0.05 and 0.10 are γ = 16.97 and 6.94."""
    assert [power_ema.gamma_of(length) for length in LENGTHS] == pytest.approx([16.97, 6.94], abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [*LENGTHS, 0.28])
def test_the_recurrence_is_the_average(sigma_rel):
    """In float32 over thousands of steps, from the first one on, with the warm-up of other EMAs and without it."""
    walk = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 3)), axis=0)
    decays = {"power": PowerFunction(sigma_rel)}

    def step(emas, inputs):
        emas = update_emas(emas, inputs[1], decays, inputs[0])
        return emas, emas["power"]

    _, found = jax.lax.scan(step, {"power": jnp.full(3, 100.0)}, (jnp.arange(STEPS), jnp.asarray(walk, jnp.float32)))
    np.testing.assert_allclose(found, averaged(walk, sigma_rel), atol=2e-5 * np.abs(walk).max())


def test_a_warm_up_that_never_ends_is_nearly_a_power_function():
    """(1 + n)/(10 + n) is (1 − 1/t)⁹ but for terms in 1/t², and γ = 8 is σ_rel = 0.0905."""
    assert power_ema.sigma_rel_of(8) == pytest.approx(0.0905, abs=5e-5)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 3)), axis=0)

    def step(ema, inputs):
        return update_emas({"slow": ema}, inputs[1], {"slow": 0.99999}, inputs[0])["slow"], None

    found, _ = jax.lax.scan(step, jnp.zeros(3), (jnp.arange(STEPS), jnp.asarray(walk, jnp.float32)))
    expected = averaged(walk, power_ema.sigma_rel_of(8))[-1]
    apart = averaged(walk, 0.1)[-1] - expected
    assert np.abs(found - expected).max() < 0.1 * np.abs(apart).max()


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.13, 0.2, 0.25])
@pytest.mark.parametrize("power", [0, 1, 2, 5])
def test_polynomials_are_synthesised(power, sigma_rel):
    """θ(t) = t^k averages to (γ + 1)/(γ + 1 + k) t^k, for stored EMAs and for the wanted one.

    What they differ by is at most the stated error times the norms of profile and polynomial (Cauchy and Schwarz).
    """

    def average(profile):
        gamma = power_ema.gamma_of(profile.sigma_rel)
        return (gamma + 1) / (gamma + 1 + power) * (profile.step / STEPS) ** power

    wanted = Profile(STEPS, sigma_rel)
    coefficients, error = power_ema.synthesis(STORED, wanted)
    gamma = power_ema.gamma_of(sigma_rel)
    bound = error * (gamma + 1) / np.sqrt(2 * gamma + 1) / np.sqrt(2 * power + 1)
    found = coefficients @ [average(profile) for profile in STORED]
    assert abs(found - average(wanted)) < bound + 1e-6 and bound < 0.03
    assert found == pytest.approx(average(wanted), rel=3e-3)


@pytest.mark.parametrize("sigma_rel, tolerance", [(0.04, 0.01), (0.07, 0.002), (0.13, 0.002), (0.2, 0.005)])
def test_random_walks_are_synthesised(sigma_rel, tolerance):
    """Within a small part of how far apart averages of different lengths are."""
    walks = np.cumsum(np.random.default_rng(1).normal(size=(STEPS, 50)), axis=0)
    averages = {length: averaged(walks, length) for length in (*LENGTHS, sigma_rel)}
    coefficients, _ = power_ema.synthesis(STORED, Profile(STEPS, sigma_rel))
    found = coefficients @ np.array([averages[profile.sigma_rel][profile.step - 1] for profile in STORED])
    scale = np.std(averages[0.05][-1] - averages[0.1][-1])
    assert np.std(found - averages[sigma_rel][-1]) < tolerance * scale


@pytest.mark.parametrize("sigma_rel", [0.02, 0.13, 0.28])
def test_coefficients_are_those_of_least_squares(sigma_rel):
    """Of densities on a fine grid, by another solver; the error that is stated is what is left there."""
    stored = [Profile(step, length) for step in (250, 500, 750, 1000) for length in LENGTHS]
    middles = (np.arange(200_000) + 0.5) / 200

    def density(profile):
        gamma = power_ema.gamma_of(profile.sigma_rel)
        inside = middles <= profile.step
        return inside * (gamma + 1) / profile.step * np.minimum(middles / profile.step, 1) ** gamma

    basis, wanted = np.stack([density(p) for p in stored], axis=1), density(Profile(1000, sigma_rel))
    # The last coefficient is what the others leave of 1.
    rest = np.linalg.lstsq(basis[:, :-1] - basis[:, -1:], wanted - basis[:, -1], rcond=None)[0]
    expected = np.append(rest, 1 - rest.sum())
    coefficients, error = power_ema.synthesis(stored, Profile(1000, sigma_rel))
    np.testing.assert_allclose(coefficients, expected, atol=2e-3)
    assert coefficients.sum() == pytest.approx(1, abs=1e-9)
    left = np.linalg.norm(basis @ expected - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_a_stored_average_is_itself(sigma_rel):
    coefficients, error = power_ema.synthesis(STORED, Profile(STEPS, sigma_rel))
    expected = [float(profile == Profile(STEPS, sigma_rel)) for profile in STORED]
    np.testing.assert_allclose(coefficients, expected, atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize(
    "name, meant",
    [("sigma_rel:0.05", 0.05), ("sigma_rel:0.10", 0.1), ("sigma_rel:0.3", None), ("sigma_rel:0", None),
     ("sigma_rel:", None), ("sigma_rel:x", None), ("sigma_rel:nan", None), ("sigma_rel:-0.1", None), ("slow", None),
     ("0.1", None)],
)  # fmt: skip
def test_names(name, meant):
    assert power_ema.named(name) == meant
    assert power_ema.canonical(name) == (name if meant is None else f"sigma_rel:{meant}")
