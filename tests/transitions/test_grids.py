"""Step grids: exact ends, the published forms, and the dynamic programme against brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import GRIDS, TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampling.optimal_grid import candidate_times, cheapest, jump_costs
from tim_jax.transitions.sampling.planning import make_plan, time_grid
from tim_jax.transitions.sampling.plans import ratios
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.transports import edm

CASES = {name: make() for name, make in TRANSPORTS.items()} | {"edm_2": edm(2.0)}
every_transport = pytest.mark.parametrize("transport", CASES.values(), ids=CASES)
every_grid = pytest.mark.parametrize("grid", GRIDS)


@every_grid
@every_transport
def test_grids_fall_from_end_to_end(transport, grid):
    sampling = Sampling(grid=grid)
    middle = 0.3 * transport.T_max + 0.7 * transport.T_min
    for steps, start in itertools.product((1, 2, 7, 128), (None, transport.T_max, middle)):
        times = time_grid(transport, steps, sampling, start)
        assert times.dtype == np.float64 and times.shape == (steps + 1,)
        assert times[0] == (transport.T_max if start is None else start) and times[-1] == transport.T_min
        assert (np.diff(times) < 0).all()


def test_grids_have_their_published_times():
    published = (80.0 ** (1 / 7) + np.arange(11) / 10 * (0.01 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    np.testing.assert_allclose(time_grid(CASES["edm"], 10, Sampling(grid="edm")), published, rtol=1e-12)
    ratio = ratios(CASES["trigflow"], time_grid(CASES["trigflow"], 10, Sampling(grid="edm"))[1:-1])
    published = (80.0 ** (1 / 7) + np.arange(11) / 10 * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    np.testing.assert_allclose(ratio, published[1:-1], rtol=1e-9)
    u = np.linspace(1, 0, 5)
    np.testing.assert_allclose(time_grid(CASES["ot_fm"], 4, Sampling(grid="shifted")), 3 * u / (1 + 2 * u))
    same = [time_grid(CASES["vp"], 9, Sampling(grid=grid, shift=1.0)) for grid in ("shifted", "uniform")]
    np.testing.assert_allclose(*same, rtol=1e-12)


def test_grids_that_cannot_be_are_refused():
    transport = CASES["ot_fm"]
    with pytest.raises(ValueError, match="steps is 0"):
        time_grid(transport, 0)
    for start in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"start is {start}.*0 … 1"):
            time_grid(transport, 4, start=start)
    found = Sampling(grid="optimal", optimal_times={2: (1.0, 0.7, 0.0)})
    assert time_grid(transport, 2, found).tolist() == [1.0, 0.7, 0.0]
    with pytest.raises(ValueError, match="found for 4 steps, and has been for 2: python -m tim_jax.grid .*--steps=4"):
        time_grid(transport, 4, found)
    with pytest.raises(ValueError, match="start at 0.5"):
        time_grid(transport, 2, found, start=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_way_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = 7
    cost = np.where(np.triu(np.ones((n + 1, n + 1)), 1) > 0, rng.exponential(size=(n + 1, n + 1)), np.inf)
    for steps in range(1, n + 1):
        ways = [(0, *between, n) for between in itertools.combinations(range(1, n), steps - 1)]
        totals = [sum(cost[i, j] for i, j in itertools.pairwise(way)) for way in ways]
        way, total = cheapest(cost, steps)
        assert total == pytest.approx(min(totals), rel=1e-12) and tuple(way) == ways[int(np.argmin(totals))]
    for steps in (0, n + 1):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            cheapest(cost, steps)


@every_transport
def test_candidates_lie_at_equal_noise_levels(transport):
    times = candidate_times(transport, 9)
    assert times[0] == transport.T_max and times[-1] == transport.T_min
    levels = np.arctan(ratios(transport, times))
    np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)


def gaussian_path(transport, times):
    """(flow, states (n + 1, N) float64 of the exact map at times)."""
    flow = Gaussian(transport, 0.0, 0.6)
    spread = np.array([float(flow.marginal_std(jnp.asarray(t))) for t in times])
    return flow, spread[:, None] * np.random.default_rng(0).standard_normal(50)


@every_transport
def test_a_found_grid_is_better_than_an_even_one(transport, x64):
    """Euler on the exact map of a Gaussian, where the end of every grid is known; the flow map itself costs nothing."""
    times = candidate_times(transport, 9)
    flow, path = gaussian_path(transport, times)

    def step(sampler, x, t, r):
        plan = SAMPLERS[sampler].plan(transport, np.array([t, r]))
        evaluated_at = [jnp.full(len(x), time[0]) for time in (plan.t, plan.s)]
        return plan.a[0, 0] * x + plan.b[0, 0] * np.asarray(flow.F(jnp.asarray(x), *evaluated_at))

    def costs(sampler):
        return jump_costs(path, lambda i, j: step(sampler, path[i], times[i], times[j]))

    def end(way):
        x = path[0]
        for i, j in itertools.pairwise(way):
            x = step("euler", x, times[i], times[j])
        return np.sqrt(np.mean((x - path[-1]) ** 2)) / path[-1].std()

    if transport.name in ("ot_fm", "edm"):
        jumps = costs("flow_map")
        assert jumps[np.isfinite(jumps)].max() < 1e-9
    cost = costs("euler")
    for steps in (2, 4):
        way, total = cheapest(cost, steps)
        even = np.arange(steps + 1) * 8 // steps
        assert end(way) <= end(even) + 1e-12
        assert end(way) <= 1.2 * total + 1e-12, "costs may be added"


def test_sampling_along_any_falling_times():
    """A grid of one's own is a list of times."""
    transport = CASES["ot_fm"]
    plan = make_plan(transport, [1.0, 0.9, 0.2, 0.0], Sampling())
    np.testing.assert_allclose(plan.b[:, 0], [-0.1, -0.7, -0.2])


def test_grids_are_those_of_gits(golden):
    """The published dynamic programme, with and without its factor."""
    arrays = golden("gits.npz")
    cost = np.where(np.tri(13, k=0, dtype=bool), np.inf, arrays["cost"])
    found = [key for key in arrays if key.startswith("coefficient")]
    assert len(found) == 15
    for key in found:
        factor, steps = (float(part.strip("abcdefghijklmnopqrstuvwxyz")) for part in key.split("/"))
        np.testing.assert_array_equal(cheapest(cost, int(steps), factor)[0], arrays[key], err_msg=key)
