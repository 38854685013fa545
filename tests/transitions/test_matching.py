"""Distribution matching: its terms, their gradients and the student's samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, plain_times, random, rows_of, wave
from tests.transitions.test_distillation import column, nets_with_teacher, some_velocity
from tests.transitions.test_papers import by_wave, student
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.terms.matching import Matching
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.types import Output


class Toy:
    """rcm on OT-FM with networks of one parameter each."""

    def __init__(self, max_jumps=1):
        objective = OBJECTIVES["rcm"](plain_times("ot_fm"))
        self.objective = dataclasses.replace(objective, rollout=Rollout(max_jumps))
        self.rows = rows_of(random(0), random(1))

    def nets(self, theta, score, teacher=some_velocity):
        def net(F):
            return lambda queries: tuple(Output(F(q.x_t, q.t, q.r)) for q in queries)

        return {
            "online": net(lambda x, t, r: wave(theta * x, t, r)),
            "score": net(lambda x, t, r: score * some_velocity(x, t)),
            "teacher": net(lambda x, t, r: teacher(x, t)),
        }

    def sample(self, theta):
        return self.objective.rollout(self.objective, self.nets(theta, 0.0), self.rows, jax.random.key(7))

    def terms(self, theta, score):
        nets, x = self.nets(theta, score), self.sample(theta)
        matching = self.objective.matching
        of_student, of_score, _ = matching(self.objective, nets, self.rows, x, LATE, jax.random.key(0))
        alone = matching.auxiliary_loss(self.objective, nets, self.rows, x, LATE, jax.random.key(0))
        return of_student.sum(), of_score.sum(), alone.sum()


@pytest.mark.parametrize("max_jumps", [1, 3])
def test_gradients_of_student_and_score_are_separate(max_jumps, x64):
    toy = Toy(max_jumps)
    of_student = jax.jacrev(toy.terms, argnums=0)(0.8, 0.5)
    of_score = jax.jacrev(toy.terms, argnums=1)(0.8, 0.5)
    assert of_student[1] == 0 and of_score[0] == 0
    assert abs(of_student[0]) > 1e-3 and abs(of_score[1]) > 1e-3
    assert of_score[1] == of_score[2], "updates of the score alone are the same"


def test_matching_by_hand(x64):
    """Its gradient in x̂ is (x̂_S − x̂_T)/m, from the teacher's data to the score's; nothing where they agree."""
    toy = Toy()
    assert toy.terms(0.8, 1.0)[0] < 1e-20
    time_key, noise_key = jax.random.split(jax.random.key(0))
    sample, moves = jax.jvp(toy.sample, (0.8,), (1.0,))
    assert sample.shape == SHAPE and len(jnp.unique(sample)) == sample.size
    t = toy.objective.times.draw_t(toy.objective.transport, time_key, (len(sample),), positions=4)
    T, noise = column(t), jax.random.normal(noise_key, SHAPE, sample.dtype)
    x_t = (1 - T) * sample + T * noise
    v = some_velocity(x_t, t)
    x_teacher, x_score = x_t - T * v, x_t - T * 0.5 * v
    size = jnp.mean(jnp.abs(sample - x_teacher), axis=(1, 2, 3), keepdims=True) + 1e-6
    pull = (x_score - x_teacher) / size / sample[0].size
    of_student = jax.grad(lambda theta: toy.terms(theta, 0.5)[0])(0.8)
    np.testing.assert_allclose(of_student, jnp.sum(pull * moves), rtol=1e-9)
    fit = jnp.mean((0.5 * v - (noise - sample)) ** 2, axis=(1, 2, 3)).sum()
    np.testing.assert_allclose(toy.terms(0.8, 0.5)[1], fit, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_both_terms_of_matching_are_in_the_loss(weight, x64):
    rows, key = rows_of(random(0), random(1)), jax.random.key(3)
    nets = nets_with_teacher() | {"score": student(by_wave)["online"]}
    alone = OBJECTIVES["scm_distillation"](plain_times("ot_fm"))
    objective = dataclasses.replace(alone, matching=Matching(weight), rollout=Rollout(2))
    assert set(objective.auxiliary) == {"score"} and not alone.auxiliary
    loss, metrics = objective(nets, rows, LATE, key)
    distillation, fit = metrics["score_distillation"], metrics["score_error"]
    assert min(distillation.min(), fit.min()) > 1e-4
    np.testing.assert_allclose(loss, alone(nets, rows, LATE, key)[0] + weight * distillation + fit, rtol=1e-9)


@pytest.mark.parametrize("transport", ["ot_fm", "trigflow", "edm"])
@pytest.mark.parametrize("max_jumps", [1, 3])
def test_samples_of_the_exact_flow_map_are_data(transport, max_jumps):
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    objective = OBJECTIVES["rcm"](transport)
    rows = rows_of(jnp.zeros((40_000, 1, 1, 1)), jnp.zeros((40_000, 1, 1, 1)))
    nets = {"online": lambda queries: tuple(answer(gaussian.F(q.x_t, q.t, q.r), q.x_t) for q in queries)}
    x = np.asarray(Rollout(max_jumps)(objective, nets, rows, jax.random.key(0)))
    assert abs(x.mean() - 0.3) < 0.02 and abs(x.std() - 0.6) < 0.02
