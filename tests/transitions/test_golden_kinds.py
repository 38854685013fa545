"""Objectives with files of their own against what published implementations computed (tests/golden/README.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import (
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
from tim_jax.transitions.guidance import TargetGuidance
from tim_jax.transitions.jump import expand, interpolate
from tim_jax.transitions.objectives.cmt import TrajectoryEnds
from tim_jax.transitions.objectives.drifting import Cloud, Drift, drift, forces
from tim_jax.transitions.objectives.kinds import of_kind
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.objectives.transition_matching import TransitionMatching
from tim_jax.transitions.objectives.twinflow import Twin, TwinFlow
from tim_jax.transitions.weights import AdaptiveWeight
from tim_jax.types import Output


@pytest.mark.parametrize("case", ["default", pytest.param("l2_any", marks=pytest.mark.slow)])
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

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(weights(arrays))
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
    grads, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    error = largest_difference((found, grads), (arrays["rows"], expected))
    print(f"{error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("case", ["mse", pytest.param("mae", marks=pytest.mark.slow)])
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

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(weights(arrays))
    expected = {name: (1 if case == "mse" else 2) * gradient for name, gradient in gradients(arrays, case).items()}
    error = largest_difference((found, grads), (arrays[f"{case}/rows"], expected))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


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

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
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
