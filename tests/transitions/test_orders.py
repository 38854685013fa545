"""Every sampler's order, on a Gaussian by the exact mean and deviation, and on a mixture by the states."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.helpers.solving import mixture, moments, solve
from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.sampling.exponential import NOISE_SCALES
from tim_jax.transitions.sampling.planning import make_plan
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.transports import edm

CASES = {"ot_fm": TRANSPORTS["ot_fm"](), "vp": TRANSPORTS["vp"](), "edm_2": edm(2.0)}
MEAN, STD = 0.4, 0.6


def settings():
    """(settings, order) of every sampler that has one, with every kind of noise; for the others see test_rules.py."""
    for name, sampler in SAMPLERS.items():
        if sampler.order and not sampler.per_image:
            plain = Sampling(sampler=name)
            yield plain, sampler.order
            if "noise_scale" in sampler.keys:
                for scale in NOISE_SCALES:
                    if scale != "ode":
                        yield dataclasses.replace(plain, noise_scale=scale), min(sampler.order, 2)
            if "unipc_variant" in sampler.keys:
                yield dataclasses.replace(plain, unipc_variant="bh1"), sampler.order
            if "diffusion" in sampler.keys:
                yield dataclasses.replace(plain, diffusion="sigma", diffusion_scale=0.7, last_step="euler"), 1


def title(value):
    return (
        f"{value.sampler}-{value.noise_scale}-{value.unipc_variant}-{value.diffusion}"
        if isinstance(value, Sampling)
        else str(value)
    )


EACH = pytest.mark.parametrize("sampling, order", list(settings()), ids=title)


def times(transport, steps):
    """From noise five times the signal to a fifth of it, with short steps to start multistep samplers by."""
    return host_transport(transport).time_of_ratio(5.0 * 25.0 ** -(np.linspace(0, 1, steps + 1) ** 2))


def plan_of(transport, steps, sampling):
    plain = dataclasses.replace(transport, c_noise=lambda t: t)
    return make_plan(plain, times(transport, steps), sampling)


@EACH
@pytest.mark.parametrize(
    "transport",
    [pytest.param(case, id=n, marks=() if n == "ot_fm" else pytest.mark.slow) for n, case in CASES.items()],
)
def test_on_a_gaussian(transport, sampling, order):
    host = host_transport(transport)
    start, end = times(transport, 1)
    exact = host.alpha(end) * MEAN, np.hypot(host.alpha(end) * STD, host.sigma(end))

    def error(steps):
        found = moments(plan_of(transport, steps, sampling), host, start, MEAN, STD)
        return max(abs(one - other) for one, other in zip(found, exact, strict=True))

    errors = [error(steps) for steps in (200, 400, 800)]
    found = np.log2(np.divide(errors[:-1], errors[1:]))
    print(sampling.sampler, found)
    assert order - 0.12 < found[-1] < order + (0.35 if sampling.sampler.startswith("er_sde") else 0.3)
    assert abs(found[-1] - order) < abs(found[0] - order) + 0.02, "and more so for more steps"


def end_of_mixture(transport, steps, sampler):
    plan, start = plan_of(transport, steps, Sampling(sampler=sampler)), np.linspace(-2, 2, 9)
    return solve(plan, mixture(plan, host_transport(transport), 0.7, 0.09), start)[-1]


@pytest.mark.parametrize("name", ["ot_fm", "vp"])
def test_on_a_mixture(name):
    """States without noise, where x̂ is far from linear, against many single steps of the third order."""
    transport = TRANSPORTS[name]()
    exact = end_of_mixture(transport, 1500, "dpm_solver_3s")
    for sampler, one in SAMPLERS.items():
        if not one.order or one.per_image or one.keys and "diffusion" in one.keys or sampler.startswith("er_sde"):
            continue
        coarse, fine = (np.abs(end_of_mixture(transport, n, sampler) - exact).max() for n in (150, 300))
        assert one.order - 0.15 < np.log2(coarse / fine) < one.order + 0.4, sampler


def test_the_table_of_the_documentation():
    """It has every sampler, with the evaluations and the order that are measured above."""
    found = {}
    for line in pathlib.Path("docs/sampling.md").read_text().splitlines():
        if line.startswith("| `") and line.count("|") == 6:
            names, evaluations, orders, *_ = (cell.strip().split(", ") for cell in line.split("|")[1:])
            for i, name in enumerate(names):
                found[name.strip("`")] = evaluations[i % len(evaluations)], orders[i % len(orders)]
    assert found == {name: (str(one.evaluations), str(one.order or "")) for name, one in SAMPLERS.items()}
