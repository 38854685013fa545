"""Steered samples against the exact posterior of a correlated Gaussian under a linear measurement without noise.

Figures are relative: 1 is how far mean (L2) and covariance (Frobenius) of the prior are from those of the posterior.
`python -m pytest tests/transitions/test_steered_gaussian.py -m slow -s` prints the table of docs/steering.md.
"""

import numpy as np
import pytest

from tests.helpers.gaussian_posterior import MEASURED, OPERATOR, errors, posterior, steered
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.sampling.steering import Steering

pytestmark = pytest.mark.slow
STEPS, COUNT = (1, 4, 16, 64), 4096

# (sampler, settings) → the error of mean and covariance in 1, 4, 16, 64 steps, as they were measured.
CASES = {
    ("euler", Steering("inpainting", "flowchef")): ((0.50, 0.15), (0.25, 0.07), (0.05, 0.02), (0.02, 0.01)),
    ("flow_map", Steering("inpainting", "flowchef")): ((0.50, 0.20), (0.27, 0.05), (0.05, 0.01), (0.02, 0.00)),
    ("flow_map", Steering("inpainting", "flowchef", iterations=4)): (
        (0.37, 0.03), (0.15, 0.02), (0.02, 0.00), (0.01, 0.00),
    ),
    ("euler", Steering("inpainting", "dps")): ((1.00, 0.15), (0.50, 0.09), (0.04, 0.05), (0.39, 0.03)),
    ("flow_map", Steering("inpainting", "dps")): ((0.77, 0.13), (0.32, 0.01), (0.05, 0.02), (0.40, 0.03)),
    ("flow_map", Steering("inpainting", "dps", 0.3)): ((0.93, 0.63), (0.74, 0.22), (0.32, 0.02), (0.09, 0.02)),
    ("flow_map", Steering("inpainting", "dps", estimate="end")): (
        (0.77, 0.13), (0.24, 0.01), (0.05, 0.00), (0.01, 0.00),
    ),
    ("flow_map", Steering("inpainting", "dps", estimate="end", iterations=4)): (
        (0.61, 0.05), (0.05, 0.00), (0.01, 0.00), (0.01, 0.00),
    ),
    ("flow_map", Steering("inpainting", "flowchef", estimate="end")): (
        (0.50, 0.20), (0.33, 0.03), (0.28, 0.03), (0.27, 0.02),
    ),
    ("euler", Steering("inpainting", "resample")): ((0.50, 0.15), (0.40, 0.08), (0.31, 0.07), (0.26, 0.06)),
    ("flow_map", Steering("inpainting", "resample")): ((0.50, 0.20), (0.40, 0.02), (0.30, 0.05), (0.26, 0.06)),
}  # fmt: skip


def test_the_posterior_agrees_with_the_measurement():
    mean, covariance = posterior()
    np.testing.assert_allclose(OPERATOR @ mean, MEASURED, atol=1e-12)
    np.testing.assert_allclose(OPERATOR @ covariance, 0, atol=1e-12)


@pytest.mark.parametrize("sampler, steering", CASES, ids=lambda case: case if isinstance(case, str) else case.method)
def test_mean_and_covariance(sampler, steering):
    found = steered(TRANSPORTS["ot_fm"](), Sampling(sampler=sampler, steering=steering), STEPS, COUNT)
    figures = {steps: errors(samples) for steps, samples in found.items()}
    name = f"{sampler} {steering.method} s={steering.scale:g} iterations={steering.iterations} {steering.estimate}"
    print(
        f"\n{name:54}", *(f"{mean:.2f} {spread:.2f} ({off:.2f})" for mean, spread, off in figures.values()), sep=" | "
    )
    for (mean, spread, off), (of_mean, of_spread) in zip(figures.values(), CASES[sampler, steering], strict=True):
        assert mean == pytest.approx(of_mean, abs=0.03) and spread == pytest.approx(of_spread, abs=0.03)
        assert off < 1e-3 or steering.method == "dps"


def test_without_steering_samples_are_the_prior():
    found = steered(TRANSPORTS["ot_fm"](), Sampling(sampler="flow_map"), STEPS, COUNT)
    for samples in found.values():
        assert errors(samples)[:2] == pytest.approx((1, 1), abs=0.03)
