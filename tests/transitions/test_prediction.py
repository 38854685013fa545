"""What a network's output stands for: every objective, derivative and sampler is that of F, whatever it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import NULL, examples, largest_difference, probe, weights
from tests.helpers.waves import LATE, every_transport, random, wave
from tests.helpers.workdirs import TINY
from tests.transitions.test_golden_objectives import GIVEN, GivenGuidance
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.training import sharding
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.derivative import central_difference, jvp, query
from tim_jax.transitions.jump import data_and_noise, interpolate, prediction_target, velocity
from tim_jax.transitions.objectives.kinds import DIAGONAL
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.own_network import generate, mean_loss
from tim_jax.transitions.prediction import PREDICTIONS, from_F, in_F, target, to_F
from tim_jax.transitions.sampling.planning import ends_of_steps, make_plan
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output, Query

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
TRUE = {
    "F": prediction_target,
    "x": lambda transport, x, noise, t: x,
    "noise": lambda transport, x, noise, t: noise,
    "velocity": velocity,
}


def of(name, prediction, clip=1e-3):
    return dataclasses.replace(TRANSPORTS[name](), prediction=prediction, prediction_clip=clip)


def inside(transport, shares):
    """Times at shares of the levels between 0.02 and 0.98."""
    return transport.time_of_level(0.02 + 0.96 * jnp.asarray(shares))


def expressed(transport, F):
    """A network that is F(x_t, t, r), in times of the transport, by an output that stands for something else."""

    def answer(q):
        t, r = transport.time_of_c_noise(q.t), transport.time_of_c_noise(q.r)
        return in_F(transport, q, Output(from_F(transport, q.x_t, F(q.x_t, t, r), t)))

    return lambda queries: tuple(map(answer, queries))


@every_prediction
@every_transport
def test_outputs_are_what_they_stand_for(transport, prediction, x64):
    transport = of(transport, prediction)
    x, noise, t = random(0), random(1), inside(transport, np.linspace(0, 1, 16))
    x_t, F = interpolate(transport, x, noise, t), prediction_target(transport, x, noise, t)
    np.testing.assert_allclose(to_F(transport, x_t, TRUE[prediction](transport, x, noise, t), t), F, 1e-9, 1e-10)
    output = random(2)
    np.testing.assert_allclose(from_F(transport, x_t, to_F(transport, x_t, output, t), t), output, 1e-9, 1e-10)
    np.testing.assert_array_equal(target(transport, x, noise, t), F)
    x_hat, noise_hat = data_and_noise(transport, x_t, to_F(transport, x_t, output, t), t)
    back = TRUE[prediction](transport, x_hat, noise_hat, t)
    np.testing.assert_allclose(back, output, 1e-8, 1e-9)


@pytest.mark.parametrize("prediction", ["x", "noise"])
@every_transport
def test_where_the_clip_acts_the_target_is_made_of_the_true_quantity(transport, prediction, x64):
    transport = of(transport, prediction, clip=0.6)
    x, noise, t = random(0), random(1), inside(transport, np.linspace(0, 1, 16))
    x_t = interpolate(transport, x, noise, t)
    made = to_F(transport, x_t, TRUE[prediction](transport, x, noise, t), t)
    np.testing.assert_allclose(target(transport, x, noise, t), made, 1e-9, 1e-10)


@every_prediction
@every_transport
def test_the_derivative_is_that_of_F(transport, prediction, x64):
    transport = of(transport, prediction)
    x, noise, t = random(0), random(1), inside(transport, np.linspace(0.05, 0.95, 16))
    r = transport.time_of_level(0.5 * transport.level(t))

    def F(x_t, t, r):
        return wave(x_t, transport.level(t), transport.level(r))

    path = (transport, x, noise, t, r, None)
    _, output, found = jvp(expressed(transport, F), *path)
    x_t, v_t = interpolate(transport, x, noise, t), velocity(transport, x, noise, t)
    value, expected = jax.jvp(lambda x_t, t: F(x_t, t, r), (x_t, t), (v_t, jnp.ones_like(t)))
    np.testing.assert_allclose(output.F, value, 1e-9, 1e-9)
    np.testing.assert_allclose(found, expected, 1e-8, 1e-8)
    step = 1e-4 * float(t.min())
    np.testing.assert_allclose(central_difference(expressed(transport, F), *path, epsilon=step), expected, 1e-3, 1e-3)


@pytest.mark.parametrize("sampler", ["heun", "flow_map", pytest.param("dpm_solver_2m", marks=pytest.mark.slow)])
@pytest.mark.parametrize("transport, prediction", [("ot_fm", "x"), ("vp", "noise"), ("edm", "velocity")])
def test_samplers_do_not_see_what_the_output_stands_for(transport, prediction, sampler, x64):
    transport = of(transport, prediction)
    sampling = Sampling(sampler=sampler, guidance=1.5, guidance_low=0.1, guidance_high=0.9)
    plan = make_plan(transport, transport.time_of_level(jnp.linspace(0.95, 0.05, 6)), sampling)
    keys = jax.random.split(jax.random.key(0), 16)
    condition, null = {"label": jnp.arange(16)}, {"label": jnp.full(16, 20)}

    def F(x_t, t, r):
        return wave(x_t, transport.level(t), transport.level(r))

    itself = dataclasses.replace(transport, prediction="F")
    plain = sample(expressed(itself, F), plan, random(0), condition, null, keys, 1.5)
    found = sample(expressed(transport, F), plan, random(0), condition, null, keys, 1.5)
    np.testing.assert_allclose(found, plain, 1e-10, 1e-10)


def test_a_run_of_a_network_that_predicts_data():
    """The network that is sampled, its velocity head too: at first its output is 0, and so is x̂."""
    changes = {"objective.name": "improved_mean_flow", "transport.name": "vp", "transport.prediction": "x"}
    run = build(load_config("base", TINY | changes), jax.devices()[:1])
    x, t = jnp.ones((2, *run.image_shape)), jnp.array([0.001, 0.7])
    condition = {"label": jnp.zeros(2, jnp.int32), "guidance": jnp.ones((2, 3))}
    params = run.trainer.create().params["online"]
    (output,) = run.net(params)((query(run.transport, x, t, t, condition),))
    expected = x / jnp.maximum(run.transport.sigma(t), 0.05)[:, None, None, None]
    np.testing.assert_allclose(output.F, expected, rtol=1e-5)
    np.testing.assert_allclose(output.heads["velocity"], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_mesh_makes_the_same_of_outputs():
    changes = TINY | {"objective.name": "improved_mean_flow", "transport.prediction": "x"}
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), jnp.linspace(0.01, 1, 8)
    condition = {"label": jnp.arange(8), "guidance": jnp.ones((8, 3))}
    found = []
    for sizes in ({}, {"mesh.data": "2", "mesh.fsdp": "2", "mesh.sequence": "2"}):
        run = build(load_config("base", changes | sizes), jax.devices()[: 8 if sizes else 1])
        params = jax.tree.map(lambda leaf: leaf + 0.02, run.trainer.create().params["online"])
        with sharding.on_mesh(run.mesh):
            (output,) = jax.jit(run.net(params))((query(run.transport, x, t, 0.5 * t, condition),))
        found.append((np.asarray(output.F), np.asarray(output.heads["velocity"])))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_a_network_of_ones_own_predicts_data(x64):
    """The exact x̂ of flow matching has no gradient, and one step of Euler's from noise is what it predicts there."""
    transport = dataclasses.replace(TRANSPORTS["ot_fm"](), prediction="x", prediction_clip=1e-3)
    objective, x = OBJECTIVES["flow_matching"](transport), jnp.tile(0.3, (256, 16))

    def loss(theta):
        return mean_loss(objective, lambda x_t, t, r: theta * jnp.ones_like(x_t), x, jax.random.key(0))[0]

    assert loss(0.3) < 1e-20 < 1e-3 < loss(0.4)
    found = generate(objective, lambda x_t, t, r: jnp.tanh(x_t), random(0), steps=1)
    np.testing.assert_allclose(found, jnp.tanh(random(0)), atol=1e-12)


def jit_net(transport, params):
    """The published probe: it sees τ = 1 − t, no r, and its output is x̂."""
    params = params | {"b": jnp.zeros_like(params["a"])}

    def answer(q):
        return in_F(transport, q, Output(probe(params, q.x_t, 1 - q.t, q.r, q.condition["label"])))

    return lambda queries: tuple(map(answer, queries))


@pytest.mark.parametrize("case", ["default", "scaled"])
def test_jit(case, golden, x64):
    arrays = golden("jit.npz")
    of = {name: arrays[f"{case}/{name}"] for name in ("noise", "t", "rows", "v", "v_pred", "t_eps")}
    transport = dataclasses.replace(TRANSPORTS["ot_fm"](), prediction="x", prediction_clip=float(of["t_eps"]))
    objective, t = OBJECTIVES["flow_matching"](transport), jnp.asarray(of["t"])
    rows = examples(arrays["x"], of["noise"] * arrays[f"{case}/noise_scale"], arrays["labels"])

    def loss(params):
        losses, _ = objective.loss({"online": jit_net(transport, params)}, rows, t, t, jnp.int32(0))
        return losses.mean(), losses

    grads, losses = jax.jit(jax.grad(loss, has_aux=True))(weights(arrays))
    x_t = interpolate(transport, rows.x, rows.noise, t)
    (output,) = jit_net(transport, weights(arrays))((Query(x_t, t, t, rows.condition),))
    expected = {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{case}/grad/")}
    found = losses, output.F, target(transport, rows.x, rows.noise, t), grads
    error = largest_difference(found, (of["rows"], of["v_pred"], of["v"], expected))
    print(f"{case}: {error:.1e}")
    assert error < 1e-10


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_sampling_of_jit(sampler, golden, x64):
    """Guidance is for 0.1 < τ < 0.8, the ends left out; the last step of Heun's method is one of Euler's."""
    arrays = golden("jit.npz")
    transport = dataclasses.replace(TRANSPORTS["ot_fm"](), prediction="x")
    scale, low, high = (float(arrays[f"sample/{name}"]) for name in ("cfg", "low", "high"))
    sampling = Sampling(sampler=sampler, guidance=scale, guidance_low=1 - high, guidance_high=1 - low)
    sampling = dataclasses.replace(sampling, exclusive_ends=True)
    plan = make_plan(transport, 1 - arrays["sample/tau"], sampling)
    condition, null = ({"label": jnp.asarray(label)} for label in (arrays["labels"], np.full(6, NULL)))
    states, keys = arrays[f"sample/{sampler}"], jax.random.split(jax.random.key(0), 6)
    net = jit_net(transport, weights(arrays))
    found = sample(net, plan, jnp.asarray(states[0]), condition, null, keys, scale, trajectory=True)
    np.testing.assert_allclose(found[ends_of_steps(plan, 6, sampling)], states, atol=1e-10)
    print(f"{sampler}: {jnp.abs(found[ends_of_steps(plan, 6, sampling)] - states).max():.1e}")


def test_times_of_jit(golden):
    arrays, times = golden("jit.npz"), dataclasses.replace(DIAGONAL, distribution="logit_normal", P_mean=0.8, P_std=0.8)
    t = jax.nn.sigmoid(times.P_mean - times.P_std * arrays["default/z_t"])
    np.testing.assert_allclose(t, arrays["default/t"], rtol=1e-6)


@pytest.mark.parametrize("case", ["base", "noise2"])
def test_pixel_mean_flow(case, golden, x64):
    """Improved MeanFlow whose outputs are x̂, by the inputs of its own published network; one t of `base` is clipped."""
    arrays = golden("pixel_mean_flow.npz")
    names = ("noise", "t", "r", "scale", "t_min", "t_max", "labels_used", "rows_u", "rows_v", "rows_weighted")
    of = {name: jnp.asarray(arrays[f"{case}/{name}"]) for name in names}
    transport = dataclasses.replace(TRANSPORTS["ot_fm"](), prediction="x")
    objective = OBJECTIVES["improved_mean_flow"](transport)
    inputs = jnp.stack([of["scale"], of["t_min"], of["t_max"]], axis=1)
    guidance = GivenGuidance(objective.input_guidance.max_scale, objective.input_guidance.power, inputs)
    objective = dataclasses.replace(objective, times=GIVEN, input_guidance=guidance)
    rows = examples(arrays["x"], of["noise"], of["labels_used"], of["labels_used"] == NULL)
    size = rows.x[0].size

    def net(params):
        def answer(q):
            extra = q.condition["guidance"].at[:, 0].set(1 - 1 / q.condition["guidance"][:, 0])
            given = (q.x_t, q.t, q.t - q.r, q.condition["label"], extra)
            heads = {"velocity": probe(params | {"W2": params["W2v"]}, *given)}
            return in_F(transport, q, Output(probe(params, *given), heads=heads))

        return lambda queries: tuple(map(answer, queries))

    def mean(params):
        losses, metrics = objective.loss({"online": net(params)}, rows, of["t"], of["r"], LATE, jax.random.key(0))
        return losses.mean(), (losses, metrics["error"])

    params = weights(arrays) | {"W2v": jnp.asarray(arrays["W2v"])}
    grads, (losses, error_u) = jax.grad(mean, has_aux=True)(params)
    expected = {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{case}/grad/")}
    size_u = float(of["rows_u"].max())  # where t is small, sums are large
    error = largest_difference((losses, grads), (of["rows_weighted"], expected))
    relative = largest_difference(size * error_u / size_u, of["rows_u"] / size_u)
    print(f"{case}: {error:.1e}, {relative:.1e}")
    assert max(error, relative) < 1e-10
