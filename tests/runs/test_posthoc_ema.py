"""Post-hoc EMAs of real runs: what they are averages of, wherever an EMA is named, and after a run was cut off."""

import functools
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers import workdirs
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.processes import Run
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tests.training.test_processes import start
from tim_jax import convert, sample, train
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.plan import memory
from tim_jax.runs import averages, workdir
from tim_jax.runs.generation import load_weights
from tim_jax.runs.interface import load
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.training import checkpoints, names, power_ema, snapshots, warm_start

STEPS, EVERY = 12, 2
SMALL = {
    **TINY_NETWORK, "model.patch_size": "4", "data.batch_size": "8", "optimizer.warmup_steps": "0",
    "optimizer.learning_rate": "0.01", "training.steps": f"{STEPS}", "training.sample_every": "0",
    "training.sample_steps": "(1,)", "training.log_every": "4", "checkpoint.every": "1", "checkpoint.keep": "99",
    "posthoc_ema.sigma_rel": "(0.05,0.1)", "posthoc_ema.every": f"{EVERY}", "posthoc_ema.dtype": "float32",
    "ema.slow": "0.5", "optimizer.schedule": "constant", "optimizer.decay_steps": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(NAME, **changes): the folder of a run called NAME, which goes on if it is there."""
    root = tmp_path_factory.mktemp("posthoc")

    def make(name, **changes):
        values = SMALL | {"loader.directory": root / "data"}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        train.main(["--config=digits", f"--workdir={root / name}", *flags(values)])
        return epath.Path(root / name)

    with workdirs.one_device():
        yield make


@pytest.fixture(scope="module")
def whole(trained):
    """A run that was never cut off, with a checkpoint of every step."""
    return trained("whole")


@functools.cache
def run_of(folder, **changes):
    changes = {"mesh.data": 1, "mesh.fsdp": 1} | changes
    return build(workdir.load(folder, {key.replace("__", "."): str(value) for key, value in changes.items()}))


def values_of(folder, step, name="online"):
    """All parameters of a checkpoint in one array, in float64."""
    abstract = names.by_name(run_of(folder).trainer.abstract.params["online"])
    read = warm_start.read_weights(warm_start.Saved(folder / "checkpoints", step), name, abstract)
    return flat(read)


def flat(weights):
    return np.concatenate([np.ravel(np.asarray(weights[name], np.float64)) for name in sorted(weights)])


def stored(folder):
    """{step: every array of its snapshot} of a run's snapshots, all of them whole."""
    found = {}
    abstract = names.by_name(run_of(folder).trainer.abstract.params["online"])
    for path in (folder / snapshots.FOLDER).iterdir():
        assert checkpoints.damage(path) is None
        parts = [(name,) for name in run_of(folder).posthoc_ema.decays]
        with checkpoints.opened(folder / snapshots.FOLDER, whole=False) as manager:
            read = [checkpoints.read_part(manager, int(path.name), part, abstract) for part in parts]
        found[int(path.name)] = np.stack([flat(one) for one in read])
    return found


@functools.cache
def trajectory_of(folder):
    """The parameters (T, n) after every step."""
    return np.stack([values_of(folder, step) for step in range(1, STEPS + 1)])


def averaged(trajectory, sigma_rel):
    """The average of values (T, n) that hold for a step each, summed up directly."""
    ends = np.arange(len(trajectory) + 1.0) ** (power_ema.gamma_of(sigma_rel) + 1)
    return np.diff(ends) @ trajectory / ends[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name, tolerance", [("0.05", 1e-6), ("0.1", 1e-6), ("0.07", 0.05), ("0.13", 0.05)])
def test_an_ema_of_any_length_is_the_average_of_the_weights_of_all_steps(whole, name, tolerance):
    """Tracked ones as float32 allows, others as nearly as few snapshots do, as a share of what lengths change."""
    trajectory = trajectory_of(whole)
    weights, step = load_weights(run_of(whole), whole, f"sigma_rel:{name}")
    expected = averaged(trajectory, float(name))
    scale = np.std(averaged(trajectory, 0.05) - averaged(trajectory, 0.1)) if tolerance > 1e-3 else 1.0
    assert step == STEPS and np.std(flat(names.by_name(weights)) - expected) < tolerance * scale
    # Of an earlier checkpoint as well, from the snapshots up to there alone.
    early = averaged(trajectory[:7], float(name))
    assert np.std(values_of(whole, 7, f"sigma_rel:{name}") - early) < 3 * tolerance * scale


@pytest.mark.nightly
def test_wherever_an_ema_is_named_it_is_the_same(whole, tmp_path, monkeypatch, capsys):
    """Commands that sample, the Python interface, exports, runs that start from it or learn from it."""
    name = "sigma_rel:0.130"
    expected = flat(names.by_name(load_weights(run_of(whole, sampling__ema=name), whole)[0]))
    assert not np.array_equal(expected, values_of(whole, STEPS, "sigma_rel:0.1"))

    def same(weights):
        np.testing.assert_array_equal(flat(names.by_name(weights)), expected)

    same(load(whole, sampling={"ema": name})._weights)
    capsys.readouterr()
    sample.main([f"--workdir={whole}", "--count=2", "--steps=1", f"--out={tmp_path / 's.png'}",
                 f"--config.sampling.ema={name}"])  # fmt: skip
    convert.main(["export", str(whole), str(tmp_path / "out"), f"--ema={name}"])
    same(load(tmp_path / "out")._weights)

    changes = SMALL | {"start.checkpoint": str(whole), "start.ema": name, "loader.directory": str(tmp_path)}
    same(first_state(build(load_config("digits", changes)), epath.Path(tmp_path / "new"))().params["online"])
    changes = SMALL | {
        "objective.velocity": "teacher", "teacher.checkpoint": str(whole), "teacher.ema": name,
    }  # fmt: skip
    same(with_teachers(build(load_config("digits", changes))).trainer.frozen["teacher"].params)


@pytest.mark.slow
def test_names_that_mean_nothing_are_refused(whole, tmp_path, capsys):
    for command, words in (
        (sample.main, [f"--workdir={whole}", "--config.sampling.ema=sigma_rel:0.4"]),
        (convert.main, ["export", str(whole), str(tmp_path / "out"), "--ema=sigma_rel:0.4"]),
        (train.main, ["--config=digits", f"--workdir={tmp_path / 'new'}", f"--config.start.checkpoint={whole}",
                      "--config.start.ema=quick", *flags(SMALL)]),
    ):  # fmt: skip
        said = workdirs.told(command, words, capsys)
        assert "it must be one of online, " in said and "sigma_rel:VALUE, with a value up to 0.28" in said
    said = workdirs.told(train.main, [f"--workdir={whole}", "--config.sampling.ema=sigma_rel:0.2"], capsys)
    assert "sampling.ema is 'sigma_rel:0.2'; it must be one of online, slow, sigma_rel:0.05, sigma_rel:0.1" in said


@pytest.mark.slow
def test_a_run_that_was_cut_off_has_the_snapshots_of_one_that_was_not(whole, trained):
    """It is cut off after the snapshot of step 8 and before any checkpoint after step 7."""
    cut = trained("cut", training__steps=9)
    for step in ("8", "9"):
        (cut / "checkpoints" / step).rmtree()
    later = cut / snapshots.FOLDER / "8"
    kept = {path: path.read_bytes() for path in pathlib.Path(later).rglob("*") if path.is_file()}
    next(path for path in kept if "/d/" in str(path)).write_bytes(b"another path of the run")
    trained("cut")
    here, there = stored(cut), stored(whole)
    assert sorted(here) == sorted(there) == list(range(EVERY, STEPS + 1, EVERY))
    for step, arrays in there.items():
        np.testing.assert_array_equal(here[step], arrays)
    np.testing.assert_array_equal(values_of(cut, STEPS, "sigma_rel:0.13"), values_of(whole, STEPS, "sigma_rel:0.13"))


@pytest.mark.nightly
def test_a_run_that_goes_on_elsewhere_takes_its_snapshots_along(whole, trained):
    other = trained("elsewhere", checkpoint__resume=f"{whole}/checkpoints/7")
    assert {step: arrays.tobytes() for step, arrays in stored(other).items()} == {
        step: arrays.tobytes() for step, arrays in stored(whole).items()
    }


@pytest.mark.slow
def test_damaged_and_missing_snapshots_are_left_out_and_told(whole, tmp_path, caplog):
    folder = epath.Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / snapshots.FOLDER / "4").rmtree()
    damaged = next(path for path in pathlib.Path(folder / snapshots.FOLDER / "8").glob("**/d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = values_of(folder, STEPS, "sigma_rel:0.07")
    assert "snapshot of step 8 not used" in caplog.text and np.isfinite(found).all()
    best = values_of(whole, STEPS, "sigma_rel:0.07")
    assert 0 < np.std(found - best) < 0.1 * np.std(best - values_of(whole, STEPS, "sigma_rel:0.05"))
    caplog.clear()
    values_of(folder, STEPS, "sigma_rel:0.01")
    assert "sigma_rel:0.01 at step 12 is synthesised from 3 snapshots but for" in caplog.text


@pytest.mark.slow
def test_snapshots_are_as_large_as_is_said(whole, tmp_path):
    """Half precision, whose rounding is all that differs."""
    run = run_of(whole, posthoc_ema__dtype="float16")
    (said,) = (line for line in averages.told(run, whole) if line.startswith("posthoc_ema: "))
    bytes_each = 2 * 2 * len(values_of(whole, 4))
    assert f"a snapshot of {bytes_each / 1e3:.1f} kB every 2 steps, 6 in all, {6 * bytes_each / 1e3:.1f} kB in" in said
    state = warm_start.resume(warm_start.Saved(whole / "checkpoints", 4), run.trainer.abstract)
    folder = epath.Path(shutil.copytree(whole / "checkpoints" / "4", tmp_path / "run" / "checkpoints" / "4")).parents[1]
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    half = snapshots.Snapshots(folder, 2, "float16")
    half.save(4, state)
    half.close()
    assert half.failures == []
    np.testing.assert_array_equal(stored(folder)[4], stored(whole)[4].astype(np.float16))


@pytest.mark.nightly
def test_no_kill_loses_a_snapshot_before_a_checkpoint(tmp_path):
    """A run is killed again and again; whatever checkpoint it goes on from, all snapshots up to there are whole."""
    settings = {key.replace(".", "__"): value for key, value in SMALL.items() if key.startswith("posthoc_ema")}
    settings |= {"checkpoint__every": 3, "checkpoint__keep": 99, "posthoc_ema__every": 2, "training__steps": 10**6}
    for kill in range(3):
        run = Run(tmp_path, **settings)
        run.wait_for(lambda run=run, kill=kill: run.step() >= 5 + 7 * kill)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.join(60)
        folder = epath.Path(run.workdir)
        whole = [step for step in run.steps_saved() if checkpoints.damage(folder / "checkpoints" / str(step)) is None]
        for step in range(2, max(whole, default=0) + 1, 2):
            assert checkpoints.damage(folder / snapshots.FOLDER / str(step)) is None, (step, whole)
    assert whole


@pytest.mark.nightly
def test_two_processes_store_and_synthesise_together(tmp_path):
    """Of shards that lie on both; what they make of the snapshots is what one process makes of the same."""
    changes = SMALL | {
        "training.steps": "4", "posthoc_ema.every": "1", "checkpoint.every": "2", "mesh.data": "1", "mesh.fsdp": "4",
    }  # fmt: skip
    words = ["--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={tmp_path / 'data'}"]
    start(2, ["tim_jax.train", *words, *flags(changes)])
    folder = epath.Path(tmp_path / "run")
    assert sorted(stored(folder)) == [1, 2, 3, 4]
    name = "--config.sampling.ema=sigma_rel:0.07"
    samples = {}
    for count in (2, 1):
        mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=4"]
        out = tmp_path / f"{count}"
        start(count, ["tim_jax.sample", f"--workdir={folder}", "--count=4", "--steps=1", f"--out={out}", name, *mesh])
        (samples[count],) = (np.load(path) for path in out.rglob("*.npz"))
    for key in samples[1].files:
        np.testing.assert_allclose(samples[2][key], samples[1][key], atol=1e-5)


@pytest.mark.slow
def test_the_planner_counts_them(whole):
    """Two more copies of the parameters in memory beside the EMA of `ema`."""
    abstract = run_of(whole).trainer.abstract
    assert sorted(abstract.emas) == ["sigma_rel:0.05", "sigma_rel:0.1", "slow"]
    needs = memory._named(abstract, (), ())
    assert needs["emas"] == 3 * needs["parameters"]


# Where the decay of an EMA is in force.


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.99, 0.995, 0.999, 0.9999])
def test_the_step_from_which_a_decay_binds(decay):
    binds = averages.binding_step(decay)
    assert (1 + binds) / (10 + binds) >= decay - 1e-12
    assert binds == 0 or binds / (9 + binds) < decay


def test_an_ema_that_never_has_its_decay_is_told(capsys, tmp_path):
    from tim_jax.config.network import warn_once

    def said(**changes):
        warn_once.cache_clear()
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        run = build(load_config("digits", TINY_NETWORK | changes), jax.devices()[:1])
        averages.warn(run)
        return capsys.readouterr().err, averages.told(run, epath.Path(tmp_path))

    error, lines = said(ema__slow="0.999", training__steps="20000")
    assert error == "" and lines == [
        "ema.slow: 0.999 binds from step 8,990 of 20,000; before, (1 + n)/(10 + n) after n steps"
    ]
    error, lines = said(ema__slow="0.999", training__steps="3600")
    assert "ema.slow is 0.999, which is never in force in training.steps=3600" in error and lines == []
    assert f"{3600 / 3609:.5g} in the last one, and 0.999 from step 8,990 on" in error
    assert said(ema__slow="0.999", training__steps="3600", optimizer__ema_warmup="False") == ("", [])
    error, _ = said(ema__slow="0.5", training__steps="4000", posthoc_ema__sigma_rel="0.1")
    assert "3 snapshots are too few" in error and "posthoc_ema.every=80 makes some 50" in error


@pytest.mark.slow
def test_old_configurations_have_none(whole):
    recorded = json.loads((whole / "config.json").read_text())
    del recorded["posthoc_ema"]
    assert workdir.restored(recorded).posthoc_ema.sigma_rel == ()
