"""Objectives against the losses and gradients that published implementations computed (tests/golden/README.md)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import NULL, as_net, examples, largest_difference, probe, weights
from tests.helpers.waves import LATE
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.consistency import example_mean, semigroup_target
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.objectives.cmt import TrajectoryEnds
from tim_jax.transitions.objectives.drifting import Cloud, Drift, drift, forces
from tim_jax.transitions.objectives.kinds import of_kind
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


def gradients(arrays, case, folder="grad"):
    """The published gradients by weight."""
    return {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{case}/{folder}/")}


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


@pytest.mark.parametrize("case", ["plain", "model_guidance"])
def test_dmf(case, golden, x64):
    """Each example twice, with r = t and with the jump; of the published table of losses its diagonal."""
    arrays = golden("dmf.npz")
    of = {name: jnp.asarray(arrays[f"{case}/{name}"]) for name in ("t_fm", "t", "r", "noise_fm", "noise", "dropped")}
    guidance = TargetGuidance(1.0, float(arrays["omega"]), float(arrays["g_min"]), float(arrays["g_max"]), 0, "online")
    objective = dataclasses.replace(OBJECTIVES["dmf"](OT_FM), times=GIVEN)
    assert objective.learned_offset == arrays["eps"]
    if case == "model_guidance":
        objective = dataclasses.replace(objective, guidance=guidance)
    both = (jnp.concatenate([x, x]) for x in (arrays["x"], arrays["labels"], of["dropped"]))
    x, labels, dropped = both
    rows = examples(x, jnp.concatenate([of["noise_fm"], of["noise"]]), labels, dropped)
    t, r = (jnp.concatenate([of["t_fm"], of[end]]) for end in ("t", "r"))

    def net(params):
        def answer(q):
            u = params["lv"][0] * q.t + params["lv"][1] * q.r + params["lv"][2]
            return Output(probe(params, q.x_t, q.t, q.r, q.condition["label"]), heads={"joint_log_variance": u})

        return lambda queries: tuple(map(answer, queries))

    def mean(params):
        losses, metrics = objective.loss({"online": net(params)}, rows, t, r, LATE)
        return losses.mean(), (losses.reshape(2, -1).mean(axis=0), metrics["error"].reshape(2, -1) * rows.x[0].size)

    grads, found = jax.grad(mean, has_aux=True)(weights(arrays) | {"lv": jnp.asarray(arrays["lv"])})
    sums = np.stack([arrays[f"{case}/{part}_mse_sum"] for part in ("fm", "mf")])
    expected = (arrays[f"{case}/own_rows"], sums), gradients(arrays, case, "own_grad")
    error = largest_difference((found, grads), expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


@dataclasses.dataclass(frozen=True)
class GivenGuidance(InputGuidance):
    """Inputs that are given, not drawn."""

    inputs: Any = None

    def add_inputs(self, transport, examples, key, whole=False):
        found = super().add_inputs(transport, examples, key, whole)
        interval = found.condition["guidance"][:, 1:]
        assert ((interval == jnp.array([[transport.T_min, transport.T_max]])).all(axis=1) == whole).all()
        return found._replace(condition=found.condition | {"guidance": self.inputs})


@pytest.mark.parametrize("case", ["base", "beta2"])
def test_improved_mean_flow(case, golden, x64):
    """The published network has t, t − r, one minus one over the scale, and the interval."""
    arrays = golden("improved_mean_flow.npz")
    names = ("noise", "t", "r", "scale", "t_min", "t_max", "labels_used", "rows_u", "rows_v", "rows_weighted")
    of = {name: jnp.asarray(arrays[f"{case}/{name}"]) for name in names}
    rows = examples(arrays["x"], of["noise"], of["labels_used"], of["labels_used"] == NULL)
    inputs = jnp.stack([of["scale"], of["t_min"], of["t_max"]], axis=1)
    power, adaptive = (
        (1.0, AdaptiveWeight(1.0, 1e-2, True)) if case == "base" else (2.0, AdaptiveWeight(0.5, 1e-3, True))
    )
    objective = OBJECTIVES["improved_mean_flow"](OT_FM)
    assert case != "base" or (objective.adaptive, objective.input_guidance.power) == (adaptive, power)
    guidance = GivenGuidance(objective.input_guidance.max_scale, power, inputs)
    objective = dataclasses.replace(objective, times=GIVEN, adaptive=adaptive, input_guidance=guidance)
    size = rows.x[0].size

    def net(params):
        def answer(q):
            extra = q.condition["guidance"].at[:, 0].set(1 - 1 / q.condition["guidance"][:, 0])
            given = (q.x_t, q.t, q.t - q.r, q.condition["label"], extra)
            return Output(probe(params, *given), heads={"velocity": probe(params | {"W2": params["W2v"]}, *given)})

        return lambda queries: tuple(map(answer, queries))

    def mean(params):
        nets = {"online": net(params)}
        losses, metrics = objective.loss(nets, rows, of["t"], of["r"], LATE, jax.random.key(0))
        losses *= size ** (1 - adaptive.power)  # sums over an example's values, not means
        return losses.mean(), (losses, size * metrics["error"])

    params = weights(arrays) | {"W2v": jnp.asarray(arrays["W2v"])}
    grads, found = jax.grad(mean, has_aux=True)(params)
    error = largest_difference((found, grads), ((of["rows_weighted"], of["rows_u"]), gradients(arrays, case)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_scales_of_improved_mean_flow(golden, x64, monkeypatch):
    arrays = golden("improved_mean_flow.npz")
    for case, power in (("base", 1.0), ("beta2", 2.0)):
        monkeypatch.setattr(jax.random, "uniform", lambda *_, case=case: jnp.asarray(arrays[f"{case}/u_scale"]))
        found = InputGuidance(8.0, power).draw_scales(jax.random.key(0), 6)
        np.testing.assert_allclose(found, arrays[f"{case}/scale"], rtol=0, atol=TOLERANCE)


def of_imm(case, sigma_d):
    """The published transport: F ≈ (ε − x)/σ_d, (α_t ε − σ_t x)/σ_d or x, of noise ε of deviation σ_d."""
    transport = TRANSPORTS["cosine" if case == "cosine" else "ot_fm"]()
    predicts = {
        "euler": (lambda t: -jnp.ones_like(t) / sigma_d, lambda t: jnp.ones_like(t) / sigma_d),
        "cosine": (lambda t: -transport.sigma(t) / sigma_d, lambda t: transport.alpha(t) / sigma_d),
        "identity": (jnp.ones_like, jnp.zeros_like),
    }
    alpha_hat, sigma_hat = predicts[case]
    return dataclasses.replace(transport, alpha_hat=alpha_hat, sigma_hat=sigma_hat)


@pytest.mark.parametrize("case", ["euler", "cosine", "identity"])
def test_imm(case, golden, x64):
    arrays = golden("imm.npz")
    of = {name.partition("/")[2]: jnp.asarray(array) for name, array in arrays.items() if name.startswith(f"{case}/")}
    sigma_d, particles = float(arrays["sigma_d"]), int(arrays["particles"])
    transport = of_imm(case, sigma_d)
    settings = dict(halvings=int(of["k"]), alpha_power=int(of["a"]), log_ratio=float(of["b"]))
    settings |= dict(particles=particles, min_time=float(of["eps"]), max_time=float(of["T"]))
    objective = OBJECTIVES["imm"](transport)
    objective = dataclasses.replace(objective, moments=dataclasses.replace(objective.moments, **settings))
    objective.check()
    t, end = (jnp.repeat(of[name], particles) for name in ("t", "s"))
    rows = examples(arrays["x"], arrays["noise"], arrays["labels"])
    groups = np.s_[::particles]
    middle = objective.middle(t, end)
    states = [interpolate(transport, rows.x, rows.noise, time) for time in (t, middle)]

    def net(params):
        def answer(q):
            size = sigma_d * jnp.sqrt(transport.alpha(q.t) ** 2 + transport.sigma(q.t) ** 2)
            return Output(probe(params, q.x_t / expand(size, q.x_t), q.t, q.r, q.condition["label"]))

        return lambda queries: tuple(map(answer, queries))

    def mean(params):
        losses, metrics = objective.loss({"online": net(params)}, rows, t, end, LATE)
        by_group = [values.reshape(-1, particles).mean(axis=1) for values in (losses, metrics["error"])]
        return losses.mean(), by_group

    grads, found = jax.grad(mean, has_aux=True)(weights(arrays))
    found = (middle[groups], objective.time_weight(t)[groups], *states, *found, grads)
    expected = (*(of[name] for name in ("r", "weight", "x_t", "x_r", "loss", "loss_raw")), gradients(arrays, case))
    error = largest_difference(found, expected)
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["plain", "one", "guided"])
def test_drifting(case, golden, x64):
    """Negatives are of each label alone; without any, the objective with its memory has the same losses."""
    arrays = golden("drifting.npz")
    of = {name.partition("/")[2]: jnp.asarray(array) for name, array in arrays.items() if name.startswith(f"{case}/")}
    temperatures, labels, z = tuple(of["R"].tolist()), jnp.asarray(arrays["labels"]), jnp.asarray(arrays["z"])
    positive, negative = (jnp.asarray(arrays[key]) for key in ("positive", "negative"))
    there = jnp.ones((2, 5), bool)
    positives = Cloud(positive, there, there.astype(float))
    weight = {"plain": None, "one": jnp.ones((2, 3)), "guided": jnp.asarray(arrays["negative_weight"])}[case]

    def clouds(f):
        samples = Cloud(jax.lax.stop_gradient(f), jnp.ones((2, 4), bool), jnp.ones((2, 4)))
        return [samples] if weight is None else [samples, Cloud(negative, jnp.ones((2, 3), bool), weight)]

    def losses(f):
        error, V = drift(f, clouds(f), positives, temperatures)
        return error.mean(axis=1), jnp.mean(V**2, axis=(1, 2, 3))

    def timeless(params):
        return params | {"a": 0 * params["a"], "b": 0 * params["b"]}

    def mean(params):
        f = probe(timeless(params), z, jnp.zeros(8), jnp.zeros(8), jnp.repeat(labels, 4)).reshape(2, 4, -1)
        by_label, norms = losses(f)
        scale = forces(clouds(f), positives, temperatures)[0] * np.sqrt(12)
        return by_label.mean(), (f, by_label, norms, scale, jax.grad(lambda f: losses(f)[0].mean())(f))

    params = weights(arrays)
    grads, found = jax.jit(jax.grad(mean, has_aux=True))(params)
    norms = jnp.stack([of[f"force_norm2_{R:g}"] for R in temperatures])
    expected = of["gen"], of["loss"], norms, of["scale"], of["gen_gradient"]
    error = largest_difference((found, grads), (expected, gradients(arrays, case)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE
    if case != "plain":
        return

    # F ≈ x is the sample itself, and the queues hold the positives of both labels.
    objective = OBJECTIVES["drifting"](of_imm("identity", 1.0))
    objective = dataclasses.replace(objective, drift=Drift(samples=4, queue=5, temperatures=temperatures))
    objective.check()
    rows = examples(jnp.zeros_like(z), z, jnp.repeat(labels, 4))

    @jax.jit
    def through_memory(params):
        empty = objective.memory((2, 2, 3), NULL)
        memory = {name: jnp.zeros(array.shape, float if name == "queue" else int) for name, array in empty.items()}
        memory = objective.remember(memory, {"x": positive.reshape(-1, 2, 2, 3), "label": jnp.repeat(labels, 5)})
        nets = {"online": as_net(timeless(params))}
        losses, metrics = objective(nets, rows, LATE, jax.random.key(0), memory=memory)
        return losses.reshape(2, 4).mean(axis=1), metrics["force"].mean()

    assert largest_difference(through_memory(params), (of["loss"], norms.mean())) < TOLERANCE


def test_padding_belongs_to_no_group_of_imm(golden, x64):
    """A group of three, one of which is not there, has the losses and the gradient of the other two."""
    arrays = golden("imm.npz")
    rows = examples(arrays["x"], arrays["noise"], arrays["labels"])
    padded = rows._replace(x=rows.x.at[jnp.array([1, 5])].set(1e3), weight=jnp.array([1.0, 0, 1, 1, 1, 0]))
    there = np.array([0, 2, 3, 4])
    whole = jax.tree.map(lambda a: a[there], rows)

    def found(rows, particles):
        objective = OBJECTIVES["imm"](OT_FM)
        objective = dataclasses.replace(objective, moments=dataclasses.replace(objective.moments, particles=particles))
        t, r = jnp.full(len(rows.x), 0.7), jnp.full(len(rows.x), 0.2)

        def total(params):
            losses = objective.loss({"online": as_net(params)}, rows, t, r, LATE)[0]
            return losses.sum(), losses

        return jax.jit(jax.grad(total, has_aux=True))(weights(arrays))

    grads, losses = found(padded, 3)
    assert not losses[np.array([1, 5])].any() and losses[there].all()
    assert largest_difference((grads, losses[there]), found(whole, 2)) < TOLERANCE
    assert not found(padded._replace(weight=jnp.zeros(6)), 3)[1].any()
