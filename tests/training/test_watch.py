"""What is watched of a run: errors by bins, memory, traces, Weights & Biases."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import told
from tim_jax import train
from tim_jax.config.batches import batch_spec
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.system.chips import CHIPS, chip_of
from tim_jax.training import sharding
from tim_jax.training.metrics import Progress
from tim_jax.training.watch import BINS, Bins, Trace, memory, of_nothing
from tim_jax.transitions import TRANSPORTS

SMALL = [
    *flags(TINY_NETWORK), "--config.model.patch_size=4", "--config.data.batch_size=32",
    "--config.training.sample_steps=1", "--config.training.sample_every=0", "--config.optimizer.warmup_steps=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_noise_levels_grow_from_data_to_noise(name):
    transport = TRANSPORTS[name]()
    level = np.asarray(transport.level(np.linspace(transport.T_min, transport.T_max, 50, dtype=np.float32)))
    assert (np.diff(level) > 0).all() and -1e-6 <= level[0] < 0.05 and 0.95 < level[-1] <= 1 + 1e-6


def test_bins_are_weighted_means_of_their_rows():
    rng = np.random.default_rng(0)
    bins, rows = Bins(), []
    for _ in range(3):
        t = rng.uniform(0, 1, 40)
        r = np.where(rng.uniform(size=40) < 0.5, t, t * rng.uniform(size=40))
        error, weight = rng.uniform(size=40), rng.uniform(size=40) * (rng.uniform(size=40) < 0.8)
        error[0] = np.nan  # rows that are not finite are listed elsewhere
        bins.add({"t": t, "r": r, "level_t": t, "level_r": r, "error": error, "weight": weight})
        rows.append(np.stack([t, r, error, weight])[:, 1:])
    found = bins.take()
    t, r, error, weight = np.concatenate(rows, axis=1)

    def mean(here):
        return pytest.approx(np.average(error[here], weights=weight[here]))

    for k in range(BINS):
        low, high = k / BINS, (k + 1) / BINS
        assert found[f"error_by_level/{low:g}-{high:g}"] == mean((low <= t) & (t < high))
        here = (t != r) & (low <= t - r) & (t - r < high)
        if weight[here].any():
            assert found[f"error_by_interval/{low:g}-{high:g}"] == mean(here)
    assert found["error_by_interval/0"] == mean(t == r)
    assert bins.take() == {}


@pytest.mark.parametrize(
    "equal, weight, absent",
    [
        ((True, True), (1, 1), {"error_moving", "tangent_rms"}),
        ((False, False), (1, 1), {"error_equal"}),
        ((True, False), (1, 1), set()),
        ((True, False), (0, 1), {"error_equal"}),
        ((True, False), (0, 0), {"error_equal", "error_moving", "tangent_rms"}),
    ],
)
def test_a_mean_over_no_example_is_known(equal, weight, absent):
    t = np.array([0.5, 0.75], np.float32)
    assert of_nothing({"t": t, "r": np.where(equal, t, 0), "weight": np.array(weight, np.float32)}) == absent


@pytest.mark.parametrize(
    "values, shown",
    [
        ({"error_equal": 0.25, "error_moving": 0.5}, "loss 1.0000, error 0.2500 at r=t, 0.5000 at r<t"),
        ({"error_equal": 0.25}, "loss 1.0000, error 0.2500 at r=t"),
        ({"error_moving": 0.5}, "loss 1.0000, error 0.5000 at r<t"),
        ({}, "loss 1.0000"),
        (
            {"error_equal": 0.25, "images_per_second": 1234.5, "data_wait": 0.125},
            "loss 1.0000, error 0.2500 at r=t, 1,234 images/s, data wait 12.5%",
        ),
    ],
)
def test_a_bar_shows_the_errors_that_there_are(values, shown, capsys):
    progress = Progress(0, 2)
    progress.show({"loss": 1.0} | values)
    assert capsys.readouterr().err.endswith(f", {shown}]\n"), "the first figures are a line of a log at once"
    progress.close()


def test_utilisation_counts_the_operations_of_the_model_whatever_is_recomputed():
    progress = Progress(0, 10, peak=4e3)
    progress.began -= 2.0
    progress.advance(1, images=8, flops=4000)
    found = progress.rates()
    assert found["model_tflops_per_second"] == pytest.approx(2e-9, rel=0.2) and found["mfu"] == pytest.approx(
        0.5, rel=0.2
    )
    assert "mfu" not in Progress(0, 10).rates(), "the peak of this machine is not known"
    progress.close()
    counts = []
    for remat in ("none", "full"):
        given = [flag.removeprefix("--config.").split("=") for flag in SMALL]
        run = build(load_config("digits", dict(given) | {"model.remat": remat}))
        batch = sharding.abstract_batch(run.mesh, batch_spec(run.config, 32, (8, 8)))
        counts.append(run.trainer.model_flops(batch, run.trainer.trace(batch)))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    "kind, name", [("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("NVIDIA H100 80GB HBM3", "h100")]
)
def test_chips_are_known_by_their_own_names(kind, name):
    assert chip_of(kind) is CHIPS[name] and chip_of("cpu") is None


def test_memory_is_told():
    assert 0 < memory()["memory/host_peak_gib"] < 1000


@pytest.mark.slow
def test_a_run_is_watched(tmp_path, monkeypatch):
    """Bins add up to the errors of the step; a trace of the steps asked for; the same numbers to another writer."""
    told = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end"))
    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **asked: told.append(asked) or run
    stand_in.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    where = [f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={tmp_path / 'data'}", "--profile=2:3"]
    more = ["--config.training.steps=4", "--config.training.log_every=1", "--config.training.wandb=mine"]
    train.main(["--config=digits", *where, *SMALL, *more])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["error_by_interval/0"] == pytest.approx(line["error_equal"], rel=1e-5)
        assert sum(name.startswith("error_by_level/") for name in line) > 2
        for name in (
            "images_per_second",
            "data_wait",
            "goodput",
            "time/steps",
            "time/down",
            "nonfinite",
            "grad_norm",
            "tangent_rms",
            "model_tflops_per_second",
        ):
            assert name in line
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert told[0]["project"] == "mine" and told[0]["config"]["config"]["seed"] == 0
    assert [step for step, _ in told[1:-1]] == [1, 2, 3, 4] and told[-1] == "end"
    assert told[1][1]["loss"] == lines[0]["loss"]


@pytest.mark.parametrize(
    "given, named",
    [
        ("--profile=5:3", ["--profile", "5:3"]),
        ("--profile=0:3", ["--profile", "0:3"]),
        ("--profile=abc", ["--profile", "abc"]),
        ("--profile=2:3 --workdir=gs://bucket/run", ["--profile", "2:3", "gs://bucket/run", "local"]),
        ("--config.training.wandb=mine", ["training.wandb", "mine", "pip install"]),
    ],
)
def test_what_cannot_be_watched_is_named(given, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=digits", f"--workdir={tmp_path / 'run'}", *SMALL, *given.split()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and all(word in error for word in named), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "steps, start, traced, warned",
    [((3, 4), 0, [3, 4], False), ((3, 4), 3, [4], False), ((3, 4), 4, [], True), ((6, 9), 0, [6], False)],
)
def test_a_trace_is_of_the_steps_that_are_made(steps, start, traced, warned, tmp_path, monkeypatch, caplog):
    running, found = [False], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: running.__setitem__(0, True))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: running.__setitem__(0, False))
    trace = Trace(epath.Path(tmp_path), steps, start)
    for step in range(start + 1, 7):
        trace.before(step)
        found += [step] * running[0]
        trace.after(step)
    trace.close()
    assert found == traced and not running[0]
    assert (f"goes on from step {start}: no trace is written" in caplog.text) == warned


def test_steps_that_are_never_made_are_not_traced(tmp_path, capsys):
    words = ["--config=digits", f"--workdir={tmp_path / 'run'}", *SMALL, "--config.training.steps=9", "--profile=10:12"]
    line = told(train.main, words, capsys)
    assert line == "error: --profile is 10:12; it must begin by the last step, training.steps, which is 9"
    assert not list(tmp_path.iterdir())
