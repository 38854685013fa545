"""What the papers of the objectives say of one another, and of themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, every_transport, plain_times, random, rows_of, wave
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.consistency import CONSISTENCIES, Group, semigroup_target
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import coefficient_B, data_and_noise, expand, interpolate, jump, prediction_target
from tim_jax.transitions.jump import velocity as data_velocity
from tim_jax.transitions.objectives.contrastive import LowNoiseContrastive
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.target import interval_factor
from tim_jax.transitions.times import Times
from tim_jax.transitions.weights import AdaptiveWeight, TimeWeight
from tim_jax.types import Output


def student(net):
    return {"online": lambda queries: tuple(net(q.x_t, q.t, q.r) for q in queries)}


def by_wave(x, t, r):
    return answer(wave(x, t, r), wave(x, t, t))


def total_derivative(x, noise, t, r):
    """dF/dt of `wave` along the straight path, by hand."""
    return jax.jvp(lambda x, t: wave(x, t, r), ((1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise, t),
                   (noise - x, jnp.ones_like(t)))[1]  # fmt: skip


def moving_rows(seed=0):
    """Data, noise and times with r < t."""
    t = jnp.linspace(0.3, 0.95, SHAPE[0])
    return random(seed), random(seed + 1), t, t * jnp.linspace(0.1, 0.8, SHAPE[0])


def target_of(objective, x, noise, t, r, step=LATE, net=by_wave, key=None):
    """The target that an objective's consistency gives rows with r < t."""
    base = prediction_target(objective.transport, x, noise, t)
    consistent = CONSISTENCIES[objective.consistency]
    return consistent(objective, student(net), (), Group(rows_of(x, noise), t, r, base), step, key)[1].target


def test_mean_flow_is_the_transition_target_of_straight_paths(x64):
    x, noise, t, r = moving_rows()
    exact = noise - x - (t - r)[:, None, None, None] * total_derivative(x, noise, t, r)
    for name in ("mean_flow", "tim", "modular_mean_flow"):
        np.testing.assert_allclose(target_of(OBJECTIVES[name](plain_times("ot_fm")), x, noise, t, r), exact, rtol=1e-9)


@pytest.mark.parametrize("step, w", [(0, 0.0), (75, 0.25), (300, 1.0), (599, 1.0)])
def test_a_warm_up_goes_from_the_velocity_to_the_transition_target(step, w, x64):
    """F* = v − w (t − r) D_v F, w rising over the half of 600 steps."""
    x, noise, t, r = moving_rows()
    objective = OBJECTIVES["tim"](plain_times("ot_fm"))
    objective = dataclasses.replace(objective, tangent=Tangent(warmup_share=0.5).following(600))
    exact = noise - x - w * (t - r)[:, None, None, None] * total_derivative(x, noise, t, r)
    np.testing.assert_allclose(target_of(objective, x, noise, t, r, step=jnp.int32(step)), exact, rtol=1e-9)


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_scm_is_the_bounded_transition_target(w, x64):
    """g = −cos²t (F⁻ − dx_t/dt) − w (cos t sin t x_t + ∂F), ∂F along cos t sin t (dx_t/dt, 1)."""
    x, noise, t, _ = moving_rows()
    transport = plain_times("trigflow")
    objective, r = OBJECTIVES["scm"](transport), jnp.zeros_like(t)
    tangent = dataclasses.replace(objective.tangent, warmup_steps=1000)
    T = t[:, None, None, None]
    x_t, v_t = jnp.cos(T) * x + jnp.sin(T) * noise, jnp.cos(T) * noise - jnp.sin(T) * x
    along = (jnp.cos(T) * jnp.sin(T) * v_t, jnp.cos(t) * jnp.sin(t))
    F, dF = jax.jvp(lambda x, t: wave(x, t, r), (x_t, t), along)
    g = -(jnp.cos(T) ** 2) * (F - v_t) - w * (jnp.cos(T) * jnp.sin(T) * x_t + dF)
    norm = jnp.sqrt(jnp.mean(g**2, axis=(1, 2, 3), keepdims=True))
    objective = dataclasses.replace(objective, tangent=tangent)
    target = target_of(objective, x, noise, t, r, step=jnp.int32(1000 * w))
    np.testing.assert_allclose(target, F + g / (norm + 0.1), rtol=1e-9)
    if w == 1:
        tim = target_of(OBJECTIVES["tim"](transport), x, noise, t, r)
        np.testing.assert_allclose(g, jnp.cos(T) ** 2 * (tim - F), rtol=1e-7, atol=1e-9)


def test_shortcut_is_split_mean_flow_in_the_middle(x64):
    x, noise, t, r = moving_rows()
    transport = plain_times("ot_fm")
    m, x_t = (t + r) / 2, (1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise
    first = wave(x_t, t, m)
    x_m = x_t - (t - m)[:, None, None, None] * first
    exact = 0.5 * (first + wave(x_m, m, r))
    objective = OBJECTIVES["shortcut"](transport)
    bootstrap = dataclasses.replace(objective.bootstrap, ema="online")
    shortcut = target_of(dataclasses.replace(objective, bootstrap=bootstrap), x, noise, t, r)
    split = semigroup_target(transport, x_t, t, m, r, wave, base=noise - x)
    np.testing.assert_allclose(shortcut, exact, rtol=1e-9)
    np.testing.assert_allclose(split, exact, rtol=1e-9)


def test_split_mean_flow_weighs_two_jumps_by_their_lengths(x64):
    x, noise, t, r = moving_rows()
    share = jnp.linspace(0.1, 0.9, len(t))  # λ
    s = (1 - share) * t + share * r
    x_t = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise
    first = wave(x_t, t, s)
    second = wave(x_t - (t - s)[:, None, None, None] * first, s, r)
    lam = share[:, None, None, None]
    got = semigroup_target(plain_times("ot_fm"), x_t, t, s, r, wave, base=noise - x)
    np.testing.assert_allclose(got, (1 - lam) * second + lam * first, rtol=1e-9)


@every_transport
def test_two_jumps_are_the_jump_of_the_semigroup_target(transport, x64):
    transport = plain_times(transport)
    domain = transport.T_max - transport.T_min
    t, s, r = (transport.T_min + domain * jnp.linspace(low, high, SHAPE[0])
               for low, high in ((0.4, 0.9), (0.3, 0.5), (0.01, 0.2)))  # fmt: skip
    x_t = random(0)
    F_star = semigroup_target(transport, x_t, t, s, r, wave, base=x_t)
    middle = jump(transport, x_t, wave(x_t, t, s), t, s)
    np.testing.assert_allclose(
        jump(transport, x_t, F_star, t, r), jump(transport, middle, wave(middle, s, r), s, r), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_array_equal(semigroup_target(transport, x_t, t, t, t, wave, base=3 * x_t), 3 * x_t)


@every_transport
def test_alphaflow_goes_from_the_velocity_to_the_derivative_as_its_first_jump_gets_shorter(transport, x64):
    """Its first jump stays on the path of (x, ε). α = 1 gives v; with α → 0 it learns the transition target.

    Then (F* − F)/α → (t − r)/q (F*' − F), with F*' the transition target and q = B/Ḃ, which is t − r for OT-FM.
    """
    transport = plain_times(transport)
    x, noise, u, r = moving_rows()
    t, r = (transport.T_min + (transport.T_max - transport.T_min) * time for time in (u, r))
    objective, x_t = OBJECTIVES["alphaflow"](transport), interpolate(transport, x, noise, t)
    base = prediction_target(transport, x, noise, t)

    def target(alpha):
        bootstrap = dataclasses.replace(objective.bootstrap, alpha=Annealing(final=alpha))
        return target_of(dataclasses.replace(objective, bootstrap=bootstrap), x, noise, t, r)

    s = t + 0.3 * (r - t)
    x_s = interpolate(transport, x, noise, s)
    end = jump(transport, x_s, wave(x_s, s, r), s, r)
    np.testing.assert_allclose(jump(transport, x_t, target(0.3), t, r), end, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(target(1.0), base, rtol=1e-9, atol=1e-12)
    derivative = target_of(OBJECTIVES["tim"](transport), x, noise, t, r)
    np.testing.assert_allclose(target(0.0), derivative, rtol=1e-9)
    F, scale = wave(x_t, t, r), jnp.abs(derivative).max()
    rate = expand((t - r) / interval_factor(transport, t, r), x)
    far, near = (jnp.abs((target(alpha) - F) / alpha / rate - (derivative - F)).max() for alpha in (1e-4, 1e-5))
    assert 9 < far / near < 11 and near < 0.03 * scale


@pytest.mark.parametrize("step, alpha", [(0, 1.0), (190_000, 0.651), (200_000, 0.5), (290_000, 0.0), (400_001, 0.0)])
def test_alphaflow_changes_its_targets_and_weights_with_the_step_alone(step, alpha, x64):
    x, noise, t, r = moving_rows()
    objective, step = OBJECTIVES["alphaflow"](plain_times("ot_fm")), jnp.int32(step)
    here = objective.bootstrap.alpha(step)
    assert here == pytest.approx(alpha, abs=1e-3)
    fixed = dataclasses.replace(objective.bootstrap, alpha=Annealing(final=float(here)))
    right = target_of(dataclasses.replace(objective, bootstrap=fixed), x, noise, t, r)
    np.testing.assert_allclose(target_of(objective, x, noise, t, r, step), right, rtol=1e-12)
    weight = objective.bootstrap.loss_factors(objective.transport, t, r.at[0].set(t[0]), step)[1]
    np.testing.assert_allclose(weight, jnp.full_like(t, here or 1.0).at[0].set(1.0), rtol=1e-12)


def test_lagrangian_self_distillation_ends_jumps_with_the_own_velocity(x64):
    """Its gradient is that of ‖F + (r − t) ∂F/∂r − sg F(f_{t→r}(x_t), r, r)‖², written out."""
    x, noise, t, r = moving_rows()
    times = Times("uniform", share_equal=0.0, share_min=0.0)
    objective = dataclasses.replace(OBJECTIVES["tvm"](plain_times("ot_fm")), velocity="online", times=times)
    assert objective.networks == ("online",)

    def ours(theta):
        nets = student(lambda x, t, r: Output(theta * wave(theta * x, t, r)))
        return objective.loss(nets, rows_of(x, noise), t, r, LATE)[0].sum()

    def by_hand(theta):
        T, R = t[:, None, None, None], r[:, None, None, None]
        x_t = (1 - T) * x + T * noise
        F, D = jax.jvp(lambda r: theta * wave(theta * x_t, t, r), (r,), (jnp.ones_like(r),))
        end = jax.lax.stop_gradient(theta * wave(theta * (x_t + (R - T) * F), r, r))
        return jnp.mean((F + (R - T) * D - end) ** 2, axis=(1, 2, 3)).sum()

    found, right = (jax.jit(jax.value_and_grad(loss))(0.7) for loss in (ours, by_hand))
    np.testing.assert_allclose(found, right, rtol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_modular_mean_flow_differentiates_its_share_of_the_tangent(share, x64):
    """Its gradient is that of ‖F + (t − r)(λ D + (1 − λ) sg D) − v‖², written out."""
    x, noise, t, r = moving_rows()
    transport = plain_times("ot_fm")
    times = Times("uniform", share_equal=0.0, share_min=0.0)
    tangent, adaptive = Tangent(differentiate_steps=100), AdaptiveWeight(power=0.0)
    objective = dataclasses.replace(OBJECTIVES["modular_mean_flow"](transport), times=times, tangent=tangent,
                                    adaptive=adaptive)  # fmt: skip

    def F(theta, x, t, r):
        return wave(theta * x, t, r) * theta

    def ours(theta):
        nets = student(lambda x, t, r: Output(F(theta, x, t, r)))
        return objective.loss(nets, rows_of(x, noise), t, r, jnp.int32(100 * share))[0].sum()

    def by_hand(theta):
        T = t[:, None, None, None]
        x_t = (1 - T) * x + T * noise
        u, D = jax.jvp(lambda x, t: F(theta, x, t, r), (x_t, t), (noise - x, jnp.ones_like(t)))
        D = share * D + (1 - share) * jax.lax.stop_gradient(D)
        return jnp.mean((u + (T - r[:, None, None, None]) * D - (noise - x)) ** 2, axis=(1, 2, 3)).sum()

    found, right = (jax.jit(jax.value_and_grad(loss))(0.7) for loss in (ours, by_hand))
    np.testing.assert_allclose(found, right, rtol=1e-9)


def test_improved_mean_flow_is_the_regression_of_its_compound_velocity(x64):
    """‖F + (t − r) sg D_u F − v‖² + ‖u − v‖², each over sg(sum + 0.01); u, the head, is the tangent as well."""
    x, noise, t, r = moving_rows()
    objective = OBJECTIVES["improved_mean_flow"](plain_times("ot_fm"))
    times = Times("uniform", share_equal=0.0, share_min=0.0)
    objective = dataclasses.replace(objective, times=times, input_guidance=InputGuidance())

    def head(theta, x, t):
        return theta**2 * jnp.tanh(x + t[:, None, None, None])

    def ours(theta):
        nets = student(lambda x, t, r: answer(theta * wave(x, t, r), head(theta, x, t)))
        return objective.loss(nets, rows_of(x, noise), t, r, LATE)[0].sum()

    def by_hand(theta):
        T = t[:, None, None, None]
        x_t = (1 - T) * x + T * noise
        u = head(theta, x_t, t)
        along = (jax.lax.stop_gradient(u), jnp.ones_like(t))
        F, D = jax.jvp(lambda x, t: theta * wave(x, t, r), (x_t, t), along)
        V = F + (T - r[:, None, None, None]) * jax.lax.stop_gradient(D)
        sums = [jnp.sum((value - (noise - x)) ** 2, axis=(1, 2, 3)) for value in (V, u)]
        return sum((s / jax.lax.stop_gradient(s + 0.01)).sum() for s in sums)

    found, right = (jax.jit(jax.value_and_grad(loss))(0.7) for loss in (ours, by_hand))
    np.testing.assert_allclose(found, right, rtol=1e-9)


def test_the_adaptive_weight_of_power_one_half_is_a_pseudo_huber_loss(x64):
    error, c = jnp.array([1e-9, 1e-4, 0.3, 20.0]), 0.00054
    weight = AdaptiveWeight(power=0.5, offset=c**2)
    gradient = jax.grad(lambda m: (weight(m) * m).sum())(error)
    np.testing.assert_allclose(gradient, 2 * jax.grad(lambda m: jnp.sqrt(m + c**2).sum())(error), rtol=1e-9)


@every_transport
@pytest.mark.parametrize("velocity", ["target", "teacher"])
def test_where_the_target_is_guided_jumps_move_along_the_guided_velocity(transport, velocity, x64):
    """(F − F*) ∂B/∂t is how far the end of a jump moves when its start does along the velocity of the guided target."""
    transport = plain_times(transport)
    x, noise, u, r = moving_rows()
    t = transport.T_min + (transport.T_max - transport.T_min) * u
    r = transport.T_min + (transport.T_max - transport.T_min) * r
    objective = dataclasses.replace(
        OBJECTIVES["tim"](transport), velocity=velocity, times=Times("uniform", share_equal=0.0, share_min=0.0),
        weight=TimeWeight("constant"), adaptive=AdaptiveWeight(power=0.0), direction="none",
        guidance=TargetGuidance(0.6, 0.3, transport.T_min, transport.T_max, ema="online"),
    )  # fmt: skip

    def net(queries):
        return tuple(Output(wave(q.x_t, q.t, q.r) + 0.1 * q.condition["label"][:, None, None, None]) for q in queries)

    def teacher(queries):
        return tuple(Output(jnp.cos(1.5 * q.x_t - q.t[:, None, None, None])) for q in queries)

    rows = rows_of(x, noise)
    loss, _ = objective.loss({"online": net, "teacher": teacher}, rows, t, r, LATE)
    x_t, label = interpolate(transport, x, noise, t), rows.condition["label"][:, None, None, None]
    own = prediction_target(transport, x, noise, t) if velocity == "target" else jnp.cos(1.5 * x_t - expand(t, x_t))
    here = wave(x_t, t, t)
    guided = 0.6 * own + 0.3 * (here + 0.1 * label) + 0.1 * (here + 0.9)
    v = data_velocity(transport, *data_and_noise(transport, x_t, guided, t), t)

    def end(x_t, t):
        return jump(transport, x_t, wave(x_t, t, r) + 0.1 * label, t, r)

    _, moved = jax.jvp(end, (x_t, t), (v, jnp.ones_like(t)))
    _, B_dot = jax.jvp(lambda t: coefficient_B(transport, t, r), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(loss, jnp.mean((moved / expand(B_dot, x)) ** 2, axis=(1, 2, 3)), rtol=1e-6)


def test_guided_mean_flow_moves_along_the_guided_velocity(x64):
    """ω v + κ F(x_t, t, t | c) + (1 − ω − κ) F(x_t, t, t | ∅), in the target and as the tangent."""
    x, noise, t, r = moving_rows()
    omega, kappa = 0.6, 0.3

    def net(queries):
        return tuple(
            Output(wave(q.x_t, q.t, q.r) * (1 + 0.1 * q.condition["label"][:, None, None, None])) for q in queries
        )

    objective = dataclasses.replace(
        OBJECTIVES["mean_flow"](plain_times("ot_fm")),
        times=Times("uniform", share_equal=0.0, share_min=0.0),
        guidance=TargetGuidance(omega, kappa, 0.0, 1.0, ema="online"),
        adaptive=AdaptiveWeight(power=0.0),
    )
    rows = rows_of(x, noise)
    loss, _ = objective.loss({"online": net}, rows, t, r, LATE)
    T, label = t[:, None, None, None], rows.condition["label"][:, None, None, None]
    x_t = (1 - T) * x + T * noise
    here = wave(x_t, t, t)
    v = omega * (noise - x) + kappa * here * (1 + 0.1 * label) + (1 - omega - kappa) * here * 1.9
    F, D = jax.jvp(lambda x, t: wave(x, t, r) * (1 + 0.1 * label), (x_t, t), (v, jnp.ones_like(t)))
    exact = jnp.mean((F + (T - r[:, None, None, None]) * D - v) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, exact, rtol=1e-9)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_guidance_scales_have_their_distribution(power):
    scales = InputGuidance(max_scale=8.0, power=power).draw_scales(jax.random.key(0), 200_000)
    grid = np.linspace(1, 8, 100_001)
    mass = np.cumsum(grid**-power)
    exact = np.interp([0.1, 0.5, 0.9], mass / mass[-1], grid)
    np.testing.assert_allclose(np.quantile(np.asarray(scales, np.float64), [0.1, 0.5, 0.9]), exact, rtol=0.02)


def test_input_guidance_holds_in_its_interval_and_not_without_a_condition():
    transport, guidance = plain_times("ot_fm"), InputGuidance(max_scale=4.0)
    x, noise, t, _ = moving_rows()
    rows = rows_of(x, noise, label=jnp.arange(len(t)) % 2 * 9)
    rows = guidance.add_inputs(transport, rows, jax.random.key(0))
    scale, low, high = rows.condition["guidance"].T
    assert ((1 <= scale) & (scale <= 4) & (low <= 0.5) & (0.5 <= high)).all()
    inside = (t >= low) & (t <= high)

    def net(queries):
        given, null = queries
        np.testing.assert_array_equal(given.condition["guidance"][:, 0], jnp.where(inside, scale, 1.0))
        np.testing.assert_array_equal(null.condition["guidance"][:, 0], 1.0)
        for q in queries:
            assert (q.condition["guidance"][:, 1:] == jnp.array([[0.0, 1.0]])).all()
        return tuple(
            Output(jnp.where(q.condition["label"] == 9, 0.0, 1.0)[:, None, None, None] + 0 * x) for q in queries
        )

    base = noise - x
    guided, own = guidance(net, transport, x, t, rows, base)
    np.testing.assert_array_equal(own[:, 0, 0, 0], rows.condition["label"] != 9)
    applies = (t >= low) & (t <= high) & (rows.condition["label"] != 9)
    assert applies.any() and not applies.all()
    added = jnp.where(applies, 1 - 1 / scale, 0.0)[:, None, None, None]
    np.testing.assert_allclose(guided, base + added, rtol=1e-6, atol=1e-6)


def test_dyadic_times_lie_on_their_grid():
    transport = TRANSPORTS["ot_fm"]()
    t, r = OBJECTIVES["shortcut"](transport).draw(jax.random.key(0), 4096, positions=4)
    moving = np.asarray(r < t)
    t, r = np.asarray(t)[moving], np.asarray(r)[moving]
    length = t - r
    assert moving.sum() == 512
    np.testing.assert_array_equal(np.unique(length), 2.0 ** np.arange(-6, 1))
    np.testing.assert_array_equal(t / length, np.round(t / length))
    counts = np.array([(length == 2.0**-k).mean() for k in range(7)])
    np.testing.assert_allclose(counts, 1 / 7, atol=0.06)


def test_intervals_of_two_means_are_between_draws_of_both(x64):
    times = OBJECTIVES["dmf"](plain_times("ot_fm")).times
    t, r = times.draw(plain_times("ot_fm"), jax.random.key(0), 40_000)
    equal = times.assign(40_000)[0]
    logit = jax.scipy.special.logit
    np.testing.assert_allclose(logit(t[equal]).mean(), times.P_mean, atol=0.02)
    ends = logit(jnp.stack([t[~equal], r[~equal]]))
    np.testing.assert_allclose(ends.mean(), 0.0, atol=0.02)
    # The sum of both draws has the variance 2, the difference as well, with the mean 0.4.
    np.testing.assert_allclose(ends.sum(axis=0).var(), 2.0, rtol=0.03)
    np.testing.assert_allclose(((ends[0] - ends[1]) ** 2).mean(), 2.0 + 0.4**2, rtol=0.03)


def test_logit_normal_lengths_have_their_quantiles():
    t, r = OBJECTIVES["tvm"](TRANSPORTS["ot_fm"]()).draw(jax.random.key(0), 40_000, positions=4)
    length = np.asarray(t - r, np.float64)[np.asarray(r < t)]
    assert len(length) == 20_000
    normal = np.array([-1.2816, -0.5244, 0.0, 0.5244, 1.2816])
    quantiles = np.quantile(length, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(quantiles, 1 / (1 + np.exp(0.8 - normal)), rtol=0.03)


def test_contrast_is_low_for_own_features_and_log_n_for_equal_ones():
    objective = OBJECTIVES["low_noise_contrastive"](TRANSPORTS["ot_fm"]())
    assert isinstance(objective, LowNoiseContrastive)
    low = jnp.arange(8) < 6
    equal = objective.contrastive(jnp.ones((8, 8)), jnp.ones((8, 8)), low)
    np.testing.assert_allclose(equal, jnp.where(low, jnp.log(6.0), 0.0), rtol=1e-6)
    sharp = dataclasses.replace(objective, contrast=dataclasses.replace(objective.contrast, temperature=0.05))
    assert sharp.contrastive(3 * jnp.eye(8), jnp.eye(8), low).max() < 1e-6
    slope = jax.jit(jax.grad(lambda h, a: objective.contrastive(h, a, low).sum(), argnums=(0, 1)))
    gradient = slope(random(0, (8, 8)), random(1, (8, 8)))
    assert jnp.isfinite(gradient[0]).all() and jnp.abs(gradient[0][:6]).min() > 0 and (gradient[1] == 0).all()


def test_contrast_draws_features_to_those_at_its_edge():
    objective = OBJECTIVES["low_noise_contrastive"](plain_times("ot_fm"))
    rows = rows_of(random(0), random(1))
    t, r = objective.draw(jax.random.key(0), SHAPE[0], positions=4)
    low = np.asarray(t < objective.edge)
    np.testing.assert_array_equal(low, np.arange(SHAPE[0]) % 8 == 7)
    times_seen = []

    def net(queries):
        times_seen.extend(q.t for q in queries)
        return tuple(answer(jnp.zeros_like(q.x_t), q.x_t) for q in queries)

    objective.loss({"online": net}, rows, t, r, LATE)
    plain, below, anchor = times_seen
    np.testing.assert_array_equal(plain, t[~low])
    np.testing.assert_array_equal(below, t[low])
    np.testing.assert_allclose(anchor, objective.edge)
