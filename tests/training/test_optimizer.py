"""Optimizers, schedules and EMAs against the same in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.configs import tiny_config
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.identity import completed
from tim_jax.runs.workdir import to_json
from tim_jax.training import sharding
from tim_jax.training.optimizer import OPTIMIZERS, SCHEDULES, OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import update_emas


@pytest.mark.nightly
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_layers_are_optimized_like_unrolled_ones(name):
    """Muon sees a batch of matrices where blocks are stacked, and q, k, v each for itself."""
    rng = np.random.default_rng(0)
    tx = make_optimizer(OptimizerSettings(name, learning_rate=0.1, clip=0.0))

    def update(kernels):
        params = {"online": {"blocks": kernels}}
        grads = jax.tree.map(lambda p: jnp.sin(3 * p), params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return updates["online"]["blocks"]

    mlp = jnp.asarray(rng.standard_normal((3, 8, 16)), jnp.float32)
    qkv = jnp.asarray(rng.standard_normal((3, 8, 3, 2, 4)), jnp.float32)
    out = jnp.asarray(rng.standard_normal((3, 2, 4, 8)), jnp.float32)
    stacked = update({"mlp": {"kernel": mlp}, "qkv": {"kernel": qkv}, "out": {"kernel": out}})
    for layer in range(3):
        part = slice(layer, layer + 1)
        alone = update({"mlp": {"kernel": mlp[part]}, "qkv": {"kernel": qkv[part]}, "out": {"kernel": out[part]}})
        for key in ("mlp", "qkv", "out"):
            np.testing.assert_allclose(stacked[key]["kernel"][part], alone[key]["kernel"], rtol=1e-4, atol=1e-6)
    if name == "muon":
        matrix = np.asarray(stacked["mlp"]["kernel"][0]) + 0.1 * 0.01 * np.asarray(mlp[0])
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() / values.min() < 2.0, "an orthogonalised update has nearly equal singular values"
        q = np.asarray(stacked["qkv"]["kernel"][0, :, 0]).reshape(8, 8)
        lone = update({"mlp": {"kernel": qkv[:, :, 0].reshape(3, 8, 8)}})["mlp"]["kernel"][0]
        np.testing.assert_allclose(q, lone, rtol=1e-4, atol=1e-6)


def test_two_matrices_in_one_product_are_orthogonalised_each_for_itself():
    """Those of a packed SwiGLU."""
    tx = make_optimizer(OptimizerSettings("muon", learning_rate=0.1, clip=0.0))
    pair = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 2, 6)), jnp.float32)

    @jax.jit
    def update(mlp):
        params = {"online": {"blocks": {"mlp": {name: {"kernel": kernel} for name, kernel in mlp.items()}}}}
        return tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params)[0]["online"]["blocks"]["mlp"]

    packed, apart = update({"in": pair}), update({"gate": pair[:, :, 0], "up": pair[:, :, 1]})
    for number, name in enumerate(apart):
        np.testing.assert_allclose(packed["in"]["kernel"][:, :, number], apart[name]["kernel"], rtol=1e-4, atol=1e-6)


def newton_schulz(x):
    """Five iterations on a matrix, by the coefficients of Keller Jordan's Muon, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("momentum, eps, b2", [(0.95, 1e-6, 0.95), (0.6, 1e-6, 0.99), (0.95, 0.5, 0.95)])
def test_muon_is_that_of_numpy(momentum, eps, b2):
    """Muon with Nesterov's momentum on a matrix, and Adam with it on a bias, in float64 for three steps."""
    rate, decay, b1 = 0.02, 0.1, 0.9
    settings = OptimizerSettings(
        "muon", learning_rate=rate, weight_decay=decay, b1=b1, b2=b2, eps=eps, momentum=momentum, clip=0.0
    )
    rng = np.random.default_rng(0)
    W, bias = rng.standard_normal((4, 6)), rng.standard_normal(5)
    params = {"online": {"blocks": {"mlp": {"kernel": jnp.asarray(W[None], jnp.float32)}}, "bias": jnp.float32(bias)}}
    tx = make_optimizer(settings)
    state = tx.init(params)
    mu, m, v = np.zeros_like(W), np.zeros_like(bias), np.zeros_like(bias)
    for n in range(1, 4):
        G, g = rng.standard_normal(W.shape), rng.standard_normal(bias.shape)
        grads = {"online": {"blocks": {"mlp": {"kernel": jnp.asarray(G[None], jnp.float32)}}, "bias": jnp.float32(g)}}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)

        mu = momentum * mu + (1 - momentum) * G
        ahead = momentum * mu / (1 - momentum ** (n + 1)) + (1 - momentum) * G / (1 - momentum**n)
        direction = newton_schulz(ahead / (np.linalg.norm(ahead) + eps)) * 0.2 * np.sqrt(6)
        W = W - rate * (direction + decay * W)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (n + 1)) + (1 - b1) * g / (1 - b1**n)
        bias = bias - rate * (ahead / (np.sqrt(v / (1 - b2**n)) + eps) + decay * bias)
    np.testing.assert_allclose(params["online"]["blocks"]["mlp"]["kernel"][0], W, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["online"]["bias"], bias, rtol=1e-4, atol=1e-5)


def rate(name, n, warmup, end, peak=0.5):
    """The learning rate of update n, in numpy."""
    if n < warmup:
        return peak * (n + 1) / warmup
    gone = min(1.0, (n - warmup) / (end - warmup))
    return peak * {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + np.cos(np.pi * gone)) / 2}[name]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("decay, steps", [(100, 100), (0, 100), (0, 60), (100, 200)])
def test_schedules_warm_up_and_end(name, decay, steps):
    """decay_steps 0 follows the steps of training."""
    decay = 0 if name == "constant" else decay
    settings = OptimizerSettings(schedule=name, learning_rate=0.5, warmup_steps=10, decay_steps=decay)
    settings.check()
    schedule = make_schedule(settings.following(steps))
    rates = [float(schedule(n)) for n in range(steps + 20)]
    right = [rate(name, n, 10, decay or steps) for n in range(steps + 20)]
    np.testing.assert_allclose(rates, right, rtol=1e-5, atol=1e-7)
    doubts = settings.doubts(steps)
    assert bool(doubts) == (0 < decay < steps)
    assert all("decay_steps is 100, and training.steps 200" in doubt for doubt in doubts)
    assert all("with optimizer.decay_steps=200 it falls until the last one" in doubt for doubt in doubts)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_training_is_told_and_followed(name):
    settings = OptimizerSettings(schedule=name, learning_rate=0.5, warmup_steps=10)
    schedule = make_schedule(settings.following(4))
    np.testing.assert_allclose([float(schedule(n)) for n in range(4)], 0.05 * np.arange(1, 5), rtol=1e-6)
    (doubt,) = settings.doubts(4)
    assert "optimizer.warmup_steps is 10" in doubt and "training.steps 4" in doubt


def test_a_muon_run_of_before_keeps_its_numbers():
    recorded = to_json(tiny_config("digits", {"optimizer.name": "muon", "optimizer.b2": "0.9"}))
    del recorded["optimizer"]["momentum"]
    then = completed(recorded)["optimizer"]
    assert (then["momentum"], then["b2"], then["eps"]) == (0.9, 0.9, 1e-8)
    recorded["optimizer"]["name"] = "adamw"
    then = completed(recorded)["optimizer"]
    assert (then["momentum"], then["b2"], then["eps"]) == (0.95, 0.9, 1e-6)


def test_averages_follow_their_decay():
    params, emas = {"w": jnp.array([1.0])}, {"fast": {"w": jnp.array([0.0])}, "slow": {"w": jnp.array([0.0])}}
    late = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(10**6))
    assert late["fast"]["w"][0] == pytest.approx(0.5) and late["slow"]["w"][0] == pytest.approx(0.1)
    early = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(0))
    assert early["slow"]["w"][0] == pytest.approx(0.9)
    constant = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(0), warmup=False)
    assert constant["fast"]["w"][0] == pytest.approx(0.5) and constant["slow"]["w"][0] == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [True, False])
def test_an_ema_is_what_a_recurrence_in_float64_gives(warmup):
    """The parameters of every step are put into numpy's recurrence, from the first ones on."""
    changes = {"ema.slow": "0.9", "optimizer.ema_warmup": str(warmup), "data.batch_size": "4"}
    run = build(tiny_config("digits", changes | {"optimizer.warmup_steps": "0"}), jax.devices()[:1])
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 4))
    state = run.trainer.create()

    def values(tree):
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(jax.device_get(tree))])

    ema = values(state.params["online"])
    for step in range(3):
        state, _ = run.trainer(state, batch)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        ema = decay * ema + (1 - decay) * values(state.params["online"])
        np.testing.assert_allclose(values(state.emas["slow"]), ema, rtol=1e-5, atol=1e-8)


def test_gradients_are_clipped_over_all_parameters():
    tx = make_optimizer(OptimizerSettings(clip=1.0))
    params = {"online": {"a": jnp.zeros(3), "b": jnp.zeros(4)}}
    grads = {"online": {"a": jnp.full(3, 30.0), "b": jnp.full(4, 40.0)}}
    clipped, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    small = make_optimizer(OptimizerSettings(clip=0.0))
    a, b = (jax.jit(lambda g, by=by: by.update(g, by.init(params), params)[0])(g)
            for by, g in ((tx, grads), (small, clipped)))  # fmt: skip
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)
