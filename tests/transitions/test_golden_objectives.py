"""Objectives against the losses and gradients that published implementations computed (tests/golden/README.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import NULL, as_net, examples, largest_difference, probe, weights
from tests.helpers.waves import LATE
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.consistency import example_mean, semigroup_target
from tim_jax.transitions.guidance import TargetGuidance
from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.objective import of_kind
from tim_jax.transitions.objectives.cmt import TrajectoryEnds
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.objectives.transition_matching import TransitionMatching
from tim_jax.transitions.objectives.twinflow import Twin, TwinFlow
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import LENGTH_MEAN, Times, fitted
from tim_jax.transitions.weights import AdaptiveWeight
from tim_jax.types import Output

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


def trigonometric():
    """x_t = cos(πt/2) x + sin(πt/2) ε, F ≈ cos(πt/2) ε − sin(πt/2) x, t in [0, 1]."""
    cosine, half_pi = TRANSPORTS["cosine"](), np.pi / 2
    return dataclasses.replace(
        cosine, alpha_hat=lambda t: -jnp.sin(half_pi * t), sigma_hat=lambda t: jnp.cos(half_pi * t)
    )


def fading(t, start):
    """The published factor of guidance at a time: 1 up to `start`, then down to 0."""
    q = min(max((1 - t) / (1 - start), 0), 1 - 1e-6)
    return 1.0 if t <= start else 1 - np.exp(-0.025 * q / (1 - q))


@pytest.mark.parametrize("case", ["linear", "linear_guided", "trig"])
@pytest.mark.parametrize("part", ["velocity", "consistency"])
def test_soflow(case, part, golden, x64):
    """Values and, where first jumps stay on the path, gradients; those for r ≠ t are twice the published ones."""
    arrays = golden("soflow.npz")
    transport = trigonometric() if case == "trig" else OT_FM
    of = {key: arrays[f"{case}/{part}/{key}"] for key in ("noise", "square_rows", "weight_rows")}
    t, s = arrays["t"], arrays["s"]
    alpha = (t - arrays[f"{case}/l"]) / (t - s)
    np.testing.assert_allclose(alpha, alpha[0], rtol=1e-9)
    objective = OBJECTIVES["soflow"](transport)
    np.testing.assert_allclose(objective.bootstrap.alpha(jnp.int32(arrays["step"])), alpha, rtol=1e-9)
    objective = dataclasses.replace(objective, times=GIVEN)
    assert objective.adaptive.offset == arrays["eps"] and objective.adaptive.power == arrays["p"]
    guided = case == "linear_guided"
    rows = examples(arrays["x"], of["noise"], arrays["labels"], arrays["dropped"] if guided else None)
    end = jnp.asarray(t if part == "velocity" else s)
    before, after = objective.bootstrap.loss_factors(transport, jnp.asarray(t), end, jnp.int32(arrays["step"]))

    def loss(params):
        nets = {"online": as_net(params)}
        if not guided:
            return objective.loss(nets, rows, jnp.asarray(t), end, jnp.int32(arrays["step"]))
        # Guidance fades with time in the published code: for each example, a scale of its own.
        scale, mix = float(arrays["guided_scale"]), float(arrays["guided_mix"])
        found = []
        for n, time in enumerate(t):
            w_gt = mix * (1 + fading(time, float(arrays["cfg_decay_time"])) * (scale - 1))
            one = dataclasses.replace(objective, guidance=TargetGuidance(w_gt, 1 - mix, 0.0, 1.0, ema="online"))
            row = jax.tree.map(lambda a, n=n: a[n : n + 1], rows)
            found.append(one.loss(nets, row, jnp.asarray(t[n : n + 1]), end[n : n + 1], jnp.int32(arrays["step"])))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    def mean(params):
        losses, metrics = loss(params)
        square = before * metrics["error"]
        return losses.mean(), (square, losses / square / after)

    grads, found = jax.grad(mean, has_aux=True)(weights(arrays))
    expected = gradients(arrays, f"{case}/{part}")
    if part == "velocity":
        found = found[0], found[1] * after  # the published weight includes 1/κ there
    else:
        expected = {name: 2 * gradient for name, gradient in expected.items()}
    if (case, part) != ("trig", "consistency"):  # where the published first jump leaves the path
        error = largest_difference((found, grads), ((of["square_rows"], of["weight_rows"]), expected))
        print(f"{case} {part}: {error:.1e}")
        assert error < TOLERANCE


def test_soflow_from_the_published_middle(golden, x64):
    """For cosine paths, by the target of two jumps whose first is the published x_t + (s − t) v."""
    arrays, transport = golden("soflow.npz"), trigonometric()
    t, s, middle = (jnp.asarray(arrays[key]) for key in ("t", "s", "trig/l"))
    x, noise = jnp.asarray(arrays["x"]), jnp.asarray(arrays["trig/consistency/noise"])
    x_t = interpolate(transport, x, noise, t)
    x_l = x_t + expand(middle - t, x) * velocity(transport, x, noise, t)
    objective = OBJECTIVES["soflow"](transport)
    before, after = objective.bootstrap.loss_factors(transport, t, s, jnp.int32(arrays["step"]))

    def mean(params):
        def F(x, t, r):
            return probe(params, x, t, r, arrays["labels"])

        error = example_mean((F(x_t, t, s) - semigroup_target(transport, x_t, t, middle, s, F, x_t, x_l)) ** 2)
        return (after * objective.adaptive(before * error) * before * error).mean(), before * error

    grads, square = jax.grad(mean, has_aux=True)(weights(arrays))
    expected = {name: 2 * gradient for name, gradient in gradients(arrays, "trig/consistency").items()}
    error = largest_difference((square, grads), (arrays["trig/consistency/square_rows"], expected))
    print(f"trig consistency: {error:.1e}")
    assert error < TOLERANCE


def test_schedules_of_soflow(golden, x64):
    arrays = golden("soflow.npz")
    ends = float(arrays["r_init"]), float(arrays["r_end"])
    names = {"Const": "constant", "Linear": "linear", "Cosine": "cosine", "Exponent": "exponential"}
    for published, schedule in names.items():
        alpha = Annealing(schedule, *ends, end_step=int(arrays["total_steps"]))
        found = [alpha(jnp.int32(step)) for step in arrays["middle/step"]]
        np.testing.assert_allclose(found, arrays[f"middle/ratio_{published}"], rtol=0, atol=TOLERANCE)
    found = [fading(t, float(arrays["cfg_decay_time"])) for t in arrays["decay/t"]]
    np.testing.assert_allclose(found, arrays["decay/scale"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["scaled", "plain", "random_scale"])
def test_tvm(case, golden, x64):
    """Each example twice, with the jump and with r = t; what the published network does with β is done by the probe."""
    arrays = golden("tvm.npz")
    names = ("noise", "t", "s", "s_prime", "beta", "labels_used", "terminal_loss", "fm_loss")
    of = {name: jnp.asarray(arrays[f"{case}/{name}"]) for name in names}
    objective = dataclasses.replace(OBJECTIVES["tvm"](OT_FM), times=GIVEN)
    if arrays[f"{case}/detach_jvp"]:
        objective = dataclasses.replace(objective, tangent=Tangent())
    rows = examples(arrays["x"], of["noise"], of["labels_used"], of["labels_used"] == NULL)

    def net(params, beta):
        def answer(q):
            b = jnp.where(q.condition["label"] == NULL, 1.0, beta)
            F = probe(params, q.x_t, q.t, q.t - q.r, q.condition["label"], b[:, None])
            return Output(F / expand(b, F) if arrays[f"{case}/scaled"] else F)

        return lambda queries: tuple(map(answer, queries))

    def terms(params, n):
        beta = float(of["beta"][n])
        nets = {"online": net(params, beta), "slow": net(weights(arrays, "ema/"), beta)}
        guided = dataclasses.replace(objective, guidance=TargetGuidance(1 / beta, 0.0, 0.0, 1.0, ema="slow"))
        guided.check()
        both = jax.tree.map(lambda a: jnp.stack([a[n], a[n]]), rows)
        t, r = (jnp.stack([of[name][n], of["s_prime"][n]]) for name in ("t", "s"))
        return beta**2 * guided.loss(nets, both, t, r, LATE)[0]

    def mean(params):
        losses = jnp.stack([terms(params, n) for n in range(len(of["t"]))], axis=1)
        return losses.sum(axis=0).mean(), tuple(losses)

    grads, found = jax.grad(mean, has_aux=True)(weights(arrays))
    expected = (of["terminal_loss"], of["fm_loss"]), gradients(arrays, case)
    error = largest_difference((found, grads), expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_times_of_tvm(golden, x64):
    law = {name: jnp.asarray(array) for name, array in golden("tvm.npz").items() if name.startswith("law/")}
    times = OBJECTIVES["tvm"](OT_FM).times
    found = fitted(jax.nn.sigmoid(LENGTH_MEAN + law["law/z_gap"]), law["law/u_s"], times.P_mean, times.P_std)
    np.testing.assert_allclose(found, [law["law/t"], law["law/s"]], rtol=0, atol=TOLERANCE)
    s_prime = jax.nn.sigmoid(times.P_mean + times.P_std * law["law/z_s_prime"])
    np.testing.assert_allclose(s_prime, law["law/s_prime"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["distilled_two_times", "distilled_expanded", "scratch_two_times", "scratch_unguided"])
def test_facm(case, golden, x64):
    """Each example twice, with r = t and with r = 0; the published network has its time run from noise to data."""
    arrays = golden("facm.npz")
    of = {name: jnp.asarray(arrays[f"{case}/{name}"]) for name in ("noise", "tau", "fm_rows", "cm_rows_unweighted")}
    scale, low, high = (float(arrays[f"{case}/{name}"]) for name in ("cfgw", "glow", "ghigh"))
    assert high == 1 and OBJECTIVES["facm"](OT_FM).adaptive.offset == arrays["c"]
    objective, distils = dataclasses.replace(OBJECTIVES["facm"](OT_FM), times=GIVEN), case.startswith("distilled")
    if distils:
        teacher = Teacher(guidance=scale, guidance_low=0.0, guidance_high=1 - low)
        objective = dataclasses.replace(objective, velocity="teacher", teacher=teacher)

    def net(params, student=True):
        def answer(q):
            t, r = 1 - q.t, 1 - q.r
            if case.endswith("expanded"):  # networks of one time
                t, r = jnp.where((q.r == q.t) & student, 2 - t, t), jnp.zeros_like(r)
            return Output(-probe(params, q.x_t, t, r, q.condition["label"]))

        return lambda queries: tuple(map(answer, queries))

    def with_guidance(tau):
        if distils or scale == 1:
            return objective
        # From scratch the published code guides outside of the interval, too: away from the condition's own velocity.
        w_cond = 0.0 if tau >= low else 1 - scale
        return dataclasses.replace(objective, guidance=TargetGuidance(scale, w_cond, 0.0, 1.0, ema="online"))

    rows = examples(arrays["x"], of["noise"], arrays["labels"])
    nets = {"teacher": net(weights(arrays, "teacher/"), student=False)}

    def terms(params, n):
        both = jax.tree.map(lambda a: jnp.stack([a[n], a[n]]), rows)
        t = jnp.full(2, 1 - of["tau"][n])
        return with_guidance(of["tau"][n]).loss(nets | {"online": net(params)}, both, t, t.at[1].set(0.0), LATE)[0]

    def mean(params):
        anchor, consistency = jnp.stack([terms(params, n) for n in range(len(of["tau"]))], axis=1)
        return (anchor + consistency).mean(), (anchor, consistency / jnp.cos(jnp.pi / 2 * of["tau"]))

    grads, found = jax.grad(mean, has_aux=True)(weights(arrays))
    error = largest_difference((found, grads), ((of["fm_rows"], of["cm_rows_unweighted"]), gradients(arrays, case)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["default", "l2_any"])
def test_twin_flow(case, golden, x64):
    """Rows in the order of this project's shares, and with the constant factor of the published Barron loss."""
    arrays = golden("twinflow.npz")
    of = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{case}/")}
    ratio, low, high = (float(of[f"enhanced_{name}"]) for name in ("ratio", "low", "high"))
    inside = (low + 1e-9, high - 1e-9)  # the published interval is open
    square = case.startswith("l2")
    adaptive, factor = (AdaptiveWeight(0.0), 1.0) if square else (AdaptiveWeight(0.5, 1.01e-6), 1.01e-6**0.5 / 1e-3)
    objective = OBJECTIVES["twin_flow"](OT_FM)
    twin = Twin(jumps=int(of["order"]), ema="online", match_weight=float(of["match_weight"]))
    objective = dataclasses.replace(
        objective, twin=twin, adaptive=adaptive, guidance=TargetGuidance(1.0, ratio, *inside, ema="online")
    )
    objective.check()

    class Published(TwinFlow):
        def fresh(self, key, fakes, whole):
            return tuple(jnp.asarray(of[name]) for name in ("fake_noise", "match_noise", "match_t"))

    equal, minimal = objective.times.assign(8)
    order = np.zeros(8, int)
    order[equal], order[minimal] = np.flatnonzero(of["adv"]), np.flatnonzero(of["e2e"])
    order[~(equal | minimal)] = np.flatnonzero(of["mul"] | of["any"])
    objective = of_kind(Published, objective)
    rows = examples(arrays["x"][order], of["noise"][order], arrays["labels"][order])
    t, r = (jnp.abs(of[name])[order] for name in ("t", "tt"))

    def loss(params):
        losses, metrics = objective.loss({"online": as_net(params)}, rows, t, r, LATE, jax.random.key(0))
        of_row = metrics["error"] * adaptive(metrics["error"])
        return factor * losses.mean(), (factor * losses.mean(), factor * of_row, factor * metrics["match"].mean())

    grads, found = jax.grad(loss, has_aux=True)(weights(arrays))
    expected = (of["loss"], of["row_loss"][order], of["e2e_row_loss"].mean()), gradients(arrays, case)
    error = largest_difference((found, grads), expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_difference_transition_matching(golden, x64):
    """With Y = ε − x, the negative of the paper's."""
    arrays = golden("difference_transition_matching.npz")
    rows = examples(arrays["x"], arrays["noise"], arrays["labels"])
    shape = rows.x.shape

    class Published(TransitionMatching):
        def start(self, key, Y):
            return -jnp.asarray(arrays["y0"]), jnp.asarray(arrays["s"]).reshape(shape[:-1])

    objective = of_kind(Published, OBJECTIVES["difference_transition_matching"](OT_FM))
    objective = dataclasses.replace(objective, transitions=int(arrays["steps"]))
    assert set(np.asarray(objective.draw(jax.random.key(0), 500, 4)[0])) == set(np.arange(1, 9) / 8)

    def loss(params):
        def answer(q):
            h = q.x_t.reshape(len(q.t), -1) @ params["W1"].T + q.t[:, None] * params["a"][None]
            h = jnp.tanh(h + params["e"][q.condition["label"]] + params["d"][None])
            y, s = (-q.condition["transition"]).reshape(-1, 4, 3), q.condition["transition_s"].reshape(-1, 4, 1)
            hidden = y @ params["U1"].T + (h @ params["U2"].T)[:, None]
            hidden += s * params["u"][None, None] + params["position"][None]
            return Output(-(jnp.tanh(hidden) @ params["U3"].T).reshape(q.x_t.shape))

        nets, t = {"online": lambda queries: tuple(map(answer, queries))}, jnp.asarray(arrays["t"])
        losses, _ = objective.loss(nets, rows, t, t, LATE, jax.random.key(0))
        return losses.mean(), losses

    expected = {name.removeprefix("grad/"): array for name, array in arrays.items() if name.startswith("grad/")}
    params = {name: jnp.asarray(arrays[name]) for name in expected}
    grads, found = jax.grad(loss, has_aux=True)(params)
    error = largest_difference((found, grads), (arrays["rows"], expected))
    print(f"{error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["mse", "mae"])
def test_cmt(case, golden, x64):
    """On the published trajectory; a norm is an adaptive weight of half the power, with twice the gradient."""
    arrays = golden("cmt.npz")
    transport = dataclasses.replace(TRANSPORTS["ve"](), c_noise=lambda t: t, T_min=0.002)
    trajectory, end = arrays[f"{case}/trajectory"], arrays[f"{case}/end"]
    points, samples = len(trajectory) - 1, len(end)

    class Published(TrajectoryEnds):
        def trajectory(self, nets, first, start, times):
            return jnp.asarray(trajectory[:-1]), jnp.asarray(end)

    adaptive = AdaptiveWeight(0.5 if case == "mae" else 0.0, 1e-30)
    objective = dataclasses.replace(OBJECTIVES["cmt"](transport), trajectory_points=points, adaptive=adaptive)
    objective = of_kind(Published, objective)
    t = jnp.tile(jnp.asarray(arrays[f"{case}/sigmas"]), samples)
    x = np.zeros((points * samples, *end.shape[1:]))
    rows = examples(x, x, np.zeros(len(x), int))

    def loss(params):
        def answer(q):
            D = probe(params | {"e": jnp.zeros_like(params["e"])}, q.x_t / expand(jnp.sqrt(1 + q.t**2), q.x_t),
                      jnp.log(q.t) / 4, jnp.zeros_like(q.t), q.condition["label"])  # fmt: skip
            return Output((D - q.x_t) / expand(q.t - q.r, q.x_t))

        nets = {"online": lambda queries: tuple(map(answer, queries))}
        losses, _ = objective.loss(nets, rows, t, jnp.full_like(t, transport.T_min), LATE)
        total = x[0].size * (t - transport.T_min) ** 2
        losses = (losses * (total if case == "mse" else jnp.sqrt(total))).reshape(samples, points).T
        return losses.mean(), losses

    grads, found = jax.grad(loss, has_aux=True)(weights(arrays))
    expected = {name: (1 if case == "mse" else 2) * gradient for name, gradient in gradients(arrays, case).items()}
    error = largest_difference((found, grads), (arrays[f"{case}/rows"], expected))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_times_of_facm(golden):
    arrays = golden("facm.npz")
    times = OBJECTIVES["facm"](OT_FM).times
    tau = 1 - 2 / np.pi * np.arctan(np.exp(times.P_mean + times.P_std * arrays["distilled_two_times/draw"]))
    np.testing.assert_allclose(tau, arrays["distilled_two_times/tau"], rtol=0, atol=TOLERANCE)
