"""Objectives against the losses and gradients that published implementations computed (tests/golden/README.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import as_net, examples, largest_difference, weights
from tests.helpers.waves import LATE
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.guidance import TargetGuidance
from tim_jax.transitions.objectives import OBJECTIVES
from tim_jax.transitions.times import Times

OT_FM = TRANSPORTS["ot_fm"]()
GIVEN = Times("uniform", share_equal=0.0, share_min=0.0)  # times are given: all examples go the general way
TOLERANCE = 1e-10


def gradients(arrays, case):
    """The published gradients by weight."""
    return {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{case}/grad/")}


@pytest.mark.parametrize("case", ["mean_flow", "alpha_04", "alpha_1", "guided_04", "guided_0"])
def test_alphaflow(case, golden, x64):
    arrays = golden("alphaflow.npz")
    of = {key: arrays[f"{case}/{key}"] for key in ("noise", "t", "r", "alpha", "clamp", "loss_raw", "loss")}
    guidance = TargetGuidance(
        *(float(arrays[f"{case}/{key}"]) for key in ("omega", "kappa", "t_min", "t_max")), 0, "online"
    )
    objective = OBJECTIVES["alphaflow"](OT_FM)
    clip = float(of["clamp"]) if of["clamp"] < 1e6 else 0.0
    bootstrap = dataclasses.replace(objective.bootstrap, alpha=Annealing(final=float(of["alpha"])), clip=clip)
    objective = dataclasses.replace(objective, times=GIVEN, bootstrap=bootstrap, guidance=guidance)
    objective.check()
    assert objective.adaptive.offset == arrays["eps"]
    rows = examples(arrays["x"], of["noise"], arrays["labels"])

    def loss(params):
        losses, metrics = objective.loss({"online": as_net(params)}, rows, of["t"], of["r"], LATE)
        return losses.mean(), (losses, metrics["error"])

    grads, found = jax.grad(loss, has_aux=True)(weights(arrays))
    error = largest_difference((found, grads), ((of["loss"], of["loss_raw"]), gradients(arrays, case)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_schedules_of_alphaflow(golden, x64):
    arrays = golden("alphaflow.npz")
    clamped = {"clamp": 0.005}
    schedules = {
        "sigmoid": Annealing("sigmoid", 1.0, 0.0, 0, 400_000, **clamped),
        "sigmoid_xl": Annealing("sigmoid", 1.0, 0.0, 100_000, 300_000, **clamped),
        "linear": Annealing("linear", 1.0, 0.0, 100_000, 300_000, **clamped),
        "log": Annealing("logarithmic", 1.0, 0.0, 100_000, 300_000, **clamped),
        "exponential": Annealing("exponential", 1.0, 0.005, 100_000, 300_000, **clamped),
    }
    for name, alpha in schedules.items():
        alpha.check("")
        found = [alpha(jnp.int32(step)) for step in arrays["schedule_steps"]]
        np.testing.assert_allclose(found, arrays[f"schedule/{name}"], rtol=0, atol=TOLERANCE, err_msg=name)
    shares = Annealing("linear", start_share=0.25, end_share=0.75, **clamped).following(400_000)
    assert shares == schedules["linear"]
