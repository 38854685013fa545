"""The adversary: published numbers, gradients by hand, and the direction in which samples are moved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import (
    GIVEN,
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
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions import weights as time_weights
from tim_jax.transitions.jump import expand, interpolate
from tim_jax.transitions.objectives.kinds import unweighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.terms.adversary import Adversary
from tim_jax.transitions.terms.rollout import jump_to_data
from tim_jax.types import Output


def trunk(params):
    """The hidden layer of a probe as the state after its only block."""

    def answer(q):
        return Output(q.x_t, taps=(hidden_layer(params, q.x_t, q.t, q.r, q.condition["label"])[:, None],))

    return lambda queries, taps: tuple(map(answer, queries))


def heads(h):
    """One head of several logits."""
    return lambda taps: taps[0] @ h.T


def discriminator(arrays):
    return weights(arrays, "discriminator/"), jnp.asarray(arrays["discriminator/h"])


@pytest.mark.parametrize("case", ["dmd", "hinge"])
def test_published_loss_of_the_student(case, golden, x64):
    """dmd: the gradient of all that is trained there, less that of distribution matching, which is given in x."""
    arrays = golden("distribution_matching.npz")
    objective = unweighted(OT_FM, GIVEN)
    rows = examples(arrays["real"], arrays["noise"], arrays["labels"])
    adversary = Adversary(loss="hinge" if case == "hinge" else "non_saturating")
    z, t, of_trunk = jnp.asarray(arrays["z"]), jnp.asarray(arrays["t"]), discriminator(arrays)

    def sample(params):
        start = jnp.ones(len(z))
        return z - probe(params, z, start, 0 * start, rows.condition["label"])

    def mean(params):
        x = sample(params)
        states = interpolate(OT_FM, x, rows.noise, t), rows.x
        nets = {"teacher": trunk(of_trunk[0]), "discriminator": heads(of_trunk[1])}
        logits = adversary.logits(objective, nets, states[0], t, rows)
        of_student, *_ = adversary.losses(objective, nets, rows, t, states)
        return of_student.mean(), (x, logits)

    params = weights(arrays, "generator/")
    (loss, found), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    if case == "hinge":
        expected = arrays["hinge/gen"], gradients(arrays, "hinge", "gen_grad")
    else:
        grads = jax.tree.map(lambda g: arrays["dmd/gan_weight"] * g, grads)
        (of_matching,) = jax.vjp(sample, params)[1](jnp.asarray(arrays["dmd/x_gradient"]))
        rest = {name: g - of_matching[name] for name, g in gradients(arrays, "dmd").items()}
        expected = arrays["dmd/gan_loss"], rest
        np.testing.assert_allclose(loss, arrays["bce/gen"], rtol=0, atol=TOLERANCE)
    error = largest_difference((loss, grads, *found), (*expected, arrays["x"], arrays["logits"]))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["disc", "hinge"])
def test_published_loss_of_the_heads(case, golden, x64):
    """There the trunk learns as well."""
    arrays = golden("distribution_matching.npz")
    objective = unweighted(OT_FM, GIVEN)
    rows = examples(arrays["real"], arrays["noise"], arrays["labels"])
    common = dict(trunk="score", blocks=(1,), trunk_weight=1.0)
    adversary = Adversary(loss="hinge", **common)
    if case == "disc":
        adversary = Adversary(**common, r1_weight=float(arrays["disc/r1_weight"]))
        assert adversary.r1_noise == arrays["disc/r1_alpha"]
    t = jnp.asarray(arrays["t"])
    states = jnp.asarray(arrays["x_t"]), interpolate(OT_FM, rows.x, rows.noise, t)
    moved = states[1] + adversary.r1_noise * arrays["r1_noise"]

    def mean(params):
        nets = {"score": trunk(params), "discriminator": heads(params["h"])}
        of_heads = adversary.losses(objective, nets, rows, t, (*states, moved) if case == "disc" else states)[1]
        return of_heads.mean()

    of_trunk, h = discriminator(arrays)
    loss, grads = jax.jit(jax.value_and_grad(mean))(of_trunk | {"h": h})
    value, folder = ("hinge/disc", "disc_grad") if case == "hinge" else ("disc/loss", "grad")
    expected = arrays[value]
    if case == "disc":
        expected = expected + arrays["disc/r1_weight"] * arrays["disc/approximate_r1"]
        assert arrays["disc/loss"] == arrays["bce/disc"]
    error = largest_difference((loss, grads), (expected, gradients(arrays, case, folder)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["guided", pytest.param("plain", marks=pytest.mark.slow)])
def test_sana_sprint(case, golden, monkeypatch, x64):
    """States, data and noise over σ_d. The published weight is 1/(σ_d tan t): σ_d moves into the learned one."""
    arrays, transport = golden("sana_sprint.npz"), TRANSPORTS["trigflow"]()
    monkeypatch.setattr(time_weights, "MAX_DIFFERENCE", np.inf)  # tan t of an example is 1,004
    sigma_d, t, t_disc = float(arrays["sigma_d"]), jnp.asarray(arrays["t"]), jnp.asarray(arrays["t_disc"])
    x, noise, of_samples, of_data = (
        jnp.asarray(arrays[name]) / sigma_d for name in ("x", "noise", "noise_disc", "noise_disc_real")
    )
    rows = examples(x, noise, arrays["labels"])
    objective = OBJECTIVES["scm_distillation"](transport)
    assert objective.tangent.normalise == arrays["c"]
    c = float(arrays["c"]) / sigma_d
    objective = dataclasses.replace(
        objective,
        tangent=dataclasses.replace(objective.tangent, normalise=c, total=True, warmup_steps=100),
        weight=dataclasses.replace(objective.weight, sigma_d=1e-300),
        adversary=Adversary(float(arrays["adv_lambda"]), "hinge", blocks=(1,)),
        teacher=Teacher(guidance=2.0 if case == "guided" else 1.0),
    )
    objective.check()
    of_trunk, h = discriminator(arrays)
    of_teacher = weights(arrays, "teacher/")

    def without_r(params):
        return params | {"b": jnp.zeros_like(params["b"])}

    def net(params):
        def answer(q):
            u = params["lv"][0] * q.t + params["lv"][1] + jnp.log(sigma_d)
            F = probe(without_r(params), q.x_t, q.t, q.r, q.condition["label"])
            return Output(F, heads={"log_variance": u})

        return lambda queries: tuple(map(answer, queries))

    def teacher(queries):
        """Examples have a guidance scale of their own: twice the ratio here is theirs."""
        (given,), *away = (as_net(without_r(of_teacher))((query,)) for query in queries)
        if case == "plain":
            return (given,)
        ((null,),) = away
        return Output(null.F + expand(jnp.asarray(arrays["guidance"]) / 2, null.F) * (given.F - null.F)), null

    def mean(params, h):
        nets = {"online": net(params), "teacher": teacher}
        losses = objective.loss(nets, rows, t, jnp.zeros_like(t), jnp.int32(100 * arrays[f"{case}/warmup"]))[0]
        losses = losses - jnp.log(sigma_d)
        sample = jump_to_data(objective, nets, rows, interpolate(transport, x, noise, t), t)
        states = interpolate(transport, sample, of_samples, t_disc), interpolate(transport, x, of_data, t_disc)
        seen = {"teacher": trunk(without_r(of_trunk)), "discriminator": heads(h)}
        of_student, of_heads, _ = objective.adversary.losses(objective, seen, rows, t_disc, states)
        total = (losses + objective.adversary.weight * of_student).mean()
        return total + of_heads.mean(), (losses, sample, of_student.mean(), of_heads.mean(), total)

    params = weights(arrays) | {"lv": jnp.asarray(arrays["lv"])}
    (grads, of_h), found = jax.jit(jax.grad(mean, (0, 1), has_aux=True))(params, h)
    rows_there, sample, of_student, total = (
        arrays[f"{case}/{name}"] for name in ("rows", "pred_x0", "adv_loss", "total")
    )
    expected = rows_there, sample / sigma_d, of_student, arrays["disc/loss"], total
    error = largest_difference((found, grads, of_h), (expected, gradients(arrays, case), arrays["disc/grad/h"]))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE
