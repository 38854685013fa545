"""Solvers against the states that published implementations computed, in float64 (tests/golden/README.md)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from tests.helpers.solving import mixture, solve
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.diffusion import euler_maruyama, sde_heun
from tim_jax.transitions.sampling.epd import parallel_gradients
from tim_jax.transitions.sampling.exponential import dpm_solver_2s, dpm_solver_3s, in_ratio, in_time
from tim_jax.transitions.sampling.flowturbo import continues, ends, flowturbo, kinds
from tim_jax.transitions.sampling.jumps import pseudo_corrector
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.published import dpm_solver, er_sde
from tim_jax.transitions.sampling.sada import instability
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.unipc import unipc
from tim_jax.types import Output


def probe(arrays):
    """(state (B, …), t) → W2 tanh(W1 x + a t + e_label + d)."""
    W1, a, d, e, W2 = (arrays[name] for name in ("W1", "a", "d", "e", "W2"))

    def F(x, t):
        return (np.tanh(x.reshape(len(x), -1) @ W1.T + a * t + e[arrays["labels"]] + d) @ W2.T).reshape(x.shape)

    return F


def cases(name, ending):
    """The names of the results in a file."""
    with np.load(f"tests/golden/{name}") as arrays:
        return [key.removesuffix(ending) for key in arrays if key.endswith(ending)]


def solver(name, grid):
    """The plan of transport and times, by the name of a result."""
    kind, *numbers = name.split("_")
    if kind == "unipc":
        return functools.partial(unipc, order=int(numbers[1]), unipc_variant=numbers[0])
    if numbers[0] in ("2m", "3m"):
        return functools.partial(dpm_solver, order=int(numbers[0][0]))
    between = {"logSNR": in_ratio, "time_uniform": in_time}[grid]
    return functools.partial({"2s": dpm_solver_2s, "3s": dpm_solver_3s}[numbers[0]], between=between)


@pytest.mark.parametrize("file", ["dpm_unipc.npz", "dpm_unipc_mixture.npz"])
def test_dpm_solver_and_unipc(file, golden):
    arrays, compared = golden(file), 0
    for case in cases(file, "/times"):
        name, grid, kind = case.split("/")
        if kind.endswith("taylor"):
            continue  # the exact weight of the slope: `multistep`, whose last steps have other orders
        transport = TRANSPORTS[name]()
        plan = solver(kind, grid)(transport, arrays[f"{case}/times"])
        if "mixture" in file:
            F = mixture(plan, host_transport(transport), arrays["means"], float(arrays["variance"]))
        else:
            F = functools.partial(lambda predict, plan, x, j: predict(x, plan.t[j]), probe(arrays), plan)
        expected = arrays[f"{case}/result"]
        found = solve(plan, F, arrays["z"])[-1]
        assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max(), case
        compared += 1
    assert compared == {"dpm_unipc.npz": 36, "dpm_unipc_mixture.npz": 40}[file]


@pytest.mark.parametrize("case", cases("er_sde.npz", "/result"))
def test_er_sde(case, golden):
    arrays = golden("er_sde.npz")
    name, order, scale = case.split("/")
    scale = {"f1": "ode", "f2": "sde", "f4": "power", "f7": "er_sde"}[scale]
    predict = probe(arrays)
    transport, times, x = TRANSPORTS[name](), arrays["times"], arrays["z"]
    if name == "ve":
        transport, times, x = dataclasses.replace(transport, T_min=0.0), arrays["sigmas"], 40 * x
    plan = er_sde(transport, times, int(order[-1]), scale)

    def F(x, j):
        t = plan.t[j]
        if name == "vp":
            return predict(x, t)
        return -(x - predict(x / np.sqrt(1 + t**2), np.log(t) / 4)) / t  # x̂ is what the probe gives

    noise = np.concatenate([np.zeros((1, *x.shape)), arrays[f"{case}/noise"]])
    expected = arrays[f"{case}/result"]
    assert np.abs(solve(plan, F, x, noise)[-1] - expected).max() < 1e-12 * np.abs(expected).max()


def slope(f):
    return lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


@pytest.mark.parametrize("case", cases("sit.npz", "/result"))
def test_reverse_sdes(case, golden):
    arrays = golden("sit.npz")
    _, path, step, form, last, *_ = case.split("/")
    transport = TRANSPORTS[{"Linear": "ot_fm", "GVP": "cosine", "VP": "vp"}[path]]()
    # Its networks predict the velocity, whatever the path.
    transport = dataclasses.replace(
        transport, alpha_hat=slope(transport.alpha), sigma_hat=slope(transport.sigma), T_min=0.0
    )
    tau = arrays[f"{case}/tau"]
    form = {"SBDM": "sbdm", "inccreasing-decreasing": "increasing_decreasing"}.get(form, form)
    make = {"Euler": euler_maruyama, "Heun": sde_heun}[step]
    times = 1 - np.append(tau, tau[-1] + arrays["last_step_size"])
    plan = make(transport, times, form, float(arrays["norm"]), last.lower())
    noise = np.zeros((len(plan.c), *arrays["z"].shape))
    noise[plan.c > 0] = arrays["sde/noise"]
    predict, expected = probe(arrays), arrays[f"{case}/result"]
    found = solve(plan, lambda x, j: predict(x, plan.t[j]), arrays["z"], noise)[-1]
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("case", ["H/H", "P/P", "H2P/HP", "H2P2R/HPR", "H1R/R"])
def test_flowturbo(case, golden, x64):
    arrays, (pattern, name) = golden("flowturbo.npz"), case.split("/")
    refine = {key.removeprefix("refiner/"): part for key, part in arrays.items() if key.startswith("refiner/")}
    transport = TRANSPORTS["ot_fm"]()
    plan = flowturbo(transport, 1 - arrays["tau"], pattern)

    def net(weights, extra):
        def answer(q):
            W1, a, d, e = (weights[part] for part in ("W1", "a", "d", "e"))
            flat, pre = q.x_t.reshape(3, -1), e[arrays["labels"]] + d
            if extra:
                pre = pre + q.condition["prediction"].reshape(3, -1) @ weights["g"].T
            F = (jnp.tanh(flat @ W1.T + a[None] * q.t[:, None] + pre) @ weights["W2"].T).reshape(q.x_t.shape)
            return Output(F + q.condition["prediction"] if extra else F)

        return lambda queries: tuple(map(answer, queries))

    x, keys = jnp.asarray(arrays["z"]), jax.random.split(jax.random.key(0), 3)
    states = sample(net(arrays, False), plan, x, None, None, keys, trajectory=True, refiner=net(refine, True))
    expected = arrays[f"{name}/trajectory"]
    np.testing.assert_allclose(states[-1], expected[-1], atol=1e-12)
    of_steps = kinds(pattern, 5)
    assert [ord(letter) for letter in of_steps] == arrays[f"{name}/steps"].tolist()
    found = states[ends(pattern, 5)]
    for i in range(5):
        if not continues(of_steps, i):  # where the state is a predicted one
            np.testing.assert_allclose(found[i], expected[i], atol=1e-12)


def test_the_pseudo_corrector(golden):
    arrays = golden("flowturbo.npz")
    plan = pseudo_corrector(TRANSPORTS["ot_fm"](), 1 - arrays["tau"])
    predict = probe(arrays)
    found = solve(plan, lambda x, j: predict(x, plan.t[j]), arrays["z"])[-1]
    np.testing.assert_allclose(found, arrays["P/trajectory"][-1], atol=1e-12)


def test_the_criterion_of_sada(golden, x64):
    arrays = golden("sada.npz")
    f = [slopes[None] for slopes in arrays["f"]]  # its mean is over the batch, which here is one image
    for n in range(2, len(f)):
        found = instability(tuple(map(jnp.asarray, (f[n], f[n - 1], f[n - 2]))))
        np.testing.assert_allclose(found, arrays["flow_criterion"][n], atol=1e-15)


def test_epd(golden):
    arrays = golden("epd.npz")
    predict = probe(arrays)
    raw = {name: arrays[f"raw_{name}"] for name in ("r", "weight", "direction", "time")}
    directions, time_scales = (
        1 + (2 * expit(raw[name] / 2) - 1) * arrays[f"{name}_range"] for name in ("direction", "time")
    )
    transport = dataclasses.replace(TRANSPORTS["ve"](), T_min=0.0)
    plan = parallel_gradients(
        transport, arrays["sigmas"], expit(raw["r"]), softmax(raw["weight"], axis=1), directions, time_scales
    )

    def F(x, j):  # x̂ is what the probe gives
        t = plan.t[j]
        return -(x - predict(x / np.sqrt(1 + t**2), np.log(t) / 4)) / t

    found, expected = solve(plan, F, 80 * arrays["z"])[::4], arrays["trajectory"]
    assert len(plan.t) == 16 and (plan.s == plan.t).all() and plan.a.shape == (16, 4)
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()
