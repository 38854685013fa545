"""Score distillation beside consistency: its terms, their gradients and its rollouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, plain_times, random, rows_of, wave
from tests.transitions.test_distillation import column, nets_with_teacher, some_velocity
from tests.transitions.test_papers import by_wave, moving_rows, student
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Output


class Toy:
    """rcm on OT-FM with networks of one parameter each."""

    def __init__(self, rollout=1):
        objective = OBJECTIVES["rcm"](plain_times("ot_fm"))
        self.objective = dataclasses.replace(objective, score=dataclasses.replace(objective.score, max_jumps=rollout))
        self.rows = rows_of(random(0), random(1))

    def terms(self, theta, score, teacher=some_velocity):
        def net(F):
            return lambda queries: tuple(Output(F(q.x_t, q.t, q.r)) for q in queries)

        nets = {
            "online": net(lambda x, t, r: wave(theta * x, t, r)),
            "score": net(lambda x, t, r: score * some_velocity(x, t)),
            "teacher": net(lambda x, t, r: teacher(x, t)),
        }
        distillation, fit = self.objective.score_terms(nets, self.rows, jax.random.key(0))
        return distillation.sum(), fit.sum()


def test_gradients_of_student_and_score_are_separate(x64):
    for rollout in (1, 3):
        toy = Toy(rollout)
        of_student = jax.jacrev(toy.terms, argnums=0)(0.8, 0.5)
        of_score = jax.jacrev(toy.terms, argnums=1)(0.8, 0.5)
        assert of_student[1] == 0 and of_score[0] == 0
        assert abs(of_student[0]) > 1e-3 and abs(of_score[1]) > 1e-3


def test_score_distillation_by_hand(x64):
    """Its gradient in x̂ is 2 (x̂_S − x̂_T)/m, from the teacher's data to the score's; nothing where they agree."""
    toy = Toy()
    assert toy.terms(0.8, 1.0)[0] < 1e-20
    rollout_key, time_key, noise_key = jax.random.split(jax.random.key(0), 3)

    def rollout(theta):
        nets = {"online": lambda queries: tuple(Output(wave(theta * q.x_t, q.t, q.r)) for q in queries)}
        return toy.objective.rollout(nets, toy.rows, rollout_key)

    sample, moves = jax.jvp(rollout, (0.8,), (1.0,))
    assert sample.shape == SHAPE and len(jnp.unique(sample)) == sample.size
    t = toy.objective.times.draw_t(toy.objective.transport, time_key, (len(sample),), positions=4)
    T, noise = column(t), jax.random.normal(noise_key, SHAPE, sample.dtype)
    x_t = (1 - T) * sample + T * noise
    v = some_velocity(x_t, t)
    x_teacher, x_score = x_t - T * v, x_t - T * 0.5 * v
    size = jnp.mean(jnp.abs(sample - x_teacher), axis=(1, 2, 3), keepdims=True) + 1e-6
    pull = 2 * (x_score - x_teacher) / size / sample[0].size
    of_student = jax.grad(lambda theta: toy.terms(theta, 0.5)[0])(0.8)
    np.testing.assert_allclose(of_student, jnp.sum(pull * moves), rtol=1e-9)
    fit = jnp.mean((0.5 * v - (noise - sample)) ** 2, axis=(1, 2, 3)).sum()
    np.testing.assert_allclose(toy.terms(0.8, 0.5)[1], fit, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.01, 3.0])
def test_both_terms_of_the_score_are_in_the_loss(weight, x64):
    x, noise, t, r = moving_rows()
    rows, nets = rows_of(x, noise), nets_with_teacher() | {"score": student(by_wave)["online"]}
    objective = OBJECTIVES["rcm"](plain_times("ot_fm"))
    objective = dataclasses.replace(objective, score=dataclasses.replace(objective.score, weight=weight))
    loss, metrics = objective.loss(nets, rows, t, r, LATE, jax.random.key(3))
    alone, _ = OBJECTIVES["scm_distillation"](plain_times("ot_fm")).loss(nets, rows, t, r, LATE)
    distillation, fit = metrics["score_distillation"], metrics["score_error"]
    assert min(distillation.min(), fit.min()) > 1e-4
    np.testing.assert_allclose(loss, alone + weight * distillation + fit, rtol=1e-9)


@pytest.mark.parametrize("transport", ["ot_fm", "trigflow", "edm"])
@pytest.mark.parametrize("rollout", [1, 3])
def test_rollouts_of_the_exact_flow_map_are_data(transport, rollout):
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    objective = OBJECTIVES["rcm"](transport)
    objective = dataclasses.replace(objective, score=dataclasses.replace(objective.score, max_jumps=rollout))
    rows = rows_of(jnp.zeros((40_000, 1, 1, 1)), jnp.zeros((40_000, 1, 1, 1)))
    nets = {"online": lambda queries: tuple(answer(gaussian.F(q.x_t, q.t, q.r), q.x_t) for q in queries)}
    x = np.asarray(objective.rollout(nets, rows, jax.random.key(0)))
    assert abs(x.mean() - 0.3) < 0.02 and abs(x.std() - 0.6) < 0.02
