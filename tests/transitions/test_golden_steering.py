"""One steered step against published numbers (tests/golden/README.md)."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import as_net, weights
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling import steering
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.planning import make_plan
from tim_jax.transitions.sampling.plans import host_transport, linear
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.sampling.steering import Steering

ARRAYS = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "guided_steps.npz"))
OT_FM, TIMES = TRANSPORTS["ot_fm"](), np.array([ARRAYS["t"], ARRAYS["t_next"]])
BATCH, MEASURED = ARRAYS["measurement"].shape
# The published loss is the mean of squares over the batch; an image's own is half their sum.
SCALE = float(ARRAYS["gradient_scale"]) * 2 / (BATCH * MEASURED)


def measured(x):
    return x.reshape(len(x), -1) @ jnp.asarray(ARRAYS["operator"]).T


def step(method, plan=None, scale=SCALE, loss="squared"):
    """The state after one steered step; the plan of Euler's method by default."""
    settings = Steering(operator="inpainting", method=method, loss=loss)
    sampling = Sampling(sampler="euler", steering=settings)
    plan = plan or make_plan(OT_FM, TIMES, sampling)
    plan = plan._replace(steer=steering.weights(settings, host_transport(OT_FM), TIMES))
    steer = steering.of_residual(settings, lambda x: measured(x) - ARRAYS["measurement"], scale)
    # The probe of these numbers sees no r.
    net, condition = as_net(weights(ARRAYS) | {"b": jnp.zeros(16)}), {"label": jnp.asarray(ARRAYS["labels"])}
    x = jnp.asarray(ARRAYS["z"])
    return sample(net, plan, x, condition, condition, image_keys(0, jnp.arange(len(x))), steer=steer)


@pytest.mark.parametrize("method, expected", [("flowchef", "flowchef/result"), ("dps", "flow_dps/result_plain")])
def test_a_step_of_a_flow(x64, method, expected):
    np.testing.assert_allclose(step(method), ARRAYS[expected], rtol=0, atol=1e-10)


def test_published_code_moves_the_velocity_by_the_gradient_as_well(x64):
    """Which takes back the share t − t' of the step: the departure that this package does not make."""
    back = (TIMES[1] - TIMES[0]) * float(ARRAYS["gradient_scale"]) * ARRAYS["flow_dps/gradient"]
    np.testing.assert_allclose(step("dps") - back, ARRAYS["flow_dps/result_as_coded"], rtol=0, atol=1e-10)


def test_a_step_with_fresh_noise(x64):
    """DPS as published, but for the norm over the batch: it is that of each image times its share of the batch's."""
    (t, r), eta = TIMES, float(ARRAYS["dps/eta"])
    keep = np.sqrt(r**2 - eta**2)  # of ε̂ = x + (1 − t) F, x̂ being x − t F
    plan = linear(np.array([t]), np.array([t]), [[1 - r + keep]], [[keep * (1 - t) - (1 - r) * t]])
    residual = ARRAYS["measurement"] - np.asarray(measured(jnp.asarray(ARRAYS["dps/x0"])))
    norms = np.linalg.norm(residual, axis=1)
    assert np.linalg.norm(norms) == pytest.approx(float(ARRAYS["dps/norm"]), abs=1e-10)
    found = step("dps", plan, ARRAYS["dps/scale"] * norms / np.linalg.norm(norms), "norm")
    np.testing.assert_allclose(found + eta * ARRAYS["dps/xi"], ARRAYS["dps/result"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        step("dps", plan, 0.0, "norm"), ARRAYS["dps/unguided"] - eta * ARRAYS["dps/xi"], atol=1e-10
    )
