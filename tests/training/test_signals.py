"""Real runs in processes of their own: asked to stop by signals, and steps that hang."""

import datetime
import json
import os
import pty
import select
import signal
import socket
import sys
import time

import pytest
from etils import epath

from tests.helpers.processes import SMALL, Run, ended, good
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tim_jax.training import checkpoints
from tim_jax.training.preemption import Stop
from tim_jax.training.watchdog import Watchdog


@pytest.mark.slow
def test_asked_to_stop_while_it_trains_a_run_saves_its_step_and_another_cannot_disturb_it(tmp_path):
    run = Run(tmp_path, training__steps=10**6)
    run.wait_for(lambda: run.step() >= 3)
    before = {path: path.read_bytes() for path in run.workdir.iterdir() if path.name in ("config.json", "starts.jsonl")}
    second = Run(tmp_path, training__steps=10**6)
    code, line = second.end()
    assert code == 2 and line.startswith("error: --workdir=") and f"process {run.process.pid} on" in line
    assert {path: path.read_bytes() for path in before} == before
    at = run.step()
    run.signal(signal.SIGTERM)
    code, line = run.end(60)
    (step,) = run.steps_saved()
    assert code == 75 and step >= at and good(run, step)
    assert line.startswith(f"stopped by SIGTERM at step {step}, which is saved: tim-jax train --workdir=")
    assert "goodput" in line
    assert run.step() <= step
    # Started again, it goes on from the step that was saved; its account of time spans both starts.
    again = Run(tmp_path, training__steps=step + 2)
    code, line = again.end()
    assert code == 0 and line.startswith(f"trained to step {step + 2}")
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, step + 3)), "no step is made twice or left out"
    starts = [json.loads(line) for line in (run.workdir / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2, "the run that was refused is no start"
    manager = checkpoints.open_manager(epath.Path(run.workdir), 2, read_only=True)
    seconds = [checkpoints.read_record(manager, saved)["productive_seconds"] for saved in (step, step + 2)]
    manager.close()
    assert 0 < seconds[0] < seconds[1]
    recorded = [json.loads(line) for line in (run.workdir / "goodput.jsonl").read_text().splitlines()]
    assert [line["done"] for line in recorded] == [False, True]
    assert recorded[0]["began"] <= datetime.datetime.fromisoformat(starts[0]["time"]).timestamp() + 1
    # Every second by the wall clock since the first start is somewhere, and those of steps are the checkpoint's.
    wall, spent = lines[-1]["time"] - recorded[0]["began"], {k: v for k, v in lines[-1].items() if k[:5] == "time/"}
    assert sum(spent.values()) == pytest.approx(wall, abs=0.5)
    assert lines[-1]["goodput"] == pytest.approx(seconds[1] / wall, rel=0.05)
    assert spent["time/down"] == pytest.approx(recorded[1]["began"] - recorded[0]["seen"])
    assert all(spent[f"time/{kind}"] > 0 for kind in ("start", "compile", "restore", "steps", "save"))
    assert spent["time/repeated"] < 0.01, "it was stopped by a signal, and lost no step, but for a moment in the loop"


def compile_for_ever():
    """A compiler that is busy for minutes, in one call, as with a large network."""
    import jax

    from tim_jax.training.trainer import Trainer

    def compile(self, batches):
        def program(x):
            for i in range(4000):
                x = jax.numpy.sin(x @ x) + i
            return x

        lowered = jax.jit(program).lower(jax.numpy.zeros((8, 8)))
        print("compiling", flush=True)
        lowered.compile()
        print("all compiled", flush=True)

    Trainer.compile = compile


def draw_for_ever():
    """Pictures that take minutes on the device."""
    import jax

    from tim_jax.runs import training

    def sample_pictures(run, plan):
        def draw(state):
            print("drawing", flush=True)
            x = jax.numpy.ones((200, 200))
            jax.block_until_ready(jax.lax.fori_loop(0, 10**7, lambda i, x: jax.numpy.sin(x @ x), x))

        return draw

    training.sample_pictures = sample_pictures


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, word, saved, number",
    [(compile_for_ever, "compiling", [], signal.SIGINT), (draw_for_ever, "drawing", [4], signal.SIGHUP)],
)
def test_asked_to_stop_while_it_compiles_or_draws_a_run_ends_at_once(change, word, saved, number, tmp_path):
    run = Run(tmp_path, change, training__steps=8, training__sample_every=4)
    run.wait_for(lambda: word in run.said())
    time.sleep(0.5)
    run.signal(number)
    code, line = run.end()
    assert code == 75 and line == f"stopped by {number.name}; no work is lost: start it again with the same command"
    assert "all compiled" not in run.said()
    assert run.steps_saved() == saved and all(good(run, step) for step in saved)


@pytest.mark.slow
@pytest.mark.parametrize("change, word", [(compile_for_ever, "compiling"), (None, "")])
def test_an_interrupt_that_ends_the_reader_of_the_output_too_saves_and_ends_with_75(change, word, tmp_path):
    """Ctrl-C at `python -m tim_jax.train … 2>&1 | tee LOG`; the reader is the first to end."""
    run = Run(tmp_path, change, piped=True, training__steps=10**6)
    run.wait_for(lambda: word in run.said() if change else run.step() >= 3)
    time.sleep(0.5)
    run.reader.send_signal(signal.SIGINT)
    assert run.reader.wait(30) == -signal.SIGINT
    run.signal(signal.SIGINT)
    run.process.join(60)
    assert run.process.exitcode == 75
    saved = run.steps_saved()
    assert len(saved) == (0 if change else 1) and all(good(run, step) for step in saved)


def hold_on():
    with Stop() as stop, stop.held():
        print("ready", file=sys.stderr)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.1)
        print(f"saved {stop.asked}", file=sys.stderr)
        raise SystemExit(3)


def test_while_work_is_held_only_a_second_interrupt_ends_it(tmp_path):
    assert ended(tmp_path, hold_on, signal.SIGHUP, signal.SIGTERM) == (3, "ready\nsaved SIGTERM\n")
    code, said = ended(tmp_path, hold_on, signal.SIGINT, signal.SIGINT)
    assert code == 75 and "saved" not in said and "stopped by SIGINT" in said


def hold_on_and_lose():
    with Stop(lambda: "5 steps since the last checkpoint are lost") as stop, stop.held():
        print("ready", file=sys.stderr)
        time.sleep(60)


def test_a_second_interrupt_says_what_it_loses(tmp_path):
    code, said = ended(tmp_path, hold_on_and_lose, signal.SIGINT, signal.SIGINT)
    assert code == 75 and "no work" not in said
    assert said.endswith(
        "stopped by SIGINT; 5 steps since the last checkpoint are lost: start it again with the same command\n"
    )


def keep_saving():
    """A checkpoint that takes for ever, from the second one on."""
    from tim_jax.training.checkpoints import Saver

    save = Saver.save

    def slow(self, step, state, record):
        if step > 2:
            print("saving", flush=True)
            time.sleep(1000)
        save(self, step, state, record)

    Saver.save = slow


@pytest.mark.slow
def test_a_second_interrupt_of_a_run_says_how_many_steps_it_loses(tmp_path):
    run = Run(tmp_path, keep_saving, training__steps=10**6, checkpoint__every=2)
    run.wait_for(lambda: "saving" in run.said())
    for _ in range(2):
        run.signal(signal.SIGINT)
        time.sleep(0.5)
    code, line = run.end(60)
    assert code == 75 and run.steps_saved() == [2]
    assert line == "stopped by SIGINT; 2 steps since the last checkpoint are lost: start it again with the same command"


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_step_and_the_run_goes_on(tmp_path):
    """Whatever is written to it afterwards has nowhere to go, and the signal comes once to all its processes."""
    log = tmp_path / "log"
    words = [f"--config.{key}={value}" for key, value in (SMALL | {"loader.directory": tmp_path / "data"}).items()]
    words = ["-m", "tim_jax.train", "--config=digits", f"--workdir={tmp_path / 'run'}", *words]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, *words, "--config.training.steps=1000000"])
    metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            log.write_bytes(os.read(terminal, 10_000))
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 75, log.read_text()
    (step,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints.damage(epath.Path(tmp_path / "run" / "checkpoints" / str(step))) is None


def hold_on_without_a_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    hold_on()


def test_what_nohup_ignores_stays_ignored(tmp_path):
    assert ended(tmp_path, hold_on_without_a_terminal, signal.SIGHUP) == (3, "ready\nsaved None\n")


def sample_for_ever():
    from tim_jax import sample
    from tim_jax.runs import workdir

    workdir.load = lambda *_: (print("ready", file=sys.stderr), time.sleep(1000))
    sample.main(["--workdir=none"])


def evaluate_for_ever():
    from tim_jax import evaluate
    from tim_jax.runs import workdir

    workdir.load = lambda *_: (print("ready", file=sys.stderr), time.sleep(1000))
    evaluate.main(["--workdir=none"])


@pytest.mark.parametrize("command", [sample_for_ever, evaluate_for_ever])
def test_sampling_and_evaluation_end_when_asked(command, tmp_path):
    code, said = ended(tmp_path, command, signal.SIGTERM)
    assert code == 75 and said.endswith("stopped by SIGTERM: start it again with the same command\n")


def be_slow():
    with Watchdog(0.4) as watchdog:
        for _ in range(3):
            time.sleep(0.2)
            watchdog.step()
        assert 2.0 <= watchdog.limit < 3.0, watchdog.limit
        time.sleep(1.0)  # more than 0.4 s, less than ten times the usual
        with watchdog.paused():
            time.sleep(4.0)
    time.sleep(1.0)  # nothing is watched any more
    raise SystemExit(3)


def test_what_is_slow_does_not_hang(tmp_path):
    assert ended(tmp_path, be_slow) == (3, "")


def hang():
    """Data that stop coming after the fourth step."""
    from tim_jax import data

    iterate = data.iterate

    def hanging(*args):
        for step, batch in enumerate(iterate(*args)):
            if step == 6:  # two batches lie ahead
                wait_for_a_dead_disk()
            yield batch

    data.iterate = hanging


def wait_for_a_dead_disk():
    time.sleep(10**6)


@pytest.mark.slow
def test_a_step_that_hangs_ends_the_run_with_all_stacks(tmp_path):
    run = Run(tmp_path, hang, training__steps=100, checkpoint__every=2, training__hang_seconds=2.0)
    code, line = run.end()
    said = run.said()
    assert code == 75 and line.startswith("stopped: a step has taken") and "from the last checkpoint" in line
    assert "in wait_for_a_dead_disk" in said and "Thread 0x" in said
    assert run.steps_saved() == [2, 4] and good(run, 4)


class Join:
    """What a process of two finds in its environment; an object, since the forked process must be handed it."""

    def __init__(self, index, port):
        self.index, self.port = index, port

    def __call__(self):
        os.environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{self.port}"
        os.environ |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(self.index)}


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.nightly), pytest.param(1, marks=pytest.mark.slow)])
def test_of_two_processes_one_is_asked_and_both_stop_after_the_same_step(asked, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    runs = [Run(tmp_path, Join(index, port), training__steps=10**6) for index in range(2)]
    runs[0].wait_for(lambda: runs[0].step() >= 3)
    runs[asked].signal(signal.SIGTERM)
    codes = [run.end(120)[0] for run in runs]
    assert codes == [75, 75], "\n".join(run.said() for run in runs)
    (step,) = runs[0].steps_saved()
    who = "SIGTERM" if asked == 0 else "a signal to another process"
    assert runs[0].end()[1].startswith(f"stopped by {who} at step {step}, which is saved")
    manifests = sorted(path.name for path in (runs[0].workdir / "checkpoints" / str(step)).glob("manifest-*"))
    assert manifests == ["manifest-0-of-2.sha256", "manifest-1-of-2.sha256"] and good(runs[0], step)
    # One process goes on from what two have saved.
    one = Run(tmp_path, training__steps=step + 1)
    code, line = one.end()
    assert code == 0 and line.startswith(f"trained to step {step + 1}")
