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
from tests.helpers.waves import LATE, answer, plain_times, random, rows_of
from tim_jax.transitions import TRANSPORTS, Times, mean_loss
from tim_jax.transitions import weights as time_weights
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import expand, interpolate
from tim_jax.transitions.objectives.kinds import unweighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.terms.adversary import LOSSES, Adversary
from tim_jax.transitions.terms.rollout import Rollout, jump_to_data
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


class Toy:
    """Probes as student and score, and heads on the hidden layer of the score."""

    def __init__(self, **settings):
        adversary = Adversary(0.7, trunk="score", blocks=(1,), trunk_weight=0.3, r1_weight=2.0, **settings)
        objective = dataclasses.replace(OBJECTIVES["rcm"](OT_FM), adversary=adversary, rollout=Rollout(1))
        objective.check()
        rng = np.random.default_rng(0)
        shapes = {"W1": (7, 12), "a": 7, "b": 7, "d": 7, "e": (5, 7), "W2": (12, 7)}
        self.params = {
            name: {weight: jnp.asarray(0.5 * rng.standard_normal(shape)) for weight, shape in shapes.items()}
            for name in ("online", "score", "score_average")
        }
        for name in ("discriminator", "discriminator_average"):
            self.params[name] = jnp.asarray(rng.standard_normal((3, 7)))
        self.objective, self.adversary = objective, adversary
        x, noise = rng.standard_normal((2, 6, 2, 2, 3))
        self.rows = examples(x + 1, noise, jnp.arange(6) % 4)

    def nets(self, params):
        made = {"online": as_net(params["online"])}
        made |= {name: trunk(params[name]) for name in params if name.startswith("score")}
        return made | {name: heads(params[name]) for name in params if name.startswith("discriminator")}

    def sample(self, params):
        return self.objective.rollout(self.objective, self.nets(params), self.rows, jax.random.key(1))

    def losses(self, params):
        """Those of the student and of the networks beside it, as a step has them."""
        nets, key = self.nets(params), jax.random.key(0)
        of_student, of_heads, _ = self.adversary(self.objective, nets, self.rows, self.sample(params), LATE, key)
        return 0.7 * of_student.mean(), of_heads.mean()

    def alone(self, params):
        """That of a further update."""
        nets, x = self.nets(params), jax.lax.stop_gradient(self.sample(params))
        return self.adversary.auxiliary_loss(self.objective, nets, self.rows, x, LATE, jax.random.key(0)).mean()


@pytest.mark.parametrize("loss", ["hinge", pytest.param("non_saturating", marks=pytest.mark.slow)])
@pytest.mark.parametrize("averaged", [False, True])
def test_gradients_of_student_heads_and_trunk_by_hand(loss, averaged, x64):
    toy = Toy(loss=loss, distribution="logit_normal", P_mean=0.2)
    params = {name: p for name, p in toy.params.items() if averaged or not name.endswith("average")}
    t, states = toy.adversary.noised(toy.objective, toy.rows, toy.sample(params), jax.random.key(0))
    relu, softplus = lambda d: jnp.maximum(d, 0), lambda d: jnp.log1p(jnp.exp(d))
    of_sample, of_both = {
        "hinge": (lambda d: -d, lambda d, e: 0.5 * relu(1 + d) + 0.5 * relu(1 - e)),
        "non_saturating": (lambda d: softplus(-d), lambda d, e: softplus(d) + softplus(-e)),
    }[loss]

    def logits(trunk, h, x_t):
        return hidden_layer(trunk, x_t, t, t, toy.rows.condition["label"]) @ h.T

    def of_student(online):
        x = toy.sample(params | {"online": online})
        noised = states[0] + expand(1 - t, x) * (x - jax.lax.stop_gradient(x))
        end = "_average" if averaged else ""
        return 0.7 * of_sample(logits(params["score" + end], params["discriminator" + end], noised)).mean()

    def of_heads(h, trunk):
        sample, data, moved = (logits(trunk, h, x_t) for x_t in states)
        return of_both(sample, data).mean() + 2.0 * ((data - moved) ** 2).mean()

    found = jax.jit(jax.grad(lambda p: sum(toy.losses(p))))(params)
    of_h, of_trunk = jax.jit(jax.grad(of_heads, (0, 1)))(params["discriminator"], params["score"])
    none = jax.tree.map(jnp.zeros_like, params)
    expected = none | {
        "online": jax.jit(jax.grad(of_student))(params["online"]),
        "discriminator": of_h,
        "score": jax.tree.map(lambda g: 0.3 * g, of_trunk),
    }
    assert all(largest_difference(expected[name], none[name]) > 1e-3 for name in ("online", "discriminator", "score"))
    assert largest_difference(found, expected) < TOLERANCE
    further = jax.jit(jax.grad(toy.alone))(params)
    assert largest_difference(further, expected | {"online": none["online"]}) < TOLERANCE


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_go_where_the_heads_take_them_for_data(loss, x64):
    """Descent moves samples up where logits grow with the mean of a state, and has logits grow where data lie."""
    objective = dataclasses.replace(unweighted(OT_FM, Times("uniform")), adversary=Adversary(1.0, loss, blocks=(1,)))
    rows = examples(jnp.full((64, 2, 2, 3), 2.0), jnp.zeros((64, 2, 2, 3)), jnp.zeros(64, int))

    def losses(mean, h):
        nets = {
            "online": lambda queries: tuple(Output((q.x_t - mean) / expand(q.t, q.x_t)) for q in queries),
            "teacher": lambda queries, taps: tuple(Output(q.x_t, taps=(q.x_t[:, 0],)) for q in queries),
            "discriminator": lambda taps: h * taps[0].mean(axis=2)[:, None],
        }
        loss, metrics = objective(nets, rows, LATE, jax.random.key(0))
        return metrics["adversary"].mean(), metrics["discriminator"].mean()

    (moves, no_heads), (no_student, grows) = jax.jit(jax.jacrev(losses, (0, 1)))(-1.0, 0.1)
    assert moves < -1e-3 and grows < -1e-3 and no_heads == no_student == 0


def test_some_samples_come_from_noised_data(x64):
    """Those of the exact flow map are data still, and half of them know the data that they started from."""
    gaussian = Gaussian(plain_times("ot_fm"), mean=0.3, std=0.6)
    objective = dataclasses.replace(OBJECTIVES["rcm"](plain_times("ot_fm")), rollout=Rollout(2, from_noise=0.5))
    x = 0.3 + 0.6 * random(0, (20_000, 1, 1, 1))
    nets = {"online": lambda queries: tuple(answer(gaussian.F(q.x_t, q.t, q.r), q.x_t) for q in queries)}
    rows = rows_of(x, x)
    t, start = objective.rollout.start(objective, rows, jax.random.key(0))
    pure = np.asarray(t == 1)
    assert abs(pure.mean() - 0.5) < 0.02 and not start[pure].any() and (start[~pure] == x[~pure]).all()
    sample = np.asarray(objective.rollout(objective, nets, rows, jax.random.key(0)))
    assert abs(sample.mean() - 0.3) < 0.02 and abs(sample.std() - 0.6) < 0.02
    assert 0.1 < np.corrcoef(sample.ravel(), np.asarray(x).ravel())[0, 1] < 0.5


def test_with_networks_of_ones_own_one_loss_trains_student_and_heads():
    objective = dataclasses.replace(OBJECTIVES["flow_matching"](OT_FM), adversary=Adversary(1.0, blocks=(3,)))
    x = jax.random.normal(jax.random.key(0), (8, 2))

    def teacher(x, t, r, taps=()):
        return Output(x, taps=tuple(jnp.tanh(block * x)[:, None] for block in taps))

    def loss(params):
        def discriminator(states):
            assert [state.shape for state in states] == [(8, 1, 2)]
            return states[0].sum(axis=2)[:, None] * params[1]

        def student(x, t, r):
            return params[0] * x

        given = dict(teacher=teacher, discriminator=discriminator)
        return mean_loss(objective, student, x, jax.random.key(1), **given)[0]

    slopes = jax.jit(jax.grad(loss))(jnp.array([0.5, 0.3]))
    assert jnp.abs(slopes).min() > 1e-3
    with pytest.raises(ValueError, match="also calls 'discriminator'; give discriminator=, a function of states"):
        mean_loss(objective, lambda x, t, r: x, x, jax.random.key(1), teacher=teacher)
