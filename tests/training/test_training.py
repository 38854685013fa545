"""Optimizers, state and steps: equal by any route, resumed bit-equal, the same on every mesh."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tim_jax import train as command
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.keys import compare_identity, completed
from tim_jax.runs.workdir import to_json
from tim_jax.training import checkpoints, sharding
from tim_jax.training.optimizer import OPTIMIZERS, SCHEDULES, OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import update_emas

SMALL = {
    "model.width": "32", "model.depth": "2", "model.heads": "2", "model.bottleneck": "16", "model.encoder_depth": "1",
    "model.patch_size": "4", "data.batch_size": "40", "training.sample_steps": "(1,)", "training.sample_every": "0",
}  # fmt: skip


@functools.cache  # tests share the programs of a run
def make_run(devices=1, **changes):
    overrides = SMALL | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return build(load_config("digits", overrides), jax.devices()[:devices])


def steps(run, count, rows=None):
    """Metrics of some steps on made-up rows, and the last state."""
    batch = sharding.put_batch(run.mesh, rows or made_up_batch(run.config, run.config.data.batch_size))
    state, history = run.trainer.create(), []
    for _ in range(count):
        state, metrics = run.trainer(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return history, jax.device_get(state)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(scope="module")
def one_device():
    return steps(make_run(), 3)


def test_a_mesh_gives_the_numbers_of_one_device(one_device):
    """For other meshes and more steps see test_meshes.py."""
    history, state = steps(make_run(4, mesh__data=1, mesh__fsdp=2, mesh__tensor=2), 3)
    for here, there in zip(history, one_device[0], strict=True):
        for name in ("error_equal", "error_moving", "grad_norm", "tangent_rms"):
            assert here[name] == pytest.approx(there[name], rel=1e-5, abs=1e-6), name
    assert_close(state.params, one_device[1].params)


# Times are drawn by microbatch; with all of them at r = t = T_max, a whole batch and its parts have the same ones.
SAME_TIMES = dict(
    times__share_equal=1.0, times__share_min=0.0, times__distribution="logit_normal", times__P_mean=30.0,
    objective__velocity="data", data__condition_dropout=0.0, data__batch_size=8, optimizer__clip=0.0,
)  # fmt: skip


def gradients(state):
    """The gradients of the first step, from Adam's first moment, (1 − b1) g."""
    (moments,) = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))[:1]
    return jax.tree.map(lambda m: m / np.float32(1 - 0.9), moments.mu)


@pytest.fixture(scope="module")
def by_microbatches():
    """(weights, number of microbatches) → metrics, state and arrays of examples of the first step."""

    @functools.cache
    def first_step(weights, accumulation):
        run = make_run(**SAME_TIMES, optimizer__accumulation=accumulation)
        rows = made_up_batch(run.config, 8) | {"weight": np.array(weights, np.float32)}
        state, metrics, per_example = run.trainer.detailed(run.trainer.create(), sharding.put_batch(run.mesh, rows))
        return jax.device_get((metrics, state, per_example))

    return first_step


WEIGHTS = [
    (1, 0, 1, 0, 1, 0, 1, 0), (1, 1, 1, 1, 0, 0, 0, 0), (0.02, 0, 0.01, 0, 0, 0.03, 0, 0), (3, 1, 4, 1, 5, 9, 2, 6),
    (0,) * 8,
]  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_microbatches_give_the_weighted_mean_of_the_whole_batch(weights, accumulation, by_microbatches):
    """Σ w·loss / Σ w in float64, and loss and gradient without microbatches."""
    whole, state, _ = by_microbatches(weights, 1)
    parts, state_of_parts, per_example = by_microbatches(weights, accumulation)
    loss, w = per_example["loss"].astype(np.float64), np.array(weights)
    mean = (w * loss).sum() / w.sum() if any(weights) else 0.0
    for metrics in (whole, parts):
        assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
        assert metrics["error_equal"] == pytest.approx((w * per_example["error"]).sum() / (w.sum() or 1), rel=1e-5)
        assert metrics["error_moving"] == 0
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(gradients(state)))
    assert (largest > 0) == any(weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        gradients(state), gradients(state_of_parts),
    )  # fmt: skip


def test_the_gradient_is_that_of_single_rows(by_microbatches):
    """Each row by itself, weighted and summed in numpy."""
    weights = WEIGHTS[3]
    single = [gradients(by_microbatches(tuple(float(i == k) for i in range(8)), 1)[1]) for k in range(8)]
    mean = jax.tree.map(lambda *g: sum(w * x.astype(np.float64) for w, x in zip(weights, g, strict=True)), *single)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(mean)) / sum(weights)
    for accumulation in (1, 4):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b / sum(weights), rtol=1e-3, atol=1e-4 * largest),
            gradients(by_microbatches(weights, accumulation)[1]), mean,
        )  # fmt: skip


@pytest.mark.parametrize("rows, accumulation, devices", [(8, 8, 1), (8, 4, 2), (6, 1, 1)])
def test_a_run_has_the_shares_that_it_asks_for(rows, accumulation, devices):
    """Counted over steps, microbatches and rows."""
    shares = dict(times__share_equal=0.5, times__share_min=0.1)
    run = make_run(devices, **shares, data__batch_size=rows, optimizer__accumulation=accumulation)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, rows))
    state, equal, minimal, steps = run.trainer.create(), [], [], 25
    for _ in range(steps):
        state, _, per_example = run.trainer.detailed(state, batch)
        t, r = (np.asarray(per_example[name]) for name in ("t", "r"))
        equal.append(t == r)
        minimal.append((r == run.transport.T_min) & (t != r))
    for found, share in ((equal, 0.5), (minimal, 0.1)):
        assert abs(np.sum(found) - steps * rows * share) < 4
    assert len(run.trainer._compiled) == 1


def test_rows_of_weight_zero_count_for_nothing():
    run = make_run()
    rows = made_up_batch(run.config, 40) | {"weight": np.repeat([1, 0], 20).astype(np.float32)}
    other = {name: value.copy() for name, value in rows.items()}
    other["x"][20:] = 7.0
    (a, _), (b, _) = steps(run, 1, rows), steps(run, 1, other)
    assert a[0] == b[0]
    full, _ = steps(run, 1, {name: value for name, value in rows.items() if name != "weight"})
    assert full[0]["loss"] != a[0]["loss"]


def test_a_step_of_the_text_network_with_alignment_and_guidance():
    run = make_run(
        model__condition="text", data__text_width=8, data__text_tokens=5, data__features_width=12,
        objective__alignment_weight=1.0, objective__guidance__w_cond=0.75, objective__guidance__start_step=1,
        model__dropout=0.1,
    )  # fmt: skip
    history, _ = steps(run, 3)
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    assert history[0]["alignment"] > 0
    assert len(run.trainer._compiled) == 1, "guidance that sets in must not compile anything"


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
    assert bool(settings.doubts(steps)) == (0 < decay < steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_training_is_told_and_followed(name):
    settings = OptimizerSettings(schedule=name, learning_rate=0.5, warmup_steps=10)
    schedule = make_schedule(settings.following(4))
    np.testing.assert_allclose([float(schedule(n)) for n in range(4)], 0.05 * np.arange(1, 5), rtol=1e-6)
    (doubt,) = settings.doubts(4)
    assert "optimizer.warmup_steps is 10" in doubt and "training.steps 4" in doubt


def test_averages_follow_their_decay():
    params, emas = {"w": jnp.array([1.0])}, {"fast": {"w": jnp.array([0.0])}, "slow": {"w": jnp.array([0.0])}}
    late = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(10**6))
    assert late["fast"]["w"][0] == pytest.approx(0.5) and late["slow"]["w"][0] == pytest.approx(0.1)
    early = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(0))
    assert early["slow"]["w"][0] == pytest.approx(0.9)
    constant = update_emas(emas, params, {"fast": 0.5, "slow": 0.9}, jnp.int32(0), warmup=False)
    assert constant["fast"]["w"][0] == pytest.approx(0.5) and constant["slow"]["w"][0] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [True, False])
def test_an_ema_is_what_a_recurrence_in_float64_gives(warmup):
    """The parameters of every step are put into numpy's recurrence, from the first ones on."""
    run = make_run(ema__slow=0.9, optimizer__ema_warmup=warmup, optimizer__learning_rate=0.01)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 40))
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
    a, _ = tx.update(grads, tx.init(params), params)
    b, _ = small.update(clipped, small.init(params), params)
    assert_close(a, b)


def train(tmp, *arguments):
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    command.main(["--config=digits", f"--workdir={tmp}", *flags, *arguments])


def final_state(workdir):
    run = make_run()
    manager = checkpoints.open_manager(epath.Path(workdir), 2, 1000)
    state = jax.device_get(checkpoints.restore(manager, run.trainer.abstract))
    manager.close()
    return state


@pytest.fixture
def one_device_only(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


def test_stopped_and_started_again_a_run_ends_bit_equal(tmp_path, one_device_only, capsys):
    data = f"--config.loader.directory={tmp_path / 'data'}"
    often = ["--config.training.log_every=2", "--config.checkpoint.every=3"]
    train(tmp_path / "whole", data, "--config.training.steps=7", *often)
    train(tmp_path / "parts", data, "--config.training.steps=4", *often)
    kept = (tmp_path / "parts" / "config.json").read_text()
    train(tmp_path / "parts", data, "--config.training.steps=7", *often)  # a run can be extended
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert int(parts.step) == 7
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert (tmp_path / "parts" / "config.json").read_text() == kept
    starts = [json.loads(line) for line in (tmp_path / "parts" / "starts.jsonl").read_text().splitlines()]
    assert [start["config"]["training"]["steps"] for start in starts] == [4, 7]
    assert starts[0]["versions"]["jax"] == jax.__version__
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert {"loss", "error_equal", "error_moving", "grad_norm", "tangent_rms", "images_per_second"} <= set(lines[0])
    assert list((tmp_path / "whole" / "samples").glob("*.png"))
    assert list((tmp_path / "whole" / "events").iterdir())
    # Once more with nothing to do: nothing changes.
    before = sorted(path.name for path in (tmp_path / "whole").rglob("*"))
    train(tmp_path / "whole", data, "--config.training.steps=7", *often)
    assert sorted(path.name for path in (tmp_path / "whole").rglob("*")) == before

    # Another identity is refused, and the run is as it was.
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "whole", data, "--config.training.steps=9", "--config.optimizer.learning_rate=0.5")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "optimizer.learning_rate is 0.5; it must be 0.001" in message and "0.001" in message
    assert int(final_state(tmp_path / "whole").step) == 7


def test_a_finished_run_goes_on_with_the_schedule_of_its_new_length(tmp_path, one_device_only, capsys):
    """The rates that are told, by the closed form of each length."""
    flags = [f"--config.loader.directory={tmp_path / 'data'}", "--config.training.log_every=1"]
    flags += ["--config.optimizer.warmup_steps=0", "--config.checkpoint.every=100"]
    train(tmp_path / "run", *flags, "--config.training.steps=3")
    assert "learning rate" not in capsys.readouterr().err
    train(tmp_path / "run", *flags, "--config.training.steps=6")
    assert "reaches 0 at step 6" in (said := capsys.readouterr().err) and "step 3" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    right = [rate("linear", n, 0, end, 1e-3) for n, end in enumerate((3, 3, 3, 6, 6, 6))]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], right, rtol=1e-5)


def test_a_schedule_that_was_given_is_kept_and_may_be_changed(tmp_path):
    """As runs of before have recorded it."""
    recorded = to_json(load_config("digits", SMALL | {"optimizer.decay_steps": "3600"}))
    for decay in ("0", "7200"):
        compare_identity(recorded, load_config("digits", SMALL | {"optimizer.decay_steps": decay}), tmp_path)
    assert completed(recorded)["optimizer"]["decay_steps"] == 3600
    with pytest.raises(ValueError, match="optimizer.schedule"):
        compare_identity(recorded, load_config("digits", SMALL | {"optimizer.schedule": "cosine"}), tmp_path)


def test_a_muon_run_of_before_keeps_its_numbers():
    recorded = to_json(load_config("digits", SMALL | {"optimizer.name": "muon", "optimizer.b2": "0.9"}))
    del recorded["optimizer"]["momentum"]
    then = completed(recorded)["optimizer"]
    assert (then["momentum"], then["b2"], then["eps"]) == (0.9, 0.9, 1e-8)
    recorded["optimizer"]["name"] = "adamw"
    then = completed(recorded)["optimizer"]
    assert (then["momentum"], then["b2"], then["eps"]) == (0.95, 0.9, 1e-6)
