"""Exact inversion: data to noise and back by two chains, for a network that is not linear, whatever the transport."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.solving import solve
from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.planning import check_pairs, make_plan, padded, time_grid
from tim_jax.transitions.sampling.plans import without_first
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

CASES = {name: make() for name, make in TRANSPORTS.items()}
REVERSIBLE = [name for name, sampler in SAMPLERS.items() if sampler.reversible]
RNG = np.random.default_rng(0)
W1, W2, T, S, C = RNG.normal(0, 0.15, (12, 16)), RNG.normal(0, 0.15, (16, 12)), *RNG.normal(0, 1, (3, 16))
IMAGES, CONDITION, NULL = RNG.normal(0, 0.6, (5, 12)), np.linspace(-1, 1, 5), np.zeros(5)
GUIDANCE = 2.5


@functools.cache
def solver(guided):
    """(plan, x, before, count) → the last two states, by a network of the state, both times and the condition."""

    def of_times(q):
        return jnp.sin(jnp.outer(q.t, T) + jnp.outer(q.r, S))

    def net(queries):
        return tuple(Output(jnp.tanh(q.x_t @ W1 + of_times(q) + jnp.outer(q.condition, C)) @ W2) for q in queries)

    def run(plan, x, before, count):
        keys, scale = image_keys(0, jnp.arange(len(x))), GUIDANCE if guided else 1.0
        condition, null = jnp.asarray(CONDITION), jnp.asarray(NULL)
        return sample(net, plan, x, condition, null, keys, scale, count=count, before=before, pair=True)

    return jax.jit(run)


def way(name, times, sampling, start):
    """The last two states (B, 2, 12) on a way from one state (B, 12), or on from two (B, 2, 12)."""
    plan, pair = make_plan(CASES[name], times, sampling), start.ndim == 3
    x, before = (start[:, 1], start[:, 0]) if pair else (start, None)
    plan = without_first(plan) if pair else plan
    if plan.a.shape[1] == 1:  # Euler: a second state, of no weight, for one program
        wider = ((0, 0), (0, 1))
        plan = plan._replace(a=np.pad(plan.a, wider), b=np.pad(plan.b, wider))
    before = jnp.zeros_like(x) if before is None else before
    return solver(sampling.guidance != 1)(padded(plan), jnp.asarray(x), before, len(plan.t))


def missed(name, steps, sampling, grid="uniform", exact=True):
    """The largest distance of images from what comes back from noise."""
    times = time_grid(CASES[name], steps, Sampling(grid=grid))
    noise = way(name, times[::-1], sampling, IMAGES)
    assert np.abs(noise[:, 0] - IMAGES).max() > 0.1, "nothing was done"
    back = way(name, times, sampling, noise if exact else noise[:, 0])
    return float(np.abs(back[:, 0] - IMAGES).max())


@pytest.mark.parametrize("sampler", REVERSIBLE)
@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_exact(name, guidance, sampler, x64):
    """To rounding, with guidance on an interval; Euler and Heun miss at as many evaluations."""
    plain = Sampling(guidance=guidance, guidance_low=0.25, guidance_high=0.7)
    ours = Sampling(**plain.__dict__ | {"sampler": sampler})
    for steps in (2, 10, 100):
        for grid in ("uniform", "edm"):
            assert missed(name, steps, ours, grid) < 1e-10
    others = [missed(name, 10 // n, Sampling(**plain.__dict__ | {"sampler": other}), exact=False)
              for other, n in (("euler", 1), ("heun", 2))]  # fmt: skip
    print(name, guidance, others, missed(name, 10, ours), missed(name, 100, ours), missed(name, 10, ours, exact=False))
    assert min(others) > 1e-4


EVALUATIONS = (10, 20, 50, 100)


def there_and_back(sampler, steps):
    """RMS by which images of a mixture on OT-FM miss themselves, and relative error of the noise, by the exact F."""
    transport, mean, variance = CASES["ot_fm"], 0.7, 0.04
    rng = np.random.default_rng(0)
    images = rng.choice([-mean, mean], 2000) + rng.normal(0, variance**0.5, 2000)

    def along(times, start):
        plan = make_plan(transport, times, Sampling(sampler=sampler))

        def F(x, j):
            alpha, sigma = 1 - plan.t[j], plan.t[j]
            total = alpha**2 * variance + sigma**2
            weight = np.tanh(alpha * mean * x / total)
            return (sigma * (x - alpha * mean * weight) - alpha * variance * x - sigma**2 * mean * weight) / total

        return solve(plan, F, start)[-1]

    times = time_grid(transport, steps)
    noise = along(times[::-1], images)
    exact = along(time_grid(transport, 2000)[::-1], images) if sampler == "heun" else None
    return np.sqrt(np.mean((along(times, noise) - images) ** 2)), noise, exact


def test_what_other_samplers_miss_is_what_the_documentation_says():
    lines = pathlib.Path("docs/sampling.md").read_text().splitlines()
    told = {line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:-1]]
            for line in lines if line.startswith(("| image,", "| noise,"))}  # fmt: skip
    _, _, exact = there_and_back("heun", 5)
    for name, sampler, each in (("Euler", "euler", 1), ("Heun", "heun", 2)):
        for n, image, noise in zip(EVALUATIONS, told[f"image, {name}"], told[f"noise, {name}"], strict=True):
            found, ours, _ = there_and_back(sampler, n // each)
            assert found == pytest.approx(image, rel=0.06), (name, n)
            assert np.sqrt(np.mean((ours - exact) ** 2)) == pytest.approx(noise, rel=0.06), (name, n)


@pytest.mark.parametrize("sampler", REVERSIBLE)
def test_two_states_continue_the_run_that_they_are_of(sampler, x64):
    sampling, times = Sampling(sampler=sampler), time_grid(CASES["vp"], 6)
    plan = make_plan(CASES["vp"], times, sampling)
    keys, x = image_keys(0, jnp.arange(5)), jnp.asarray(IMAGES)

    def net(queries):
        return tuple(Output(jnp.tanh(q.x_t + q.t[:, None])) for q in queries)

    @functools.partial(jax.jit, static_argnames=("trajectory", "pair"))
    def draw(plan, x, before=None, **told):
        return sample(net, plan, x, None, None, keys, before=before, **told)

    path = draw(plan, x, trajectory=True)
    rest = draw(without_first(plan), path[1], path[0], trajectory=True)
    np.testing.assert_allclose(rest, path, atol=1e-12)
    pair = draw(without_first(plan), path[1], path[0], pair=True)
    np.testing.assert_allclose(pair, jnp.stack([path[-1], path[-2]], axis=1), atol=1e-12)


@pytest.mark.parametrize(
    "settings, steps, said",
    [
        ({"sampler": "euler"}, 4, "sampling.sampler is 'euler'; it must be leapfrog"),
        ({"sampler": "leapfrog", "parallel": 8}, 4, "sampling.parallel is 8; it must be 0"),
        ({"sampler": "leapfrog"}, 1, "steps is 1; it must be at least 2"),
    ],
)
def test_what_cannot_return_exactly_is_refused(settings, steps, said):
    with pytest.raises(ValueError, match=said):
        check_pairs(Sampling(**settings), steps)
    check_pairs(Sampling(sampler="leapfrog"), 2)
