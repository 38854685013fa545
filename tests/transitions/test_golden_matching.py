"""Distribution matching against what published implementations computed (tests/golden/README.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.adversaries import Told
from tests.helpers.probe import (
    OT_FM,
    TOLERANCE,
    as_net,
    examples,
    gradients,
    hidden_layer,
    largest_difference,
    probe,
    weights,
)
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.terms.divergences import density_ratio, importance, per_bin
from tim_jax.transitions.terms.matching import Matching


class Given:
    """The inputs of the golden numbers, and an objective without networks' weights."""

    def __init__(self, golden, **settings):
        self.arrays = golden("distribution_matching.npz")
        self.t, self.noise = jnp.asarray(self.arrays["t"]), jnp.asarray(self.arrays["noise"])
        self.matching = Matching(weight=1.0, **settings)
        guidance = 1.0 if self.matching.gradient == "sim" else float(self.arrays["guidance"])
        objective = OBJECTIVES["distribution_matching"](OT_FM)
        self.objective = dataclasses.replace(objective, matching=self.matching, teacher=Teacher(guidance=guidance))
        self.rows = examples(self.arrays["x"], self.noise, self.arrays["labels"])

    def generated(self, params):
        """The samples of one jump from the given noise."""
        z, labels = jnp.asarray(self.arrays["z"]), jnp.asarray(self.arrays["labels"])
        return z - probe(params, z, jnp.ones(len(z)), jnp.zeros(len(z)), labels)

    def logits(self, objective, nets, x_t, t, rows):
        """Those of the discriminator, (B, 2), as a term with a discriminator has them."""
        head = weights(self.arrays, "discriminator/")
        return hidden_layer(head, x_t, t, t, rows.condition["label"]) @ jnp.asarray(self.arrays["discriminator/h"]).T

    def compare(self, x, objective=None):
        """(the student's losses, the auxiliary network's) for samples x."""
        nets = {"teacher": as_net(weights(self.arrays, "teacher/")), "score": as_net(weights(self.arrays, "fake/"))}
        objective = objective or self.objective
        return self.matching.compare(objective, nets, self.rows, x, self.t, self.noise)[:2]

    def adversarial(self, x):
        """The published term of the adversary, with its weight."""
        t = self.t[:, None, None, None]
        logits = self.logits(None, None, (1 - t) * x + t * self.noise, self.t, self.rows)
        return float(self.arrays["dmd/gan_weight"]) * jax.nn.softplus(-logits).mean()

    def by_generator(self, compare):
        """(mean loss, gradient by the generator's weights, gradient by the samples)."""

        @jax.jit
        def found(params):
            loss, slopes = jax.value_and_grad(lambda params: compare(self.generated(params)))(params)
            return loss, slopes, jax.grad(compare)(self.generated(params))

        return found(weights(self.arrays, "generator/"))


def test_dmd(golden, x64):
    """The published gradient by weights is that with the adversary's term; the one by samples is without."""
    given = Given(golden)
    arrays = given.arrays
    np.testing.assert_allclose(given.generated(weights(arrays, "generator/")), arrays["x"], rtol=0, atol=TOLERANCE)
    alone, _, by_sample = given.by_generator(lambda x: given.compare(x)[0].mean())
    both, slopes, _ = given.by_generator(lambda x: given.compare(x)[0].mean() + given.adversarial(x))
    error = largest_difference(
        (alone, by_sample, both, slopes),
        (arrays["dmd/vsd_loss"], arrays["dmd/x_gradient"], arrays["dmd/loss"], gradients(arrays, "dmd")),
    )
    print(f"dmd: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("divergence", ["kl", "js", "sf", "neyman", "sh", "jf"])
def test_f_distill(divergence, golden, x64):
    """The published gradients, of two weights, are those with the adversary's term."""
    given = Given(golden, divergence=divergence)
    objective = dataclasses.replace(given.objective, adversary=Told(told=given.logits))
    objective.check()
    h = importance(divergence, density_ratio(jnp.asarray(given.arrays["logits"])))
    loss = given.compare(jnp.asarray(given.arrays["x"]), objective)[0].mean()
    _, slopes, _ = given.by_generator(lambda x: given.compare(x, objective)[0].mean() + given.adversarial(x))
    case = f"f_distill/{divergence}"
    some = gradients(given.arrays, case)
    expected = given.arrays[f"{case}/h"], given.arrays[f"{case}/loss"], some
    error = largest_difference((h, loss, {name: slopes[name] for name in some}), expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_f_distill_in_bins(golden, x64):
    arrays = golden("distribution_matching.npz")
    of = {name: arrays[f"f_distill/binned/{name}"] for name in ("bins_before", "bins_after", "h", "max_t", "ema")}
    ratio, level = density_ratio(jnp.asarray(arrays["logits"])), jnp.asarray(arrays["t"] / of["max_t"])
    ratio, means = per_bin(ratio, level, jnp.asarray(of["bins_before"]), float(of["ema"]))
    assert largest_difference((means, importance("kl", ratio)), (of["bins_after"], of["h"])) < TOLERANCE


@pytest.mark.parametrize("fit, case", [("F", "flow"), ("x", "x0")])
def test_the_auxiliary_network(fit, case, golden, x64):
    given = Given(golden, fit=fit)

    def loss(params):
        x = jnp.asarray(given.arrays["x"])
        return given.matching.learn(given.objective, as_net(params), given.rows, x, given.t, given.noise)[1].mean()

    found = jax.value_and_grad(loss)(weights(given.arrays, "fake/"))
    expected = given.arrays[f"fake/{case}_loss"], gradients(given.arrays, "fake", f"{case}_grad")
    error = largest_difference(found, expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_score_implicit_matching(golden, x64):
    """By the formula of the paper: the gradient runs through x_t, and through both networks."""
    given = Given(golden, gradient="sim")
    assert given.matching.offset == given.arrays["sim/c"]
    loss, slopes, _ = given.by_generator(lambda x: given.compare(x)[0].mean())
    rows = given.compare(jnp.asarray(given.arrays["x"]))[0]
    expected = given.arrays["sim/rows"], given.arrays["sim/loss"], gradients(given.arrays, "sim")
    error = largest_difference((rows, loss, slopes), expected)
    print(f"sim: {error:.1e}")
    assert error < TOLERANCE
