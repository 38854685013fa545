"""Real runs of ablations: that fail, are measured alone, are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.helpers import workdirs
from tests.helpers.ablations import TINY, arguments, fails, tiny, write_file
from tests.helpers.devices import for_devices
from tim_jax import ablate
from tim_jax.bench.faults import state_leaves
from tim_jax.config.build import build
from tim_jax.system.exit_codes import RESTART
from tim_jax.training import checksums, sharding


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


DIVERGES = {"optimizer.learning_rate": 1e38, "optimizer.schedule": "constant", "optimizer.decay_steps": 0}


@pytest.mark.slow
@pytest.mark.parametrize("broken, why", [({}, "holds a run"), (DIVERGES, "not finite")])
def test_a_failing_variant_is_told_and_the_others_go_on(broken, why, tmp_path, capsys, one_device):
    variants = {"good": {}, "broken": broken}
    if not broken:  # its place is taken
        workdirs.workdir(tmp_path / "runs" / "broken" / "seed_0", "digits", **TINY | {"model.width": "32"})
    write_file(tmp_path, variants)
    words = arguments(tmp_path, **{"training.max_nonfinite": 1})
    with pytest.raises(SystemExit) as stop:
        ablate.main(words)
    said = capsys.readouterr()
    assert stop.value.code == 1 and "[2/2] broken/seed_0" in said.out and "failed: broken/seed_0" in said.err
    found = json.loads((tmp_path / "runs" / "ablation.json").read_text())["variants"]
    assert found["broken"]["finished"] == 0 and why in found["broken"]["failures"]["0"]
    assert found["good"]["finished"] == 1 and [row["nfe"] for row in found["good"]["rows"]] == [1, 2]
    assert "broken: 0 of 1 runs" in (tmp_path / "runs" / "ablation.md").read_text()

    table = (tmp_path / "runs" / "ablation.json").read_bytes()
    (tmp_path / "runs" / "ablation.json").unlink()
    ablate.main([*words, "--report"])
    assert (tmp_path / "runs" / "ablation.json").read_bytes() == table
    finished = (tmp_path / "runs" / "good" / "seed_0" / "result.json").stat().st_mtime_ns
    ablate.main([*words, "--only=good"])  # nothing is left to do
    assert (tmp_path / "runs" / "good" / "seed_0" / "result.json").stat().st_mtime_ns == finished
    write_file(tmp_path, variants | {"good": {"model.depth": 2, "model.encoder_depth": 2}})
    assert "variant 'good': model.depth is 2" in fails(words, capsys)


@pytest.mark.nightly
def test_a_baseline_that_is_a_variants_run_has_its_figures(tmp_path, capsys, one_device):
    """A variant's own workdir, as a baseline, has the figures that the variant has."""
    folder, words = tmp_path / "runs", arguments(tmp_path)
    workdirs.workdir(tmp_path / "wide", "digits", **TINY | {"model.width": "32", "sampling.ema": "online"})
    workdirs.workdir(tmp_path / "long", "digits", **TINY | {"data.height": "16"})
    baselines = {"again": str(folder / "a" / "seed_0"), "wide": f"{tmp_path}/wide/checkpoints/0"}

    write_file(tmp_path, {"a": {}}, baselines=baselines)  # the baseline is not there yet
    assert "baseline 'again'" in fails(words, capsys) and not folder.exists()
    ablate.main([*words, "--only=a"])
    capsys.readouterr()
    write_file(tmp_path, {"a": {}}, baselines={"long": str(tmp_path / "long")})
    error = fails(words, capsys)
    assert (
        "baseline 'long'" in error
        and "data.height of the variants, 8, and has 16" in error
        and not (folder / "long").exists()
    )

    def rows(name):
        found = json.loads((folder / name / "seed_0" / "result.json").read_text())
        assert found["table"]["protocol"]["labels"] == "data", "also of models that are only measured"
        for row in found["table"]["rows"]:
            del row["seconds_per_image"]
        return found["table"]["rows"]

    write_file(tmp_path, {"a": {}}, baselines=baselines)
    ablate.main(words)
    said = capsys.readouterr().out
    assert "[2/3] again/seed_0: measured alone" in said and "[3/3] wide/seed_0" in said and "[1/3]" not in said
    assert rows("again") == rows("a") != rows("wide")
    of = {name: json.loads((folder / name / "seed_0" / "result.json").read_text())["baseline"] for name in baselines}
    prints = {name: one.pop("fingerprint") for name, one in of.items()}
    assert of["again"] == {"checkpoint": baselines["again"], "steps": 4, "ema": "slow"}
    assert of["wide"] == {"checkpoint": baselines["wide"], "steps": 0, "ema": "online"}
    assert prints["wide"] == checksums.fingerprint(tmp_path / "wide" / "checkpoints" / "0") != prints["again"]
    found = json.loads((folder / "ablation.json").read_text())
    assert (
        found["baselines"]["wide"]["finished"] == 1 and (folder / "wide" / "seed_0" / "any_step_samples.png").exists()
    )

    # What is finished is not measured again, what is not goes on; figures of two checkpoints are never mixed.
    kept, file = (folder / "wide" / "seed_0" / "result.json").stat().st_mtime_ns, folder / "again/seed_0/result.json"
    before = workdirs.contents(folder / "a")
    file.unlink()
    ablate.main([*words, "--only=again"])
    assert rows("again") == rows("a") and workdirs.contents(folder / "a") == before
    assert (folder / "wide" / "seed_0" / "result.json").stat().st_mtime_ns == kept
    capsys.readouterr()
    record = json.loads(file.read_text())
    for changed, told in (({"steps": 3}, "step 3"), ({"fingerprint": "0" * 64}, f"(fingerprint {'0' * 12})")):
        file.write_text(json.dumps(record | {"baseline": record["baseline"] | changed}))
        error = fails([*words, "--only=again"], capsys)
        assert "and is at step 4" in error and told in error.split("must still be at")[1]
    ablate.main([*words, "--report"])  # looks at no checkpoint
    for variants, named in (({}, {"again": str(tmp_path / "wide")}), ({"wide": {"model.depth": 2}}, {})):
        write_file(tmp_path, {"a": {}} | variants, baselines=named)
        assert "was measured as a baseline" in fails([*words, "--report"], capsys)


def start(folder, *words, **more):
    """The command in a process of its own, which logs to FOLDER.txt."""
    command = [sys.executable, "-m", "tim_jax.ablate", *arguments(folder, **more), *words]
    with folder.with_suffix(".txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"XLA_FLAGS": for_devices(1)})


def signalled(process, number, folder, name):
    """The exit code after a signal in the middle of a run's training."""
    checkpoints, end = folder / "runs" / name / "checkpoints", time.monotonic() + 900
    while not (checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert process.poll() is None and time.monotonic() < end, folder.with_suffix(".txt").read_text()[-3000:]
        time.sleep(0.005)
    process.send_signal(number)
    code = process.wait(900)
    assert not (folder / "runs" / name / "result.json").exists()
    return code


def measured(folder, name):
    """(rows of the table without times, (step, leaves) of the checkpoint) of a finished run."""
    rows = json.loads((folder / "runs" / name / "result.json").read_text())["table"]["rows"]
    for row in rows:
        del row["seconds_per_image"]
    abstract = build(tiny(seed=name[-1]), jax.devices()[:1]).trainer.abstract
    return rows, state_leaves(folder / "runs" / name, abstract)


LONG = {"training.steps": 60, "optimizer.decay_steps": 60}


@pytest.mark.nightly
def test_a_killed_run_goes_on_bit_equal(tmp_path, one_device):
    """A run of an ablation that was killed while it trained ends as the same run of one that nothing disturbed."""
    more = LONG | {"loader.directory": tmp_path / "data"}
    for name in ("killed", "whole"):
        (tmp_path / name / "runs").mkdir(parents=True)
        write_file(tmp_path / name, {"a": {}}, seeds=2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    ablate.main([*arguments(killed, **more), "--only=a/seed_0"])
    finished = [killed / "runs" / "a" / "seed_0" / "result.json", killed / "runs" / "plan.json"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished]
    assert signalled(start(killed, **more), signal.SIGKILL, killed, "a/seed_1") == -signal.SIGKILL
    ablate.main(arguments(killed, **more))
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished] == before
    ablate.main([*arguments(whole, **more), "--only=a/seed_1"])
    found = measured(killed, "a/seed_1")
    assert found == measured(whole, "a/seed_1") and found[1][0] == 60


@pytest.mark.nightly
def test_a_killed_ablation_goes_on_bit_equal(tmp_path):
    """Killed in its third run of four, asked to stop in its fourth, finished; the third is as if undisturbed."""
    more = LONG | {"loader.directory": tmp_path / "data"}
    for name in ("killed", "whole"):
        (tmp_path / name / "runs").mkdir(parents=True)
        write_file(tmp_path / name, {"a": {}, "b": {"objective.derivative": "dde"}}, equal="time", seeds=2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    folder = killed / "runs"

    assert signalled(start(killed, **more), signal.SIGKILL, killed, "a/seed_1") == -signal.SIGKILL
    finished = [folder / name / "seed_0" / "result.json" for name in "ab"] + [folder / "plan.json"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished]
    assert signalled(start(killed, **more), signal.SIGTERM, killed, "b/seed_1") == RESTART
    assert start(killed, **more).wait(900) == 0, (tmp_path / "killed.txt").read_text()[-3000:]
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished] == before
    text = (tmp_path / "killed.txt").read_text()
    assert text.count("calibrating b") == 1 and text.count("[3/4] a/seed_1") == 2 and text.count("[4/4]") == 2

    (whole / "runs" / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    assert start(whole, "--only=a/seed_1", **more).wait(900) == 0, (tmp_path / "whole.txt").read_text()[-3000:]
    found = measured(killed, "a/seed_1")
    assert found == measured(whole, "a/seed_1") and found[1][0] == 60
