"""Real runs in which a bit of a parameter flips on one device: it is named, and they end bit-equal to others."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from tests.helpers.configs import flags
from tests.helpers.devices import for_devices
from tests.helpers.processes import SMALL, Run, ended_at_last
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tim_jax.bench.faults import state_leaves
from tim_jax.bench.flips import flipped
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config

OFTEN = {"training.compare_every": "2", "checkpoint.every": "4", "training.steps": "8"}


def reported(folder):
    path = folder / "corruption.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def flip_at_6(process=0, part=5):
    """A bit of a parameter flips on a device of one process after step 6, once."""
    from tim_jax.training.trainer import Trainer

    detailed, todo = Trainer.detailed, [process]

    def disturbed(self, state, batch):
        after, *rest = detailed(self, state, batch)
        if int(after.step) == 6 and jax.process_index() in todo:
            todo.clear()
            leaves, structure = jax.tree.flatten(after.params)
            leaves[0] = flipped(leaves[0], part, 0, 3)
            after = after.replace(params=jax.tree.unflatten(structure, leaves))
        return after, *rest

    Trainer.detailed = disturbed


def eight_devices():
    os.environ["XLA_FLAGS"] = for_devices(8)


def flip_on_one_of_eight():
    eight_devices()
    flip_at_6()


@pytest.mark.slow
def test_a_run_with_a_flipped_bit_names_the_host_goes_back_and_ends_bit_equal(tmp_path):
    settings = {name.replace(".", "__"): value for name, value in OFTEN.items()}
    for folder in (tmp_path / "disturbed", tmp_path / "undisturbed"):
        folder.mkdir()
    run = Run(tmp_path / "disturbed", flip_on_one_of_eight, **settings, training__on_corruption="exclude")
    code, line = run.end(1200)
    assert (
        code == 75
        and line.startswith("failed: step 6: silent corruption on ")
        and line.endswith(f"leave out {socket.gethostname()}")
    ), run.said()
    assert run.steps_saved() == [4]
    again = Run(tmp_path / "disturbed", flip_on_one_of_eight, **settings)
    code, line = again.end(1200)
    assert code == 0 and "the run goes back to its last checkpoint" in again.said(), again.said()
    lines = reported(run.workdir)
    assert [(line["step"], line["from_step"], line["check"]) for line in lines] == [
        (6, 0, "replicas"),
        (6, 4, "replicas"),
    ]
    assert all(len(line["devices"]) == 1 and line["devices"][0]["device"].endswith("5") for line in lines)
    steps = [json.loads(line)["step"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9)), "each step once"
    alone = Run(tmp_path / "undisturbed", eight_devices, **settings)
    assert alone.end(1200)[0] == 0 and reported(alone.workdir) == []
    abstract = build(load_config("digits", SMALL | OFTEN), jax.devices()[:1]).trainer.abstract
    assert state_leaves(run.workdir, abstract, 8) == state_leaves(alone.workdir, abstract, 8)


@pytest.mark.nightly
def test_of_three_processes_the_one_with_a_flipped_bit_is_named(tmp_path):
    """They go back together, and end bit-equal to three that nothing disturbs."""

    def start(name, change):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        settings = SMALL | OFTEN | {"data.batch_size": "12", "loader.directory": str(tmp_path / "data")}
        arguments = ["--config=digits", f"--workdir={tmp_path / name}", *flags(settings)]
        code = f"from tests.training import test_corrupted_runs as t; {change}; from tim_jax import train as command"
        code += f"; command.main({arguments!r})"
        environment = os.environ | {
            "XLA_FLAGS": for_devices(1), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "3",
        }  # fmt: skip
        logs = [tmp_path / f"{name}{i}.txt" for i in range(3)]
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(log.open("w")) for log in logs]
            running = [
                subprocess.Popen(
                    [sys.executable, "-c", code], env=environment | {"JAX_PROCESS_ID": str(i)}, stdout=output,
                    stderr=output, start_new_session=True,
                )
                for i, output in enumerate(outputs)
            ]  # fmt: skip
            stack.enter_context(ended_at_last(running))
            codes = [process.wait(1500) for process in running]
        said = [log.read_text() for log in logs]
        assert codes == [0, 0, 0], "\n".join(text[-3000:] for text in said)
        return said

    said = start("disturbed", "t.flip_at_6(process=2, part=0)")
    assert "the run goes back to its last checkpoint" in said[0]
    start("undisturbed", "pass")
    (line,) = reported(tmp_path / "disturbed")
    assert line["certain"] and [each["process"] for each in line["devices"]] == [2]
    abstract = build(load_config("digits", SMALL | OFTEN), jax.devices()[:1]).trainer.abstract
    one, other = (state_leaves(tmp_path / name, abstract, 8) for name in ("disturbed", "undisturbed"))
    assert one == other and one[0] == 8


@pytest.mark.nightly
def test_of_bits_that_are_flipped_all_are_found_that_leave_a_trace(tmp_path):
    """On eight devices, by the command that docs/robustness.md has its figures from."""
    command = ["tim_jax.bench", "flips", "--flips=3", f"--json={tmp_path / 'flips.json'}"]
    subprocess.run([sys.executable, "-m", *command], env=os.environ | {"XLA_FLAGS": for_devices(8)}, check=True)
    rows = json.loads((tmp_path / "flips.json").read_text())["rows"]
    assert len(rows) == 7 and not any(row["missed"] for row in rows[:-1])  # see docs/robustness.md
    assert sum(row["found"] for row in rows) > 10
