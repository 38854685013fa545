"""The figures that training tells, each once against a computation of its own: by hand, by numpy, by the kernel.

Where the others are: loss and gradient norm in float64 (tests/transitions/test_objective.py), the bins of errors, what
a bar shows (test_watch.py), learning rates (test_training.py, test_optimizer.py), updates left out
(test_skipped_updates.py), goodput over restarts (test_signals.py), operations of the network (tests/plan/test_plan.py),
the time left of a bar (tests/system/test_progress.py).
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import one_device
from tim_jax import train
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import any_step
from tim_jax.training import goodput, ledger, metrics, monitor, sharding, watch
from tim_jax.types import Output

SMALL = {
    **TINY_NETWORK, "model.patch_size": "4", "data.batch_size": "24", "optimizer.warmup_steps": "0",
    "training.sample_steps": "1", "training.sample_every": "0", "training.steps": "3", "training.log_every": "1",
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [1000.0]
    for module in (metrics, goodput, any_step):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(goodput.time, "time", lambda: now[0])
    return now


def test_rates_are_those_of_a_stopwatch(clock):
    """4 s of 10 are a pause and count for nothing; of the other 6, 1.5 are waiting."""
    progress = metrics.Progress(0, 10, peak=2e12, active=False)
    for step, (images, flops) in enumerate([(40, 10**12), (20, 5 * 10**11)], 1):
        progress.advance(step, images, flops)
        with progress.waiting():
            clock[0] += 0.75
        with progress.paused():
            clock[0] += 2.0
        clock[0] += 2.25
    expected = {"images_per_second": 60 / 6, "data_wait": 1.5 / 6, "model_tflops_per_second": 1.5 / 6, "mfu": 0.125}
    assert progress.rates() == pytest.approx(expected)
    clock[0] += 1.0
    assert progress.rates()["images_per_second"] == 0, "each rate is that since the last one"


def test_goodput_is_that_of_a_stopwatch(clock):
    """Of 20 s, 3 s are steps that a checkpoint carries, and 4.5 of the last 9 went into steps; see test_goodput.py."""
    account = goodput.Goodput()
    account.carried, account._first_start = 3.0, clock[0] - 11.0
    clock[0] += 1.5
    with account.doing("compile"):
        clock[0] += 2.0
    with account.doing("steps"):
        for busy in (True, False):
            with account.doing("data") as waiting:
                clock[0] += 0.25
                assert account.record()["seconds"]["data"] == 0.25
                clock[0] += 0.25
                waiting.kind = "steps" if busy else "data"
            clock[0] += 2.0
        with account.doing("save"):
            clock[0] += 0.25
            with account.doing("evaluate"):
                clock[0] += 0.25
    assert account.productive == pytest.approx(7.5)
    assert {kind: seconds for kind, seconds in account.seconds().items() if seconds} == pytest.approx(
        {"start": 1.5, "compile": 2.0, "data": 0.5, "steps": 7.5, "save": 0.25, "evaluate": 0.25, "unrecorded": 8.0}
    )
    assert ledger.share(account.seconds()) == pytest.approx(7.5 / 20.0)


def test_the_time_left_of_an_evaluation(clock, capsys):
    """3 of 12 units took 30 s, so that 90 s are left."""
    progress = any_step.Progress(12.0)
    clock[0] += 30.0
    progress(3.0, "1/4: 1 steps")
    assert capsys.readouterr().out == "[30 s, about 90 s left] 1/4: 1 steps\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux writes the peak of a process down, in /proc")
def test_memory_is_what_the_kernel_says():
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    assert watch.memory()["memory/host_peak_gib"] == pytest.approx(int(line.split()[1]) / 2**20, rel=0.02)


def tangible(params):
    """F = w x_t + t² + 3 r of a network with one parameter, whose derivative is known."""

    def net(queries):
        wide = lambda t: t[:, None, None, None]  # noqa: E731
        return tuple(Output(params["w"] * q.x_t + wide(q.t) ** 2 + 3 * wide(q.r)) for q in queries)

    return net


@pytest.mark.slow
def test_the_metrics_of_a_step_are_those_of_numpy():
    """Of a network whose derivative is known: errors, tangent, gradient and update, from data, noise and times."""
    changes = {"objective.weight.kernel": "constant", "times.share_equal": "0.5", "objective.adaptive.power": "0"}
    changes |= {"objective.velocity": "data", "data.condition_dropout": "0", "optimizer.clip": "0"}
    run = build(load_config("digits", SMALL | changes), jax.devices()[:1])
    settings = dataclasses.replace(run.trainer.step, nets={name: tangible for name in ("online", "float32", "ema")})
    batch = made_up_batch(run.config, 24)
    weight = np.random.default_rng(1).uniform(0.5, 2, 24).astype(np.float32)
    seen = {}

    def objective(nets, examples, step, key, number):
        loss, found = run.trainer.step.objective(nets, examples, step, key, number)
        jax.debug.callback(lambda **arrays: seen.update(arrays), x=examples.x, noise=examples.noise, loss=loss,
                           t=found["t"], r=found["r"], error=found["error"])  # fmt: skip
        return loss, found

    from tim_jax.training.state import TrainState
    from tim_jax.training.step import train_step

    settings = dataclasses.replace(settings, objective=objective)
    params = {"online": {"w": jnp.float32(0.7)}}
    state = TrainState(jnp.int32(0), params, {name: params["online"] for name in settings.emas},
                       settings.tx.init(params))  # fmt: skip
    batch = {name: jnp.asarray(value) for name, value in batch.items()} | {"weight": jnp.asarray(weight)}
    after, told, per_example = train_step(settings, state, batch, jnp.uint32(3))
    jax.effects_barrier()
    x, noise, t, r = (np.asarray(seen[name], np.float64) for name in ("x", "noise", "t", "r"))
    wide = lambda a: a[:, None, None, None]  # noqa: E731
    w, v = 0.7, noise - x
    x_t = (1 - wide(t)) * x + wide(t) * noise
    F = w * x_t + wide(t) ** 2 + 3 * wide(r)
    dF_dt = w * v + 2 * wide(t)
    target = v - wide(t - r) * dF_dt
    error = ((F - target) ** 2).mean(axis=(1, 2, 3))
    equal = t == r
    assert 0 < equal.sum() < 24
    np.testing.assert_allclose(per_example["error"], error, rtol=1e-4)
    for name, some in (("error_equal", equal), ("error_moving", ~equal)):
        assert float(told[name]) == pytest.approx(np.average(error[some], weights=weight[some]), rel=1e-4)
    tangents = np.sqrt((dF_dt**2).mean(axis=(1, 2, 3)))
    assert float(told["tangent_rms"]) == pytest.approx(np.average(tangents[~equal], weights=weight[~equal]), rel=1e-4)
    loss = np.asarray(seen["loss"], np.float64)
    assert float(told["loss"]) == pytest.approx(np.average(loss, weights=weight), rel=1e-5)
    # The target has no gradient: that of a loss which is the error is 2 (F − F*) x_t.
    np.testing.assert_allclose(loss, error, rtol=1e-4)
    slope = np.average((2 * (F - target) * x_t).mean(axis=(1, 2, 3)), weights=weight)
    assert float(told["grad_norm"]) == pytest.approx(abs(slope), rel=1e-3)
    moved = float(after.params["online"]["w"]) - np.float32(0.7)
    assert float(told["update_norm"]) == pytest.approx(abs(moved), rel=1e-3) and moved * slope < 0
    assert float(told["nonfinite"]) == 0


@pytest.mark.slow
def test_utilisation_and_counts_of_a_run(tmp_path, monkeypatch):
    """The share of a peak that is made up; examples of a batch, and steps, as they are configured."""
    peak = 1e12
    chip = type("Chip", (), {"flops": peak})
    monkeypatch.setattr(monitor, "chip_of", lambda kind: chip)
    with one_device():
        train.main(["--config=digits", f"--workdir={tmp_path / 'run'}", *flags(SMALL),
                    f"--config.loader.directory={tmp_path / 'data'}"])  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    run = build(load_config("digits", SMALL), jax.devices()[:1])
    batch = sharding.abstract_batch(run.mesh, {"x": ((24, 8, 8, 1), np.float32), "label": ((24,), np.int32)})
    operations = run.trainer.model_flops(batch, run.trainer.trace(batch))
    for line in lines:
        assert line["mfu"] == pytest.approx(line["model_tflops_per_second"] * 1e12 / peak)
        # Both are of the same seconds: 24 images and the operations of one step.
        seconds = 24 / line["images_per_second"]
        assert line["model_tflops_per_second"] * 1e12 * seconds == pytest.approx(operations, rel=1e-6)
        assert line["learning_rate"] > 0 and line["nonfinite"] == 0 and 0 <= line["data_wait"] <= 1
