"""What objectives learn from a teacher, against their papers, closed forms and the exact flow of a Gaussian."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, plain_times, random, rows_of, wave
from tests.transitions.test_papers import by_wave, moving_rows, student
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.consistency import CONSISTENCIES, Group
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import interpolate, jump, prediction_target
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.terms.term import add_terms
from tim_jax.transitions.times import Times
from tim_jax.types import Output

DISTILLED = [name for name, make in OBJECTIVES.items() if make(TRANSPORTS["ot_fm"]()).teachers]
MOVING = Times("uniform", share_equal=0.0, share_min=0.0)


def some_velocity(x, t):
    """A teacher's prediction, which is nothing like the student's."""
    return jnp.cos(1.5 * x - t[:, None, None, None])


def nets_with_teacher(net=by_wave):
    def teacher(queries):
        return tuple(Output(some_velocity(q.x_t, q.t)) for q in queries)

    return student(net) | {"teacher": teacher}


def distilled_target(objective, x, noise, t, r, step=LATE):
    """The target of rows with r < t, learnt from `some_velocity`."""
    nets = nets_with_teacher()
    rows = rows_of(x, noise)
    if objective.velocity == "teacher":
        rows = objective.distilled(nets, rows, t)
    base = prediction_target(objective.transport, rows.x, rows.noise, t)
    consistent = CONSISTENCIES[objective.consistency]
    return consistent(objective, nets, (), Group(rows, t, r, base), step, None)[1].target


def column(t):
    return t[:, None, None, None]


def test_which_objectives_have_teachers():
    names = "scm_distillation ayf_eulerian ayf_lagrangian ctm rcm distribution_matching tbcm cmt velocity_refiner"
    assert [*names.split(), "straightening", "flow_dpo"] == DISTILLED


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_scm_distillation_moves_along_the_teacher(w, x64):
    """g = −cos²t (F⁻ − F_T) − w (cos t sin t x_t + ∂F), ∂F along cos t sin t (F_T, 1), for σ_d = 1."""
    x, noise, t, _ = moving_rows()
    objective, r = OBJECTIVES["scm_distillation"](plain_times("trigflow")), jnp.zeros_like(t)
    objective = dataclasses.replace(objective, tangent=dataclasses.replace(objective.tangent, warmup_steps=1000))
    T = column(t)
    x_t = jnp.cos(T) * x + jnp.sin(T) * noise
    v = some_velocity(x_t, t)
    along = (jnp.cos(T) * jnp.sin(T) * v, jnp.cos(t) * jnp.sin(t))
    F, dF = jax.jvp(lambda x, t: wave(x, t, r), (x_t, t), along)
    g = -(jnp.cos(T) ** 2) * (F - v) - w * (jnp.cos(T) * jnp.sin(T) * x_t + dF)
    norm = jnp.sqrt(jnp.mean(g**2, axis=(1, 2, 3), keepdims=True))
    target = distilled_target(objective, x, noise, t, r, step=jnp.int32(1000 * w))
    np.testing.assert_allclose(target, F + g / (norm + 0.1), rtol=1e-9)


@pytest.mark.parametrize("step", [0, 4_000, 1_000_000])
def test_align_your_flow_by_hand(step, x64):
    """F⁻ + g/(‖g‖ + 0.1); Eulerian g = v − F⁻ − w (t − r) D_v F, Lagrangian g = v(x_r, r) − F⁻ + w (t − r) ∂F/∂r."""
    x, noise, t, r = moving_rows()
    w = 0.99 * min(step / 10_000, 1)
    T, R = column(t), column(r)
    x_t = (1 - T) * x + T * noise
    v = some_velocity(x_t, t)
    F, D = jax.jvp(lambda x, t: wave(x, t, r), (x_t, t), (v, jnp.ones_like(t)))
    _, D_r = jax.jvp(lambda r: wave(x_t, t, r), (r,), (jnp.ones_like(r),))
    end = some_velocity(x_t - (T - R) * F, r)
    exact = {"ayf_eulerian": v - F - w * (T - R) * D, "ayf_lagrangian": end - F + w * (T - R) * D_r}
    for name, g in exact.items():
        norm = jnp.sqrt(jnp.mean(g**2, axis=(1, 2, 3), keepdims=True))
        target = distilled_target(OBJECTIVES[name](plain_times("ot_fm")), x, noise, t, r, jnp.int32(step))
        np.testing.assert_allclose(target, F + g / (norm + 0.1), rtol=1e-9)


@pytest.mark.parametrize("name", ["ayf_eulerian", "ayf_lagrangian"])
@pytest.mark.parametrize("head", [0.0, 1.0])
def test_all_examples_learn_the_teachers_velocity(name, head, x64):
    """The head in all of them, the network where r = t; the data's own is nowhere to be seen."""
    transport = plain_times("ot_fm")
    objective = OBJECTIVES[name](transport)
    objective = dataclasses.replace(
        objective, head_weight=head, tangent=dataclasses.replace(objective.tangent, max_share=0.0)
    )
    x, noise = random(0), random(1)
    t, r = objective.draw(jax.random.key(0), len(x), positions=4)

    def right(x, t, r):
        return answer(some_velocity(x, t), some_velocity(x, t))

    loss, _ = objective.loss(nets_with_teacher(right), rows_of(x, noise), t, r, LATE)
    learnt = loss[t == r] if name == "ayf_lagrangian" else loss
    assert learnt.size and jnp.abs(learnt).max() < 1e-20
    more, _ = dataclasses.replace(objective, head_weight=0.0).loss(
        nets_with_teacher(right), rows_of(x, noise), t, r, LATE
    )
    np.testing.assert_allclose(loss, more, atol=1e-20)


@pytest.mark.parametrize("name", ["tim", "mean_flow"])
def test_with_the_conditional_mean_for_teacher_distillation_is_mean_flow_in_expectation(name, x64):
    """Of pairs ±δ about the mean, which have one x_t, half the sum of gradients; the target is linear in (x, ε)."""
    transport = plain_times("ot_fm")
    gaussian = Gaussian(transport, mean=0.2, std=0.7)
    _, _, t, r = moving_rows()
    x_t, delta, T = random(5), random(6), column(t)
    mean_x, mean_noise = gaussian.posterior_means(x_t, t)

    def teacher(queries):
        return tuple(Output(gaussian.F(q.x_t, q.t, q.t)) for q in queries)

    def gradient(velocity, x, noise):
        objective = OBJECTIVES[name](transport)
        objective = dataclasses.replace(
            objective, times=MOVING, velocity=velocity, direction="none",
            adaptive=dataclasses.replace(objective.adaptive, power=0.0),
        )  # fmt: skip

        def loss(theta):
            nets = student(lambda x, t, r: Output(wave(theta * x, t, r))) | {"teacher": teacher}
            return objective.loss(nets, rows_of(x, noise), t, r, LATE)[0]

        return jax.jit(jax.jacfwd(loss))(0.8)

    pairs = [(mean_x + sign * T * delta, mean_noise - sign * (1 - T) * delta) for sign in (1, -1)]
    from_data = sum(gradient("data", *pair) for pair in pairs) / 2
    from_teacher = gradient("teacher", *pairs[0])
    assert jnp.abs(from_teacher).min() > 1e-4
    np.testing.assert_allclose(from_data, from_teacher, rtol=1e-9)
    assert jnp.abs(gradient("data", *pairs[0]) - from_teacher).max() > 1e-3  # one pair alone is not the mean


@pytest.mark.parametrize(
    "transport", [pytest.param(n, marks=() if n in ("ot_fm", "edm") else pytest.mark.slow) for n in TRANSPORTS]
)
def test_solving_along_the_teacher_is_of_second_order(transport, x64):
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    domain = transport.T_max - transport.T_min
    t = transport.T_min + domain * jnp.linspace(0.4, 0.9, SHAPE[0])
    s = transport.T_min + domain * jnp.linspace(0.05, 0.3, SHAPE[0])
    x_t = column(transport.alpha(t)) * 0.3 + gaussian.marginal_std(column(t)) * random(0)
    nets = {"teacher": lambda queries: tuple(Output(gaussian.F(q.x_t, q.t, q.t)) for q in queries)}
    rows = rows_of(x_t, x_t)

    @functools.partial(jax.jit, static_argnums=1)
    def solve(s, steps):
        return Teacher().solve(nets, transport, x_t, t, s, rows, steps)

    errors = [jnp.abs(solve(s, steps) - gaussian.flow_map(x_t, t, s)).max() for steps in (8, 16, 32)]
    assert errors[2] < 5e-3
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < coarse / 3.3
    np.testing.assert_allclose(solve(t, 2), x_t, rtol=1e-12)


def test_ctm_jumps_on_from_where_the_teacher_leads(x64):
    x, noise, t, r = moving_rows()
    transport = plain_times("ot_fm")
    objective = OBJECTIVES["ctm"](transport)
    bootstrap = dataclasses.replace(objective.bootstrap, ema="online", split="half", solver_steps=1)
    target = distilled_target(dataclasses.replace(objective, bootstrap=bootstrap), x, noise, t, r)
    T, S = column(t), column((t + r) / 2)
    x_t = (1 - T) * x + T * noise
    v = some_velocity(x_t, t)
    y = x_t + (S - T) * v
    x_s = x_t + 0.5 * (S - T) * (v + some_velocity(y, (t + r) / 2))
    ends = jump(transport, x_s, wave(x_s, (t + r) / 2, r), (t + r) / 2, r)
    np.testing.assert_allclose(jump(transport, x_t, target, t, r), ends, rtol=1e-9)


def test_guidance_of_a_teacher(x64):
    """Away from the null condition or a weaker model, in its interval, and none where it is 1."""
    transport, x_t = plain_times("ot_fm"), random(0)
    t = jnp.linspace(0.05, 0.95, SHAPE[0])
    rows = rows_of(x_t, x_t)
    label, null = (column(c["label"]) for c in (rows.condition, rows.null_condition))

    def by_label(factor):
        return lambda queries: tuple(
            Output(factor * wave(q.x_t, q.t, q.r) * column(q.condition["label"])) for q in queries
        )

    nets, here = {"teacher": by_label(1.0), "weaker": by_label(0.5)}, wave(x_t, t, t)
    inside = column((t >= 0.2) & (t <= 0.7))
    np.testing.assert_allclose(Teacher()(nets, transport, x_t, t, rows), here * label, rtol=1e-12)
    free = Teacher(guidance=3.0, guidance_low=0.2, guidance_high=0.7)(nets, transport, x_t, t, rows)
    np.testing.assert_allclose(free, jnp.where(inside, here * (null + 3 * (label - null)), here * label), rtol=1e-9)
    auto = Teacher(guidance=2.0, weak_checkpoint="weak")
    assert auto.names == ("teacher", "weaker")
    np.testing.assert_allclose(auto(nets, transport, x_t, t, rows), here * label * 1.5, rtol=1e-9, atol=1e-12)
    assert jax.grad(lambda x: auto(nets, transport, x, t, rows).sum())(x_t).any() == False  # noqa: E712
    for wrong, message in ((Teacher(guidance=-1.0), "guidance is -1"),
                        (Teacher(guidance=2.0, guidance_low=0.5, guidance_high=0.4), "0.5, 0.4"),
                        (Teacher(weak_checkpoint="weak"), "must not be 1")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            wrong.check()


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "ctm",
            dict(guidance=TargetGuidance(w_cond=0.5)),
            "^objective.guidance.w_gt, objective.guidance.w_cond are 1.0, 0.5; .* teacher.guidance",
        ),
        (
            "ayf_lagrangian",
            dict(input_guidance=InputGuidance(max_scale=3.0)),
            "^objective.input_guidance.max_scale is 3.0; .* teacher.guidance",
        ),
        (
            "rcm",
            dict(input_guidance=InputGuidance(max_scale=3.0)),
            "^objective.input_guidance.max_scale is 3.0; it must be 1 with terms on",
        ),
    ],
)
def test_guidance_of_examples_that_follow_a_teacher_is_refused(name, changes, message):
    objective = OBJECTIVES[name](TRANSPORTS["ot_fm"]())
    objective.check()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(objective, **changes).check()


@pytest.mark.parametrize(
    "transport", [pytest.param(n, marks=() if n in ("ot_fm", "edm") else pytest.mark.slow) for n in TRANSPORTS]
)
def test_trajectories_without_images_lie_on_the_teachers_way(transport, x64):
    """Of a group's first row and condition, one call of the teacher a row, and with many points on the exact way."""
    transport = plain_times(transport)
    gaussian, queries_seen = Gaussian(transport, mean=0.3, std=0.6), []
    points, groups = 400, 3
    objective = OBJECTIVES["tbcm"](transport)
    objective = dataclasses.replace(
        objective, trajectory_points=points, times=Times("uniform", share_equal=0.0, share_min=1.0)
    )
    assert objective.batch_multiple == points

    def teacher(queries):
        queries_seen.extend(queries)
        return tuple(Output(gaussian.F(q.x_t, q.t, q.t)) for q in queries)

    count = points * groups
    rows = rows_of(jnp.full((count, 1, 1, 1), jnp.nan), random(1, (count, 1, 1, 1)))
    t, r = objective.draw(jax.random.key(0), count, positions=4)
    level = jnp.linspace(transport.level(jnp.asarray(transport.T_max)), 0.05, points)
    t = jnp.tile(transport.time_of_level(level), groups).at[::points].set(transport.T_max)
    assert (r == transport.T_min).all()
    distilled = objective.distilled({"teacher": teacher}, rows, t)
    x_t = interpolate(transport, distilled.x, distilled.noise, t).reshape(groups, points)
    start = (transport.sigma(jnp.asarray(transport.T_max)) * rows.noise[::points]).reshape(groups)
    np.testing.assert_allclose(x_t[:, 0], start, rtol=1e-9)
    exact = gaussian.flow_map(jnp.repeat(start, points), jnp.full(count, transport.T_max), t)
    np.testing.assert_allclose(x_t, exact.reshape(groups, points), atol=0.02)
    np.testing.assert_array_equal(distilled.condition["label"], jnp.repeat(rows.condition["label"][::points], points))
    assert len(queries_seen) == 1 and len(queries_seen[0].t) == groups  # one call in the scan over points


def test_times_of_trajectories_fall_from_noise():
    objective = OBJECTIVES["tbcm"](TRANSPORTS["trigflow"]())
    t, _ = objective.draw(jax.random.key(0), 64, positions=4)
    groups = np.asarray(t).reshape(8, 8)
    assert (groups[:, 0] == np.float32(1.57)).all() and (np.diff(groups, axis=1) <= 0).all()
    assert len(np.unique(groups)) > 50


@pytest.mark.parametrize(
    "transport", [pytest.param(n, marks=() if n in ("ot_fm", "edm") else pytest.mark.slow) for n in TRANSPORTS]
)
def test_jumps_of_mid_training_end_where_the_teachers_trajectory_does(transport, x64):
    """Of a group's first row and condition; with many points both are on the exact way."""
    transport = plain_times(transport)
    gaussian, (points, groups) = Gaussian(transport, mean=0.3, std=0.6), (100, 3)
    objective = dataclasses.replace(OBJECTIVES["cmt"](transport), trajectory_points=points, solver_steps=2)

    def teacher(queries):
        return tuple(Output(gaussian.F(q.x_t, q.t, q.t)) for q in queries)

    count = points * groups
    rows = rows_of(jnp.full((count, 1, 1, 1), jnp.nan), random(1, (count, 1, 1, 1)))
    t, r = objective.draw(jax.random.key(0), count, positions=4)
    distilled = objective.distilled({"teacher": teacher}, rows, t)
    x_t = interpolate(transport, distilled.x, distilled.noise, t)
    start = transport.sigma(t[:1])[0] * rows.noise[::points]
    np.testing.assert_allclose(x_t[::points], start, rtol=1e-9)
    end = jump(transport, x_t, prediction_target(transport, distilled.x, distilled.noise, t), t, r)
    np.testing.assert_allclose(end, jnp.repeat(end[::points], points, axis=0), atol=1e-9)
    np.testing.assert_allclose(end, gaussian.flow_map(x_t, t, r), atol=2e-3)
    labels = np.repeat(np.asarray(rows.condition["label"][::points]), points)
    np.testing.assert_array_equal(distilled.condition["label"], labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["tim", "mean_flow", *(pytest.param(n, marks=[] if n == "ctm" else pytest.mark.nightly) for n in DISTILLED
                           if n not in ("straightening", "distribution_matching", "flow_dpo"))],
)  # fmt: skip
def test_a_linear_student_reaches_the_exact_flow_map(name, x64):
    """From zero, with features of which the flow map is made and others, learnt from the exact flow of a Gaussian.

    What `straightening` learns is another flow: see test_straightening.py. `distribution_matching` learns no flow, and
    `flow_dpo` leaves its teacher.
    """
    transport = plain_times("ot_fm")
    gaussian = Gaussian(transport, mean=0.4, std=0.5)
    objective = OBJECTIVES[name](transport)
    velocity = objective.velocity if name == "ctm" else "teacher"
    objective = dataclasses.replace(
        objective, velocity=velocity, tangent=dataclasses.replace(objective.tangent, max_share=1.0, warmup_steps=0),
        bootstrap=dataclasses.replace(objective.bootstrap, solver_steps=objective.bootstrap.solver_steps and 16),
    )  # fmt: skip
    zero, one = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))

    def features(x, t, r):
        """(F = slope x + offset) of the exact flow map, and others that it has nothing of."""
        at = lambda x: gaussian.F(jnp.broadcast_to(x, (len(t), 1, 1, 1)), t, r)  # noqa: E731
        offset = at(zero)
        slope = at(one) - offset
        T, R = column(t), column(r)
        return jnp.stack([slope * x, offset * jnp.ones_like(x), x, jnp.ones_like(x), T * x, (T - R) * x, R])

    def net(theta):
        return lambda queries: tuple(answer(jnp.tensordot(theta, features(q.x_t, q.t, q.r), 1), q.x_t) for q in queries)

    exact = jnp.zeros(7).at[:2].set(1.0)
    shape, steps = (64, 1, 1, 1), 3000

    def loss(params, key):
        draw_key, x_key, loss_key = jax.random.split(key, 3)
        t, r = objective.draw(draw_key, shape[0], positions=1)
        t = jnp.clip(t, 0.02, 1.0)
        r = jnp.where(objective.times.assign(shape[0])[0], t, jnp.minimum(r, t))
        x_t = (1 - column(t)) * 0.4 + gaussian.marginal_std(column(t)) * jax.random.normal(x_key, shape)
        rows = rows_of(*gaussian.posterior_means(x_t, t))
        if name == "tbcm":
            rows = rows._replace(noise=jax.random.normal(x_key, shape))
        nets = {"online": net(params["online"]), "slow": net(jax.lax.stop_gradient(params["online"])),
                "teacher": net(exact), "score": net(params["score"])}  # fmt: skip
        term_key, loss_key = jax.random.split(loss_key)
        own = objective.loss(nets, rows, t, r, LATE, loss_key)
        return add_terms(objective, nets, rows, LATE, term_key, *own)[0].mean()

    tx = optax.chain(
        optax.scale_by_adam(0.9, 0.99), optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.03, steps))
    )
    params = {"online": jnp.zeros(7), "score": jnp.zeros(7)}

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(0), steps))[0][0]

    theta = train(params)["online"]
    t = jnp.linspace(0.02, 1.0, 500)
    consistent = objective.sampler == "consistency"  # which asks for jumps to data alone
    r = jnp.zeros_like(t) if consistent else t * jnp.asarray(np.random.default_rng(0).uniform(size=500))
    x_t = (1 - column(t)) * 0.4 + gaussian.marginal_std(column(t)) * random(1, (500, 1, 1, 1))
    off = jnp.tensordot(theta - exact, features(x_t, t, r), 1)
    reached = float(jnp.sqrt(jnp.mean(off**2)))
    print(f"{name}: {reached:.2e}")
    assert reached < 1e-3
