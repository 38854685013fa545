"""Rewards of the student's samples: values and gradients by hand, and how far descent goes on a Gaussian."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, plain_times, random, rows_of, wave
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.objectives.kinds import DIAGONAL, unweighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.rewards import OF_SCORES, OF_TARGET, brightness
from tim_jax.transitions.terms.reward import Reward
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.types import ClassScores, Output


def rows():
    return rows_of(random(0), random(1))


def waves(theta):
    return {"online": lambda queries: tuple(Output(wave(theta * q.x_t, q.t, q.r)) for q in queries)}


def rewarded(reward, max_jumps=1):
    objective = OBJECTIVES["tim"](plain_times("ot_fm"))
    return dataclasses.replace(objective, reward=reward, rollout=Rollout(max_jumps))


def of_term(objective, nets):
    x = objective.rollout(objective, nets, rows(), jax.random.key(7))
    loss, of_auxiliary, metrics = objective.reward(objective, nets, rows(), x, LATE, jax.random.key(0))
    assert not of_auxiliary.any() and loss.shape == (len(x),)
    return loss, metrics["reward"], x


@pytest.mark.parametrize("max_jumps", [1, 3])
@pytest.mark.parametrize("margin", [0.0, -0.7])
def test_gradients_by_hand(margin, max_jumps, x64):
    """−1/n from every value that can be shown, of images below the margin; through the last jump alone."""
    objective = rewarded(Reward(1.0, margin=margin), max_jumps)
    loss, moves = jax.jvp(lambda theta: of_term(objective, waves(theta)), (0.3,), (1.0,))
    (losses, reward, x), (slope, _, dx) = loss, moves
    shown = np.abs(x) < 1
    assert 0.2 < shown.mean() < 0.99, "else clipping is not seen"
    np.testing.assert_allclose(reward, np.clip(x, -1, 1).mean((1, 2, 3)), rtol=1e-12)
    expected = -(shown * dx).mean((1, 2, 3))
    if margin:
        below = np.asarray(reward) < margin
        assert 0 < below.sum() < len(below)
        expected = below * expected
    np.testing.assert_allclose(losses, np.maximum(margin - reward, 0) if margin else -reward, rtol=1e-12)
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-15)


def test_rewards_of_scores_by_hand(x64):
    """The null label, which is none of the classes, has no reward and moves nothing."""
    logits, label = np.array([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0], [9.0, 1.0, 1.0]]), np.array([1, 0, 3])
    condition = {"label": jnp.asarray(label)}
    found = OF_SCORES["classifier"](ClassScores(jnp.zeros((3, 3)), jnp.asarray(logits)), condition)
    of_labels = [np.log(np.exp(row)[y] / np.exp(row).sum()) for row, y in zip(logits[:2], label[:2], strict=True)]
    np.testing.assert_allclose(found, [*of_labels, 0.0], rtol=1e-12)
    cosines = jnp.asarray(logits) / 10
    np.testing.assert_allclose(OF_SCORES["similarity"](ClassScores(cosines, cosines), condition), [0.3, 0.05, 0.0])
    slope = jax.grad(lambda c: OF_SCORES["similarity"](ClassScores(c, c), condition).sum())(cosines)
    np.testing.assert_array_equal(slope, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_the_likeness_to_an_image_by_hand(x64):
    """Cosines of vectors of length 1, each with its own target or all with one."""
    angles = np.array([0.1, 1.2, 2.9])
    features = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    like = OF_TARGET["image_similarity"]
    scores = ClassScores(features, features, features)
    np.testing.assert_allclose(like(scores, {"target": features[::-1]}), np.cos(angles - angles[::-1]), rtol=1e-12)
    np.testing.assert_allclose(like(scores, {"target": features[1:2]}), np.cos(angles - 1.2), rtol=1e-12)


@pytest.mark.parametrize("name", OF_SCORES)
def test_a_classifier_sees_the_samples_themselves(name, x64):
    """Of latents no value is cut off."""
    weights = random(2, (SHAPE[1] * SHAPE[2] * SHAPE[3], 5))

    def scores(x):
        products = x.reshape(len(x), -1) @ weights
        return ClassScores(jnp.tanh(products), products)

    objective, nets = rewarded(Reward(1.0, name)), waves(0.3)
    assert objective.networks == (*OBJECTIVES["tim"](plain_times("ot_fm")).networks, "classifier")
    losses, _, x = of_term(objective, nets | {"classifier": scores})
    np.testing.assert_allclose(losses, -OF_SCORES[name](scores(x), rows().condition), rtol=1e-12)


@pytest.mark.parametrize("name", ["tim", "flow_matching", "drifting"])
def test_the_term_is_in_the_loss_and_costs_nothing_without_weight(name, x64):
    alone, key = OBJECTIVES[name](plain_times("ot_fm")), jax.random.key(3)
    if name == "drifting":
        alone = dataclasses.replace(alone, drift=dataclasses.replace(alone.drift, samples=4))

    def loss(reward):
        objective = dataclasses.replace(alone, reward=reward)
        return lambda theta: objective(waves(theta), rows(), LATE, key)

    program, without = (str(jax.make_jaxpr(loss(reward))(0.3)) for reward in (Reward(), Reward(0.0, "similarity", 0.5)))
    assert program == without != str(jax.make_jaxpr(loss(Reward(0.7)))(0.3))
    (before, _), (after, metrics) = jax.jit(lambda theta: (loss(Reward())(theta), loss(Reward(0.7))(theta)))(0.3)
    np.testing.assert_allclose(after, before - 0.7 * metrics["reward"], rtol=1e-12)
    assert np.abs(metrics["reward"]).min() > 1e-4


def test_the_mean_of_a_gaussian_moves_as_far_as_the_loss_on_data_lets_it(x64):
    """Of networks exact for N(δ, s²) the loss is c δ² more than at δ = 0, c = E (t/S_t²)², and the reward δ more.

    So δ = λ/(2 c) is the minimum, at the Fréchet distance δ².
    """
    weight, std, count = 0.3, 0.2, 4096
    transport = plain_times("ot_fm")
    alone = unweighted(transport, DIAGONAL)
    objective = dataclasses.replace(alone, reward=Reward(weight))
    x, noise = std * random(0, (count, 1, 1, 1)), random(1, (count, 1, 1, 1))
    data, key = rows_of(x, noise), jax.random.key(0)

    def nets(mean):
        gaussian = Gaussian(transport, mean, std)
        return {"online": lambda queries: tuple(answer(gaussian.F(q.x_t, q.t, q.r), q.x_t) for q in queries)}

    @jax.jit
    def slopes(mean):
        def loss(mean, objective):
            losses, metrics = objective(nets(mean), data, LATE, key)
            return losses.mean(), metrics

        grad = jax.grad(loss, has_aux=True)
        return grad(mean, alone)[0], *grad(mean, objective)

    slope, _, at_start = slopes(0.0)
    t = at_start["t"]
    c = jnp.mean((t / (((1 - t) * std) ** 2 + t**2)) ** 2)
    best = float((weight - slope) / (2 * c))  # slope: of a finite number of examples, whose own mean is not quite 0
    assert 0.01 < best < 0.2 and abs(slope) < 0.2 * weight
    _, none, at_best = slopes(best)
    assert abs(none) < 1e-9
    np.testing.assert_allclose(at_best["reward"] - at_start["reward"], best, rtol=1e-9)
    sample = alone.rollout(alone, nets(best), data, jax.random.key(1))
    np.testing.assert_allclose(brightness(sample, data.condition), sample[:, 0, 0, 0])
    assert abs(sample.mean() - best) < 0.02 and abs(sample.std() - std) < 0.01, "its spread is what it was"
