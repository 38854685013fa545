"""Images from a run whose network is the exact map of a Gaussian: starts, the way up, programs, guidance it is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.programs import traced as traced
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs.generation import Generator, alpha_sigma
from tim_jax.transitions import SAMPLERS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampling.planning import PADDED, evaluations
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

# The inverse of c_noise.
TIMES = {"ot_fm": lambda c: c, "vp": lambda c: c / 999, "ve": lambda c: 2 * jnp.exp(c)}
LABELS = np.arange(6) % 10


@dataclasses.dataclass(frozen=True)
class Exact:
    """A network that is the exact map for images of independent N(0, 0.8²) values, whatever the condition."""

    flow: Gaussian
    to_F: None = None

    def apply(self, variables, queries):
        time = TIMES[self.flow.transport.name]
        # c_noise rounds: the ends must not be left.
        low, high = self.flow.transport.T_min, self.flow.transport.T_max
        return tuple(Output(self.flow.F(q.x_t, *(jnp.clip(time(c), low, high) for c in (q.t, q.r)))) for q in queries)


SMALL = {
    **TINY_NETWORK,
}


def make_run(**keys):
    overrides = SMALL | {key.replace("__", "."): value for key, value in keys.items()}
    run = build(load_config("base", overrides), jax.devices()[:1])
    return dataclasses.replace(run, network=Exact(Gaussian(run.transport, 0.0, 0.8)))


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.mark.parametrize(
    "sampler",
    [
        "flow_map",
        "euler",
        "heun",
        "dpm_solver_3s",
        "dpm_solver_3m",
        "unipc_3",
        "pseudo_corrector",
        "leapfrog",
        "sde_heun",
    ],
)
def test_one_program_for_all_step_counts(run, sampler, traced):
    generator = Generator(dataclasses.replace(run, sampling=Sampling(sampler=sampler)), 6)
    for steps in (1, 3, PADDED // SAMPLERS[sampler].evaluations - 1):
        assert generator({}, LABELS, steps=steps).shape == (6, 8, 8, 1)
    assert len(traced) == 1
    path = generator.integrate({}, generator.times(3), LABELS, trajectory=True)
    assert path.shape == (4, 6, 8, 8, 1), "a state for each step, whatever its evaluations"
    np.testing.assert_allclose(path[0], generator.noise(0, 6), atol=1e-6)
    np.testing.assert_allclose(path[-1], generator({}, LABELS, steps=3), atol=1e-5)
    if sampler in (
        "flow_map",
        "sde_heun",
    ):  # with and without noise on the way; samplers by themselves: test_sampler.py
        few = Generator(generator.run, 4)
        np.testing.assert_allclose(few({}, LABELS[:5], steps=3), path[-1][:5], atol=1e-5, err_msg="other batches")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "er_sde_2"])
def test_evaluations_at_once_give_the_same_images(run, sampler):
    one_by_one = Generator(dataclasses.replace(run, sampling=Sampling(sampler=sampler)), 6)
    sweeping = one_by_one.sampled_by(Sampling(sampler=sampler, parallel=16, tolerance=1e-5))
    times = one_by_one.times(16)
    expected = one_by_one.integrate({}, times, LABELS, trajectory=True)
    assert one_by_one.sweeps == 16
    np.testing.assert_allclose(sweeping.integrate({}, times, LABELS, trajectory=True), expected, atol=1e-4)
    assert 2 <= sweeping.sweeps < 16
    np.testing.assert_allclose(sweeping({}, LABELS, steps=16), expected[-1], atol=1e-4)


def test_other_starts_are_another_program_and_the_noise_is_the_default(run, traced):
    generator = Generator(run, 6)
    plain = generator({}, LABELS, steps=4, seed=1)
    given = generator.integrate({}, generator.times(4), LABELS, seed=1, start=generator.noise(1, 6))
    np.testing.assert_allclose(given, plain, atol=1e-6)
    generator.integrate({}, generator.times(7, 0.4), LABELS, seed=1, start=given)
    assert len(traced) == 2


@pytest.mark.parametrize("name", TIMES)
def test_noise_has_the_size_that_the_transport_gives_it(name):
    """For VE that is 100: images keep the spread of the data."""
    generator = Generator(make_run(transport__name=name), 64)
    images = generator({}, np.arange(64) % 10, steps=4)
    flow = generator.run.network.flow
    assert images.std() / float(flow.marginal_std(jnp.float32(flow.transport.T_min))) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name, start", [("ot_fm", 0.6), ("vp", 0.3), ("ve", 1.5)])
def test_image_to_image_keeps_the_marginal_and_what_little_noise_leaves(name, start):
    generator = Generator(make_run(transport__name=name), 200)
    run, labels = generator.run, np.arange(200) % 10
    images = 0.8 * np.random.default_rng(0).standard_normal((200, 8, 8, 1)).astype(np.float32)
    noised = generator.add_noise(images, start)
    alpha, sigma = alpha_sigma(run, start)
    np.testing.assert_allclose(noised, alpha * images + sigma * generator.noise(0, 200), atol=1e-6)
    found = generator.integrate({}, generator.times(5, start), labels, start=noised)
    assert found.std() == pytest.approx(0.8, rel=0.02)
    share = np.corrcoef(found.ravel(), images.ravel())[0, 1]
    assert share == pytest.approx(0.8 * alpha / np.hypot(0.8 * alpha, sigma), abs=0.02)


def test_the_way_to_noise_and_back(run):
    generator = Generator(run, 6)
    images = 0.8 * np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)
    times = generator.times(3)
    noise = generator.integrate({}, times[::-1], LABELS, start=images)
    np.testing.assert_allclose(noise, images / 0.8, atol=1e-5)
    np.testing.assert_allclose(generator.integrate({}, times, LABELS, start=noise), images, atol=1e-5)


class Curved:
    """A network that is not linear in the state."""

    to_F = None

    def apply(self, variables, queries):
        return tuple(Output(jnp.tanh(2 * q.x_t) + jnp.sin(q.t)[:, None, None, None]) for q in queries)


def test_two_states_of_each_image_lead_back_to_it(run):
    images = 0.8 * np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)

    def off(sampler, steps, **pair):
        generator = Generator(dataclasses.replace(run, network=Curved(), sampling=Sampling(sampler=sampler)), 4)
        times = generator.times(steps)
        noise = generator.integrate({}, times[::-1], LABELS, start=images, **pair)
        path = generator.integrate({}, times, LABELS, start=noise, trajectory=True)
        back = generator.integrate({}, times, LABELS, start=noise)
        assert path.shape == (steps + 1, 6, 8, 8, 1)
        np.testing.assert_allclose(path[-1], back, atol=1e-5)
        np.testing.assert_allclose(path[0], noise[:, 0] if pair else noise, atol=1e-6)
        return np.abs(back - images).max()

    assert off("leapfrog", 8, pair=True) < 1e-5 and off("euler", 8) > 1e-2 and off("heun", 4) > 1e-3


def test_two_states_are_for_samplers_that_return_the_way_that_they_came(run):
    generator = Generator(run, 6)
    images, times = np.zeros((6, 8, 8, 1), np.float32), generator.times(4)
    for given in ({"start": images, "pair": True}, {"start": np.stack([images, images], 1)}):
        with pytest.raises(ValueError, match="sampling.sampler is 'flow_map'; it must be leapfrog"):
            generator.integrate({}, times, LABELS, **given)
    with pytest.raises(ValueError, match="pair and trajectory"):
        generator.integrate({}, times, LABELS, start=images, pair=True, trajectory=True)


class Guided:
    """A network that predicts the guidance that it gets as an input."""

    to_F = None

    def apply(self, variables, queries):
        assert len(queries) == 1, "a second evaluation"
        return tuple(
            Output(jnp.zeros_like(q.x_t) + q.condition["guidance"].sum(1)[:, None, None, None]) for q in queries
        )


def test_guidance_as_an_input_of_the_network_takes_no_second_evaluation():
    keys = {"objective__name": "improved_mean_flow", "sampling__guidance": "3.0", "sampling__guidance_low": "0.25"}
    run = dataclasses.replace(make_run(**keys), network=Guided())
    generator = Generator(run, 6)
    # F = 3 + 0.25 + 1 from t = 1 to 0.
    np.testing.assert_allclose(generator({}, LABELS, steps=2), generator.noise(0, 6) - 4.25, atol=1e-5)
    assert evaluations(run.transport, 2, run.sampling) == 2
    with pytest.raises(ValueError, match=r"sampling.guidance is 9.0; it must lie in \[1, 8\]"):
        make_run(**keys | {"sampling__guidance": "9.0"})


def test_the_default_sampler_is_the_objectives():
    assert make_run().sampling.sampler == "flow_map"
    assert make_run(objective__name="flow_matching").sampling.sampler == "euler"
    assert make_run(objective__name="flow_matching", sampling__sampler="heun").sampling.sampler == "heun"


def test_evaluations_are_counted_image_by_image(run):
    """Whatever the batches, of which the last one repeats images; a mean only where some may be skipped."""
    heun = Generator(dataclasses.replace(run, sampling=Sampling(sampler="heun", guidance=2.0)), 4)
    heun({}, LABELS, steps=3)
    assert heun.nfe == 12 and isinstance(heun.nfe, int) and heun.evaluations.tolist() == 6 * [12]
    skipping = dataclasses.replace(run, sampling=Sampling(sampler="sada"))
    whole, halves = Generator(skipping, 6), Generator(skipping, 4)
    images = whole({}, LABELS, steps=16)
    np.testing.assert_allclose(halves({}, LABELS, steps=16), images, atol=1e-6)
    assert halves.evaluations.tolist() == whole.evaluations.tolist() and max(whole.evaluations) < 16
    assert whole.nfe == np.mean(whole.evaluations) and isinstance(whole.nfe, float)
