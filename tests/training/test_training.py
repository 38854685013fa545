"""Optimizers, state and steps: equal by any route, resumed bit-equal, the same on every mesh."""

import functools
import json

import jax
import numpy as np
import pytest
from etils import epath

from tim_jax import train as command
from tim_jax.config import identity
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import training
from tim_jax.runs.workdir import to_json
from tim_jax.training import checkpoints, sharding

SMALL = {
    "model.width": "32", "model.depth": "2", "model.heads": "2", "model.bottleneck": "16", "model.encoder_depth": "1",
    "model.patch_size": "4", "data.batch_size": "40", "training.sample_steps": "(1,)", "training.sample_every": "0",
    "model.remat": "none",
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


@pytest.mark.slow
def test_a_mesh_gives_the_numbers_of_one_device(one_device):
    """For other meshes and more steps see test_meshes.py."""
    history, state = steps(make_run(4, mesh__data=1, mesh__fsdp=2, mesh__tensor=2), 3)
    for here, there in zip(history, one_device[0], strict=True):
        for name in ("error_equal", "error_moving", "grad_norm", "tangent_rms"):
            assert here[name] == pytest.approx(there[name], rel=1e-5, abs=1e-6), name
    assert_close(state.params, one_device[1].params)


@pytest.mark.slow
def test_rows_of_weight_zero_count_for_nothing():
    run = make_run()
    rows = made_up_batch(run.config, 40) | {"weight": np.repeat([1, 0], 20).astype(np.float32)}
    other = {name: value.copy() for name, value in rows.items()}
    other["x"][20:] = 7.0
    (a, _), (b, _) = steps(run, 1, rows), steps(run, 1, other)
    assert a[0] == b[0]
    full, _ = steps(run, 1, {name: value for name, value in rows.items() if name != "weight"})
    assert full[0]["loss"] != a[0]["loss"]


@pytest.mark.nightly
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


def train(tmp, *arguments):
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    command.main(["--config=digits", f"--workdir={tmp}", *flags, *arguments])


def final_state(workdir):
    run = make_run()
    manager = checkpoints.open_manager(epath.Path(workdir), 2)
    state = jax.device_get(checkpoints.restore(manager, run.trainer.abstract))
    manager.close()
    return state


@pytest.fixture
def one_device_only(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


def test_stopped_and_started_again_a_run_ends_bit_equal(tmp_path, one_device_only, monkeypatch, capsys):
    data = f"--config.loader.directory={tmp_path / 'data'}"
    often = ["--config.training.log_every=2", "--config.checkpoint.every=3"]
    train(tmp_path / "whole", data, "--config.training.steps=7", *often)
    with monkeypatch.context() as patch:
        patch.setattr(training, "can_draw", lambda run: False)  # pictures, which take a program, change nothing
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


@pytest.mark.slow
def test_a_finished_run_goes_on_with_the_schedule_of_its_new_length(tmp_path, one_device_only, capsys):
    """The rates that are told, by the closed form of each length."""
    flags = [f"--config.loader.directory={tmp_path / 'data'}", "--config.training.log_every=1"]
    flags += ["--config.optimizer.warmup_steps=0", "--config.checkpoint.every=100"]
    flags += ["--config.objective.tangent.warmup_share=0.4"]
    train(tmp_path / "run", *flags, "--config.training.steps=3")
    first = capsys.readouterr().err
    assert "learning rate" not in first and "dF/dt" not in first
    train(tmp_path / "run", *flags, "--config.training.steps=6")
    then = capsys.readouterr().err
    assert "reaches 0 at step 6; as the run was recorded, it did at step 3" in then
    assert "dF/dt has set in at step 2; as the run was recorded, it had at step 1" in then
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    right = [1e-3 * (1 - n / end) for n, end in enumerate((3, 3, 3, 6, 6, 6))]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], right, rtol=1e-5)


def test_a_schedule_that_was_given_is_kept_and_may_be_changed(tmp_path):
    """As runs of before have recorded it."""
    recorded = to_json(load_config("digits", SMALL | {"optimizer.decay_steps": "3600"}))
    for decay in ("0", "7200"):
        identity.compare(recorded, load_config("digits", SMALL | {"optimizer.decay_steps": decay}), tmp_path)
    assert identity.completed(recorded)["optimizer"]["decay_steps"] == 3600
    for given, taken in (("0", 3600), ("7200", 7200)):
        config = load_config("digits", SMALL | {"optimizer.decay_steps": given, "training.steps": "5000"})
        assert identity.with_recorded_schedule(recorded, config).optimizer.decay_steps == taken
    with pytest.raises(ValueError, match="optimizer.schedule"):
        identity.compare(recorded, load_config("digits", SMALL | {"optimizer.schedule": "cosine"}), tmp_path)
