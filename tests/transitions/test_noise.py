"""The law of the noise: PFGM++'s norms, its limit, and that images have their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.overrides import override
from tim_jax.runs.generation import Generator
from tim_jax.training.step import make_examples
from tim_jax.transitions import TRANSPORTS, Sampling, image_keys, make_plan, mean_loss, start_noise, time_grid
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.objectives.table import OBJECTIVES


def norms(N, D):
    """The law of |ε|: |ε|²/D is χ²_N/χ²_D, a beta-prime variable."""
    square = scipy.stats.betaprime(N / 2, D / 2)
    return lambda q: np.sqrt(D * square.ppf(q)), lambda norm: square.cdf(norm**2 / D)


def test_norms_have_the_published_law(golden):
    arrays = golden("pfgmpp.npz")
    cases = sorted({name.split("/")[0] for name in arrays if name.startswith("N")})
    assert len(cases) == 6
    for case in cases:
        N, D, sigma = arrays[f"{case}/N_D_sigma"]
        found, expected = sigma * norms(N, D)[0](arrays["quantiles"]), arrays[f"{case}/exact"]
        # The file's own b/(1 − b) loses digits where D is 1 and b next to 1.
        np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-10)
        np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-7 if D == 1 else 1e-10)
    b, (N, D) = arrays["draw/beta"], arrays["draw/N_D"]
    np.testing.assert_allclose(arrays["draw/sigma"] * np.sqrt(D * b / (1 - b)), arrays["draw/norm"], rtol=1e-6)


@pytest.mark.parametrize("N, D", [(12, 64), (12, 4), (64, 1), (3072, 128)])
def test_draws_have_norms_of_that_law_and_uniform_directions(N, D, x64):
    noise = np.asarray(draw_noise(D, jax.random.key(0), (2000, N)))
    norm = np.linalg.norm(noise, axis=1)
    assert scipy.stats.kstest(norm, norms(N, D)[1]).pvalue > 0.01
    cosine = noise[:, 0] / norm  # its square is Beta(½, (N − 1)/2) for a uniform direction
    assert scipy.stats.kstest(cosine**2, scipy.stats.beta(0.5, (N - 1) / 2).cdf).pvalue > 0.01
    assert abs(scipy.stats.spearmanr(norm, cosine).statistic) < 0.08


def test_many_dimensions_are_diffusion(x64):
    noise = draw_noise(10**9, jax.random.key(0), (2000, 12))
    assert scipy.stats.kstest(np.asarray(noise).ravel(), "norm").pvalue > 0.01
    normal = jax.random.normal(jax.random.split(jax.random.key(0))[0], (2000, 12))
    np.testing.assert_allclose(noise, normal, rtol=3e-4)
    np.testing.assert_array_equal(
        draw_noise(0, jax.random.key(0), (5, 2), jnp.float32), jax.random.normal(jax.random.key(0), (5, 2), jnp.float32)
    )


def test_the_noise_of_an_image_is_its_own():
    keys = image_keys(3, jnp.arange(7))
    noise = start_noise(keys, (2, 2, 3), 8)
    np.testing.assert_allclose(start_noise(keys[::-1], (2, 2, 3), 8), noise[::-1], rtol=1e-6)
    normal = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (2, 2, 3)))(keys)
    np.testing.assert_array_equal(start_noise(keys, (2, 2, 3)), normal)
    assert (start_noise(image_keys(4, jnp.arange(7)), (2, 2, 3), 8) != noise).all()


def test_a_run_trains_and_starts_samples_with_its_law():
    changes = {"transport.augmented_dimensions": "4", "model.width": "16", "model.heads": "2", "model.depth": "1"}
    changes |= {"model.encoder_depth": "1", "model.bottleneck": "8", "model.patch_size": "4"}
    run = build(override(loading.load("base").get_config(), changes), jax.devices()[:1])
    batch = {"x": jnp.zeros((2000, 8, 8, 1)), "label": jnp.zeros(2000, jnp.int32)}
    cdf = norms(64, 4)[1]
    for noise in (
        make_examples(run.trainer.step, batch, jax.random.key(0)).noise,
        Generator(run, 4).noise(0, 2000),
    ):
        assert scipy.stats.kstest(np.linalg.norm(np.reshape(noise, (2000, -1)), axis=1), cdf).pvalue > 0.01


def test_noise_on_the_way_is_refused_but_where_there_is_none():
    transport = build(
        override(loading.load("base").get_config(), {"transport.augmented_dimensions": "4"}), jax.devices()[:1]
    ).transport
    for sampling, steps in ((Sampling(sampler="consistency"), 2), (Sampling(stochasticity=0.5), 4)):
        with pytest.raises(ValueError, match="transport.augmented_dimensions is 4; it must be 0"):
            make_plan(transport, time_grid(transport, steps, sampling), sampling)
    make_plan(transport, time_grid(transport, 1), Sampling(sampler="consistency"))


def test_a_network_of_ones_own_learns_from_that_law():
    objective = OBJECTIVES["flow_matching"](dataclasses.replace(TRANSPORTS["ot_fm"](), augmented_dimensions=6))

    @jax.jit
    def loss(key):
        return mean_loss(objective, lambda x, t, r: jnp.zeros_like(x), jnp.zeros((512, 64)), key)[0]

    assert loss(jax.random.key(0)) == pytest.approx(1.5, rel=0.1)  # E ε² = D/(D − 2)
