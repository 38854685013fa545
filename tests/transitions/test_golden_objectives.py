"""Objectives against the losses and gradients that published implementations computed (tests/golden/README.md)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import (
    GIVEN,
    NULL,
    OT_FM,
    TOLERANCE,
    as_net,
    examples,
    gradients,
    largest_difference,
    probe,
    weights,
)
from tests.helpers.waves import LATE
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.consistency import example_mean, semigroup_target
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import LENGTH_MEAN, fitted
from tim_jax.transitions.weights import AdaptiveWeight
from tim_jax.types import Output


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

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(weights(arrays))
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


@pytest.mark.parametrize(
    "case", ["linear", *(pytest.param(each, marks=pytest.mark.slow) for each in ("linear_guided", "trig"))]
)
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

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
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

    grads, square = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
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


@pytest.mark.parametrize(
    "case",
    [
        "scaled",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                "plain",
                "random_scale",
            )
        ),
    ],
)
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
        beta = float(arrays[f"{case}/beta"][n])
        nets = {"online": net(params, beta), "slow": net(weights(arrays, "ema/"), beta)}
        guided = dataclasses.replace(objective, guidance=TargetGuidance(1 / beta, 0.0, 0.0, 1.0, ema="slow"))
        guided.check()
        both = jax.tree.map(lambda a: jnp.stack([a[n], a[n]]), rows)
        t, r = (jnp.stack([of[name][n], of["s_prime"][n]]) for name in ("t", "s"))
        return beta**2 * guided.loss(nets, both, t, r, LATE)[0]

    def mean(params):
        losses = jnp.stack([terms(params, n) for n in range(len(of["t"]))], axis=1)
        return losses.sum(axis=0).mean(), tuple(losses)

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
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
        return with_guidance(arrays[f"{case}/tau"][n]).loss(
            nets | {"online": net(params)}, both, t, t.at[1].set(0.0), LATE
        )[0]

    def mean(params):
        anchor, consistency = jnp.stack([terms(params, n) for n in range(len(of["tau"]))], axis=1)
        return (anchor + consistency).mean(), (anchor, consistency / jnp.cos(jnp.pi / 2 * of["tau"]))

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
    error = largest_difference((found, grads), ((of["fm_rows"], of["cm_rows_unweighted"]), gradients(arrays, case)))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_times_of_facm(golden):
    arrays = golden("facm.npz")
    times = OBJECTIVES["facm"](OT_FM).times
    tau = 1 - 2 / np.pi * np.arctan(np.exp(times.P_mean + times.P_std * arrays["distilled_two_times/draw"]))
    np.testing.assert_allclose(tau, arrays["distilled_two_times/tau"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["plain", pytest.param("model_guidance", marks=pytest.mark.slow)])
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

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays) | {"lv": jnp.asarray(arrays["lv"])})
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
