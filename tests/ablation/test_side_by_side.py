"""Commands that are started side by side in one folder: what each of them writes is there when all have ended."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath

from tests.ablation.test_ablate_table import result
from tests.helpers import workdirs
from tests.helpers.ablations import TINY, arguments, tiny, write_file
from tests.helpers.devices import for_devices
from tests.helpers.processes import FORKS
from tests.helpers.processes import one_device as one_device
from tim_jax import train
from tim_jax.ablation import Ablation, budget, runs, table
from tim_jax.ablation.settings import Member
from tim_jax.evaluation import anystep, references, summaries
from tim_jax.system import files, lock

VARIANTS = {"a": {}, "b": {"model.depth": 2}, "c": {"model.depth": 3}, "d": {"model.depth": 4}}


def plan(root, name, equal):
    """A process that plans one variant, whose cost takes half a second to find, and logs when it did."""
    root = pathlib.Path(root)

    def costs(ablation, missing, progress):
        began = time.time()
        time.sleep(0.5)
        (root / f"{name}.json").write_text(json.dumps([began, time.time()]))
        return {each: {"cost": 1.0 + "abcd".index(each)} for each in missing}

    for rule in ("by_time", "by_flops", "by_steps"):
        setattr(budget, rule, costs)
    (root / f"{name}.ready").touch()
    while len(list(root.glob("*.ready"))) < len(VARIANTS):
        time.sleep(0.01)
    ablation = Ablation(tiny(training__steps="120"), VARIANTS, equal=equal)
    budget.make(ablation, epath.Path(root / "runs"), [name], lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("equal", ["time", "flops", "steps"])
def test_no_entry_of_a_plan_is_lost(equal, tmp_path):
    """Whatever the rule; no two are found at a time, the reference once, and each waits for its turn."""
    started = [FORKS.Process(target=plan, args=(str(tmp_path), name, equal)) for name in VARIANTS]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
        assert process.exitcode == 0
    planned = budget.read(epath.Path(tmp_path / "runs"))
    expected = dict.fromkeys(VARIANTS, 120) if equal == "steps" else {"a": 120, "b": 60, "c": 40, "d": 30}
    assert {name: about["steps"] for name, about in sorted(planned["variants"].items())} == expected
    spans = sorted(json.loads(path.read_text()) for path in tmp_path.glob("?.json"))
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False)), spans


def test_a_plan_by_another_rule_that_was_a_little_faster_is_not_mixed_up(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    budget.make(Ablation(tiny(), VARIANTS, equal="steps"), folder, ["a"], lambda line: None)
    monkeypatch.setattr(budget, "by_flops", None)
    with pytest.raises(ValueError, match="equal is 'flops', but .* was planned with 'steps'"):
        budget.make(Ablation(tiny(), VARIANTS, equal="flops"), folder, ["b"], lambda line: None)


def test_who_waits_says_for_whom_and_goes_on(tmp_path):
    said, entered, folder = [], [], epath.Path(tmp_path)

    def second():
        with lock.locked(folder, waiting=said.append):
            entered.append(time.monotonic())

    with lock.locked(folder):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        time.sleep(0.5)
        left = time.monotonic()
        with pytest.raises(ValueError, match="another run is at work there"), lock.locked(folder):
            pass
    thread.join(10)
    assert len(said) == 1 and f"process {os.getpid()} on {socket.gethostname()}" in said[0] and entered[0] > left


def test_the_last_report_has_seen_all_results(tmp_path, monkeypatch):
    """One command has read the results, and takes its time, when another finishes a run and reports as well."""
    ablation = Ablation(tiny(), {"a": {}, "b": {"model.depth": 2}}, equal="steps", seeds=1)
    folder, rng, collected = epath.Path(tmp_path), np.random.default_rng(0), threading.Event()
    budget.make(ablation, folder, ["a", "b"], lambda line: None)
    runs.write(folder / str(Member("a", 0)), result(rng))
    collect = table.collect

    def slowly(*args):
        found = collect(*args)
        if not collected.is_set():
            collected.set()
            time.sleep(0.5)
        return found

    monkeypatch.setattr(table, "collect", slowly)
    first = threading.Thread(target=table.write, args=(ablation, folder, "mine"))
    first.start()
    assert collected.wait(30)
    runs.write(folder / str(Member("b", 0)), result(rng))
    table.write(ablation, folder, "mine")
    first.join(60)
    found = json.loads((folder / "ablation.json").read_text())
    assert {name: about["finished"] for name, about in found["variants"].items()} == {"a": 1, "b": 1}


def write_tables(folder, first):
    """A process that writes tables one after another, which differ in a number."""
    row = {"steps": 1, "nfe": 1, "seconds_per_image": 0.1, "frechet": 1.0, "frechet_spread": 0.0}
    anystep.plot = anystep.to_markdown = lambda *args: ""
    for number in range(first, first + 10):
        anystep.write({"rows": [row], "floor": {}, "samples": number, "seeds": [0]}, folder)


def test_no_table_of_an_evaluation_is_lost(tmp_path):
    started = [FORKS.Process(target=write_tables, args=(str(tmp_path), first)) for first in (0, 100, 200)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    found = sorted(json.loads(path.read_text())["samples"] for path in tmp_path.glob("any_step*.json"))
    assert found == [first + number for first in (0, 100, 200) for number in range(10)]


def keep_reference(folder, name):
    """A process that keeps one of the things that metrics need of a reference."""
    value = np.full(3, float("abcd".index(name)))
    references.keep(pathlib.Path(folder) / "reference.npz", reference_of({name: value}))


def reference_of(outputs):
    found = {(name, "raw"): summaries.RawFeatures(value[:, None]) for name, value in outputs.items()}
    return references.Reference({"size": "1x1x1"}, found)


def test_what_a_reference_has_for_other_metrics_stays(tmp_path):
    started = [FORKS.Process(target=keep_reference, args=(str(tmp_path), name)) for name in VARIANTS]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    found = references.read(tmp_path / "reference.npz")
    assert {name: value.values[0, 0] for (name, _), value in found.summary.items()} == {
        name: float("abcd".index(name)) for name in VARIANTS
    }


def test_a_run_that_was_a_little_faster_in_a_new_workdir_is_not_mixed_up(tmp_path, capsys, monkeypatch):
    """It came and went between the look into the workdir and the lock."""
    locked, place = lock.locked, tmp_path / "run"

    def late(folder, *args):
        monkeypatch.setattr(lock, "locked", locked)
        with workdirs.one_device():
            workdirs.workdir(place, "digits", **{**TINY, "model.width": "32"})
        return locked(folder, *args)

    monkeypatch.setattr(lock, "locked", late)
    words = [f"--config.{key}={value}" for key, value in {**TINY, "loader.directory": str(tmp_path / "data")}.items()]
    error = workdirs.told(train.main, ["--config=digits", f"--workdir={place}", *words], capsys)
    assert "model.width is 16; it must be 32" in error and not (place / "metrics.jsonl").exists()


def test_two_writers_of_a_file_never_share_an_unfinished_one(tmp_path):
    """Processes on two hosts that share a disk may have one number, as in containers."""
    path = epath.Path(tmp_path / "file")
    with files.appearing(path) as first:
        first.write_text("first")
        with files.appearing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second" and first.read_text() == "first"
        assert first != second and files.UNFINISHED.fullmatch(first.name)
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["file"]


def started(folder, words, **environment):
    log = (folder / f"{time.monotonic_ns()}.txt").open("w")
    command = [sys.executable, "-m", "tim_jax.ablate", *arguments(folder), *words]
    return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)


@pytest.mark.nightly
@pytest.mark.parametrize("processes", [1, 2])
def test_commands_started_side_by_side_plan_together(processes, tmp_path):
    """With equal FLOPs, really counted; each command is one process, or two that join each other."""
    write_file(tmp_path, VARIANTS, equal="flops")
    running = []
    for name in "bcd"[: 4 - processes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        joined = {"JAX_COORDINATOR_ADDRESS": where, "JAX_NUM_PROCESSES": str(processes), "JAX_PLATFORMS": "cpu"}
        for i in range(processes):
            own = joined | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}
            running.append(started(tmp_path, ["--plan", f"--only={name}"], XLA_FLAGS=for_devices(1), **own))
    for process in running:
        assert process.wait(600) == 0, [path.read_text()[-2000:] for path in tmp_path.glob("*.txt")]
    planned = budget.read(epath.Path(tmp_path / "runs"))
    assert set(planned["variants"]) == set("abcd"[: 5 - processes])
