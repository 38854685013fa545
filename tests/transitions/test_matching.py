"""Distribution matching: its terms, their gradients and the student's samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.adversaries import Told
from tests.helpers.waves import LATE, SHAPE, answer, plain_times, random, rows_of, wave
from tests.transitions.test_distillation import column, nets_with_teacher, some_velocity
from tests.transitions.test_papers import by_wave, student
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.terms.divergences import DIVERGENCES, importance
from tim_jax.transitions.terms.matching import Matching
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.types import Auxiliary, Output


class Toy:
    """rcm on OT-FM with networks of one parameter each."""

    def __init__(self, max_jumps=1, **settings):
        objective = OBJECTIVES["rcm"](plain_times("ot_fm"))
        matching = dataclasses.replace(objective.matching, **settings)
        self.objective = dataclasses.replace(objective, rollout=Rollout(max_jumps), matching=matching)
        self.rows = rows_of(random(0), random(1))

    def nets(self, theta, score, teacher=some_velocity, average=None):
        def net(F):
            return lambda queries: tuple(Output(F(q.x_t, q.t, q.r)) for q in queries)

        made = {
            "online": net(lambda x, t, r: wave(theta * x, t, r)),
            "score": net(lambda x, t, r: score * some_velocity(x, t)),
            "teacher": net(lambda x, t, r: teacher(x, t)),
        }
        return made if average is None else made | {"score_average": net(lambda x, t, r: average * some_velocity(x, t))}

    def sample(self, theta):
        return self.objective.rollout(self.objective, self.nets(theta, 0.0), self.rows, jax.random.key(7))

    def terms(self, theta, score, average=None):
        nets, x = self.nets(theta, score, average=average), self.sample(theta)
        matching = self.objective.matching
        of_student, of_score, _ = matching(self.objective, nets, self.rows, x, LATE, jax.random.key(0))
        alone = matching.auxiliary_loss(self.objective, nets, self.rows, x, LATE, jax.random.key(0))
        return of_student.sum(), of_score.sum(), alone.sum()


@pytest.mark.parametrize("max_jumps, gradient", [(1, "vsd"), (3, "vsd"), (1, "sim")])
def test_gradients_of_student_and_score_are_separate(max_jumps, gradient, x64):
    toy = Toy(max_jumps, gradient=gradient)
    of_student = jax.jit(jax.jacrev(toy.terms, argnums=0))(0.8, 0.5)
    of_score = jax.jit(jax.jacrev(toy.terms, argnums=1))(0.8, 0.5)
    assert of_student[1] == 0 and of_score[0] == 0
    assert abs(of_student[0]) > 1e-3 and abs(of_score[1]) > 1e-3
    assert of_score[1] == of_score[2], "updates of the score alone are the same"


@pytest.mark.parametrize("gradient", ["vsd", "sim"])
def test_an_average_stands_for_the_score_where_it_does_not_learn(gradient, x64):
    averaged = Toy(gradient=gradient, network=Auxiliary(average=0.9))
    assert averaged.objective.networks == ("online", "teacher", "score", "score_average")
    slopes_of = jax.jit(jax.value_and_grad(lambda *a: averaged.terms(*a)[0], argnums=(0, 1, 2)))
    found, slopes = slopes_of(0.8, 0.5, 0.7)
    same, slope = jax.jit(jax.value_and_grad(lambda theta: Toy(gradient=gradient).terms(theta, 0.7)[0]))(0.8)
    np.testing.assert_allclose((found, slopes[0]), (same, slope), rtol=1e-12)
    assert slopes[1:] == (0, 0)
    assert averaged.terms(0.8, 0.5, 0.7)[1] == Toy().terms(0.8, 0.5)[1]


def test_matching_by_hand(x64):
    """Its gradient in x̂ is (x̂_S − x̂_T)/m, from the teacher's data to the score's; nothing where they agree."""
    toy = Toy(min_quantile=0.1, max_quantile=0.6)
    assert toy.terms(0.8, 1.0)[0] < 1e-20
    sample, moves = jax.jvp(toy.sample, (0.8,), (1.0,))
    assert sample.shape == SHAPE and len(jnp.unique(sample)) == sample.size
    t, noise = toy.objective.matching.draw(toy.objective, sample, jax.random.key(0))
    assert noise.shape == SHAPE and abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2
    T = column(t)
    x_t = (1 - T) * sample + T * noise
    v = some_velocity(x_t, t)
    x_teacher, x_score = x_t - T * v, x_t - T * 0.5 * v
    size = jnp.mean(jnp.abs(sample - x_teacher), axis=(1, 2, 3), keepdims=True) + 1e-6
    pull = (x_score - x_teacher) / size / sample[0].size
    of_student = jax.grad(lambda theta: toy.terms(theta, 0.5)[0])(0.8)
    np.testing.assert_allclose(of_student, jnp.sum(pull * moves), rtol=1e-9)
    fit = jnp.mean((0.5 * v - (noise - sample)) ** 2, axis=(1, 2, 3)).sum()
    np.testing.assert_allclose(toy.terms(0.8, 0.5)[1], fit, rtol=1e-9)


@pytest.mark.parametrize("name", ["rcm", "distribution_matching"])
def test_times_are_those_of_the_objective_without_its_ends(name):
    """For uniform times within shares of the time domain, as DMD2 has them."""
    objective = OBJECTIVES[name](plain_times("ot_fm"))
    matching = dataclasses.replace(objective.matching, min_quantile=0.02, max_quantile=0.9)
    t, _ = matching.draw(objective, jnp.zeros((20_000, 1)), jax.random.key(0))
    low, high = objective.times.quantile(objective.transport, jnp.array([0.02, 0.9]))
    assert low <= t.min() < low + 0.01 and high - 0.01 < t.max() <= high
    if name == "distribution_matching":
        np.testing.assert_allclose((low, high), (0.02, 0.9), rtol=1e-6)
        np.testing.assert_allclose(np.quantile(t, [0.25, 0.5, 0.75]), [0.24, 0.46, 0.68], atol=0.01)


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


# f of each divergence D_f = E_student[f(p_data/p_student)].
OF_RATIO = {
    "rkl": lambda r: -jnp.log(r),
    "kl": lambda r: r * jnp.log(r),
    "js": lambda r: r * jnp.log(r) - (1 + r) * jnp.log((1 + r) / 2),
    "sf": lambda r: (1 + r) * jnp.log((1 + r) / r),
    "neyman": lambda r: (1 - r) ** 2 / r,
    "sh": lambda r: (1 - jnp.sqrt(r)) ** 2,
    "jf": lambda r: (r - 1) * jnp.log(r),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weights_of_a_divergence(divergence, x64):
    """h = ρ² f″(ρ), up to a factor; and of mean 1."""
    ratio = jnp.linspace(0.1, 5.0, 50)
    second = jax.vmap(jax.grad(jax.grad(OF_RATIO[divergence])))(ratio)
    factors = ratio**2 * second / DIVERGENCES[divergence](ratio)
    np.testing.assert_allclose(factors, factors[0], rtol=1e-9)
    assert factors[0] > 0
    assert importance(divergence, ratio).mean() == pytest.approx(1, abs=1e-5)


class GaussianStudent:
    """Samples m + s z of a student of two parameters, against data N(0.3, 0.6²); all else is exact.

    Teacher and score have the posterior means of data and samples, and logits are log p_data(x_t)/p_student(x_t).
    """

    data = (0.3, 0.6)

    def __init__(self, transport, gradient, divergence, bins=0, count=4096):
        self.transport, self.z = plain_times(transport), random(0, (count, 1, 1, 1))
        matching = Matching(weight=1.0, gradient=gradient, divergence=divergence, bins=bins)
        objective = OBJECTIVES["distribution_matching"](self.transport)
        self.objective = dataclasses.replace(objective, matching=matching, adversary=Told(told=self.logits))
        self.objective.check()
        self.rows = rows_of(jnp.zeros_like(self.z), jnp.zeros_like(self.z))

    def logits(self, objective, nets, x_t, t, examples):
        def log_density(gaussian):
            T = column(t)
            std = gaussian.marginal_std(T)
            return -0.5 * ((x_t - self.transport.alpha(T) * gaussian.mean) / std) ** 2 - jnp.log(std)

        return (log_density(nets["teacher"].gaussian) - log_density(nets["score"].gaussian)).reshape(len(t), 1)

    def net(self, law):
        gaussian = Gaussian(self.transport, *law)

        def net(queries):
            return tuple(Output(gaussian.F(q.x_t, q.t, q.r)) for q in queries)

        net.gaussian = gaussian
        return net

    def slope(self, law, score, key=None):
        """The gradient of the student's mean loss in (m, s), where the score is that of another (m, s)."""
        nets = {"teacher": self.net(self.data), "score": self.net(score)}
        key = jax.random.key(3) if key is None else key

        def loss(law):
            x = law[0] + law[1] * self.z
            return self.objective.matching(self.objective, nets, self.rows, x, LATE, key)[0].mean()

        return jnp.stack(jax.jit(jax.grad(loss))(law))


CHOICES = [("vsd", divergence, 0) for divergence in DIVERGENCES] + [("vsd", "kl", 4), ("sim", "rkl", 0)]


@pytest.mark.parametrize(
    "transport, gradient, divergence, bins",
    [
        pytest.param(t, *choice, marks=[] if t == "ot_fm" else pytest.mark.slow)
        for t in TRANSPORTS
        for choice in CHOICES
    ],
)
def test_the_exact_student_stays_and_any_other_moves_to_the_data(transport, gradient, divergence, bins, x64):
    """At the data's law there is no gradient; elsewhere it points away from it, so that descent comes near."""
    student = GaussianStudent(transport, gradient, divergence, bins)
    slope = jax.jit(lambda law, score: student.slope(tuple(law), tuple(score)))
    data = jnp.array(student.data)
    assert abs(slope(data, data)).max() < 1e-12
    assert abs(slope(data, data.at[0].add(0.2))).max() > 1e-3, "it is the score that says so"
    for off in ([0.4, 0.0], [-0.4, 0.0], [0.0, 0.3], [0.0, -0.2], [0.4, 0.3], [-0.4, -0.2]):
        away = jnp.array(off)
        assert jnp.vdot(slope(data + away, data + away), away) > 1e-3 * jnp.linalg.norm(away), off


@pytest.mark.parametrize("transport", ["ot_fm", pytest.param("edm", marks=pytest.mark.slow)])
def test_implicit_matching_lowers_a_distance_of_the_scores(transport, x64):
    """Its gradient is that of E √(y² + c²) by the law of the score, at given states: by quadrature over x̂ and noise."""
    student = GaussianStudent(transport, "sim", "rkl", count=60**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, noise = (jnp.asarray(part).reshape(-1, 1, 1, 1) for part in np.meshgrid(nodes, nodes))
    share = jnp.asarray(np.outer(weights, weights).ravel()) / weights.sum() ** 2
    t, law = jnp.full(len(z), 0.5), jnp.array([0.7, 0.4])
    nets = {"teacher": student.net(student.data), "score": student.net(law)}
    x_t = interpolate(student.transport, law[0] + law[1] * z, noise, t)

    matching = dataclasses.replace(student.objective.matching, offset=0.5)  # smooth, so that quadrature is exact

    def loss(law):
        x = law[0] + law[1] * z
        return jnp.sum(share * matching.compare(student.objective, nets, student.rows, x, t, noise)[0])

    def distance(law):
        x_teacher, x_score = (
            Gaussian(student.transport, *each).posterior_means(x_t, t)[0] for each in (student.data, law)
        )
        return jnp.sum(share * jnp.sqrt((x_teacher - x_score).ravel() ** 2 + 0.5**2))

    found, expected = (jax.jit(jax.grad(of))(law) for of in (loss, distance))
    assert abs(expected).min() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("gradient, divergence", [("vsd", "rkl"), ("vsd", "js"), ("sim", "rkl")])
def test_descent_brings_a_gaussian_student_to_the_data(gradient, divergence, sign, x64):
    """And with the other sign away from it."""
    student = GaussianStudent("ot_fm", gradient, divergence, count=512)
    start, data = jnp.array([0.6, 0.9]), jnp.array(student.data)

    @jax.jit
    def descended(law):
        def update(law, key):
            return law - sign * 0.02 * student.slope(tuple(law), tuple(law), key), None

        return jax.lax.scan(update, law, jax.random.split(jax.random.key(0), 300))[0]

    distance = jnp.linalg.norm(descended(start) - data)
    assert distance < 0.03 if sign == 1 else not distance < jnp.linalg.norm(start - data)
