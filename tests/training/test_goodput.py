"""The ledger of a run's time against histories whose every second is known, and what is on record of them."""

import itertools
import json
import math
import signal
import time

import numpy as np
import pytest
from etils import epath

from tests.helpers.processes import Run
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tim_jax.training import goodput, ledger

EVERY = 5  # steps between checkpoints, of a second each


def history(rng):
    """Starts that are killed at random, with a clock that is right; what they recorded, and the truth.

    The truth knows each second by its own: which step it was of, and whether the last state came of it. What a kill
    leaves unrecorded, up to three seconds of steps, is down, unless a checkpoint shows it.
    """
    now, saved, lineage, made, lines = 1000, 0, [], set(), []
    truth = dict.fromkeys(ledger.KINDS, 0)
    for start in range(rng.integers(1, 6)):
        began, seconds = now, dict.fromkeys(ledger.ACTIVITIES, 0)
        if start:
            truth["down"] += now - lines[-1]["seen"]
        carried, lineage = saved, lineage[:saved]
        for kind in ("start", "restore", "compile"):
            seconds[kind] = int(rng.integers(0, 4))
            now += seconds[kind]
        seen = now
        record = {"began": began, "carried": carried}
        lines.append(record | {"seen": seen, "seconds": dict(seconds)})
        for step in range(carried + 1, carried + 1 + rng.integers(0, 14)):
            for kind in ("data", "evaluate"):
                more = int(rng.integers(0, 2))
                seconds[kind] += more
                now += more
            now, seconds["steps"] = now + 1, seconds["steps"] + 1
            lineage.append(now)
            made.add(now)
            if rng.integers(0, 3):
                lines[-1] = record | {"seen": now, "seconds": dict(seconds)}
            if step % EVERY == 0:
                saved = step
                now, seconds["save"] = now + 1, seconds["save"] + 1
                lines[-1] = record | {"seen": now, "seconds": dict(seconds)}  # so that no saved step is unrecorded
        now += int(rng.integers(0, 30))
    for kind, line in itertools.product(ledger.ACTIVITIES, lines):
        truth[kind] += line["seconds"][kind]
    recorded = {
        second for line in lines for second in made if line["began"] < second <= line["seen"]
    }  # seconds of steps which some start has on record
    truth["repeated"] = len(recorded - set(lineage))
    truth["steps"] = len(recorded & set(lineage))
    return lines, truth


@pytest.mark.parametrize("seed", range(200))
def test_the_ledger_is_that_of_a_clock_that_knows_every_second(seed):
    lines, truth = history(np.random.default_rng(seed))
    found = ledger.ledger(lines)
    assert found == truth
    assert sum(found.values()) == lines[-1]["seen"] - lines[0]["began"], "no second is lost or counted twice"


def start(began, seen, carried=0.0, done=False, **seconds):
    return {"began": began, "seen": seen, "carried": carried, "done": done, "seconds": seconds}


def nonzero(lines, first_start=None):
    return {kind: value for kind, value in ledger.ledger(lines, first_start).items() if value}


def test_clocks_torn_lines_and_what_nobody_recorded():
    first, second = start(100, 110, compile=4, steps=6), start(130, 140, 6.0, steps=10)
    assert nonzero([first, second]) == {"compile": 4, "steps": 16, "down": 20}
    # Clocks of machines differ a little.
    assert nonzero([first, start(109, 119, 6.0, steps=10)]) == {"compile": 4, "steps": 16}
    # Put back within a start: its own seconds are of a clock that only goes forward.
    assert nonzero([first | {"seen": 40}, second]) == {"compile": 4, "steps": 16, "down": 90}
    # The line of the middle start is gone: its 5 s of steps are in the state, all else of it is down.
    third = start(160, 170, 11.0, steps=10)
    assert nonzero([first, third]) == {"compile": 4, "steps": 21, "down": 45}
    for torn in ({"began": 120}, {"seconds": 3}, second | {"seen": "soon"}, second | {"seen": float("nan")}):
        assert ledger.ledger([first, torn, third]) == ledger.ledger([first, third])
    # Killed while it restored: from which state it would have gone on is not known, so that nothing is made again.
    killed = {"began": 120, "seen": 125, "seconds": {"restore": 5}}
    assert nonzero([first, killed, second]) == {"compile": 4, "restore": 5, "steps": 16, "down": 15}
    # Killed before its first checkpoint.
    assert nonzero([first, start(115, 120, 0.0, steps=5)]) == {"compile": 4, "steps": 5, "repeated": 6, "down": 5}
    # A run that was done is not down until someone extends it.
    assert nonzero([first | {"done": True}, second]) == {"compile": 4, "steps": 16}
    # Of an older version there are the first start and the seconds that its checkpoint carries.
    assert nonzero([second], first_start=100) == {"steps": 16, "unrecorded": 24}
    assert nonzero([]) == {} and ledger.share(ledger.ledger([])) == 0


def test_what_a_clock_that_went_backwards_leaves_unknown_is_not_told_as_nothing():
    """Neither the share nor the time in all are numbers then; bounds of both are told, of what is known."""
    first, back = start(100, 110, compile=4, steps=6), start(30, 40, 6.0, steps=10)
    third, unrecorded = start(60, 70, 16.0, steps=10), start(500, 510, 5.0, steps=10)
    known = dict.fromkeys(ledger.KINDS, 0.0) | {"compile": 4, "steps": 26, "down": 20}
    for starts, first_start, found in (
        ([first, back, third], None, known),
        ([unrecorded], 2000.0, dict.fromkeys(ledger.KINDS, 0.0) | {"steps": 15}),  # before the run's first start
        ([start(500, 510, steps=10)], 2000.0, dict.fromkeys(ledger.KINDS, 0.0) | {"steps": 10}),
    ):
        seconds = ledger.ledger(starts, first_start)
        assert math.isnan(seconds.pop("unknown")) and seconds == {k: v for k, v in found.items() if k != "unknown"}
    seconds = ledger.ledger([first, back, third])
    assert math.isnan(ledger.share(seconds)) and ledger.told(seconds) == (
        "goodput at most 52.0% of at least 50 s (down between starts 40.0%, compiling 8.0%, more between starts, when "
        "the clock went backwards, is not known)"
    )
    # The first start of all is on record as a start once it has begun, and a run that is done is not down.
    assert nonzero([start(500, 530, steps=20)], first_start=504.0) == {"steps": 20}
    assert nonzero([start(500, 530, 90.0, steps=20)], first_start=504.0) == {"steps": 110}  # of a copied checkpoint
    assert nonzero([first | {"done": True}, back]) == {"compile": 4, "steps": 16}


def test_the_line_of_a_run_names_what_took_its_time():
    seconds = ledger.ledger([start(0, 60, steps=30, compile=29.99, data=0.01), start(90, 3600, 20, steps=3510)])
    assert ledger.told(seconds) == (
        "goodput 98.1% of 1.0 h (down between starts 0.8%, compiling 0.8%, steps done twice 0.3%)"
    )


def test_a_start_is_on_record_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "SECONDS", 0.01)
    folder = epath.Path(tmp_path)
    (tmp_path / ledger.FILE).write_text(json.dumps(start(100, 110, compile=4, steps=6)) + '\n{"began": 12, "sec')

    def on_record():
        return [json.loads(line) for line in (tmp_path / ledger.FILE).read_text().splitlines()]

    account = goodput.Goodput()
    with account.recorded(folder, first_start=90.0):
        first, line = on_record()
        assert first["began"] == 100 and "carried" not in line, "a torn line is gone; this start is there at once"
        account.carried = 6.0
        with account.doing("steps"):
            while on_record()[-1]["seconds"]["steps"] == 0:  # without its doing
                pass
    found = on_record()
    assert len(found) == 2 and found[-1]["carried"] == 6.0 and ledger.read(folder) == found
    assert account.seconds()["unrecorded"] == 10.0 and account.seconds()["compile"] == 4.0
    assert account.seconds()["down"] == pytest.approx(found[-1]["began"] - 110.0)


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, monkeypatch, caplog):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(goodput.files, "replace", full)
    with goodput.Goodput().recorded(epath.Path(tmp_path)):
        pass
    assert sum("could not be written" in line.getMessage() for line in caplog.records) == 1


def test_steps_after_going_back_in_one_process_are_done_twice(monkeypatch):
    now = [0.0]
    for clock in ("time", "perf_counter"):
        monkeypatch.setattr(goodput.time, clock, lambda: now[0])
    account = goodput.Goodput()
    account.carried = 0.0
    with account.doing("steps"):
        now[0] = 10.0  # of which a checkpoint has the first six
    account.go_back()
    with account.doing("restore"):
        now[0] = 12.0
    account.carried = 6.0
    with account.doing("steps"):
        now[0] = 20.0
    assert {kind: value for kind, value in account.seconds().items() if value} == {
        "restore": 2.0, "steps": 14.0, "repeated": 4.0,
    }  # fmt: skip
    assert account.productive == 14.0


def often():
    """Is called in the process of a run: what a kill leaves unrecorded is little."""
    goodput.SECONDS = 0.02


@pytest.mark.slow
def test_what_a_kill_costs_is_on_record(tmp_path):
    """Killed before its first checkpoint, a run makes all of its steps again; every second of the wall clock counts."""
    run = Run(tmp_path, often, training__steps=10**6)
    run.wait_for(lambda: run.step() >= 5 and ledger.read(epath.Path(run.workdir))[0]["seconds"]["steps"] > 0)
    (heard,) = ledger.read(epath.Path(run.workdir))
    run.signal(signal.SIGKILL)
    run.process.join()
    killed = time.time()
    code, line = Run(tmp_path, often, training__steps=3).end()
    first, last = ledger.read(epath.Path(run.workdir))
    assert code == 0 and (first["done"], last["done"]) == (False, True) and last["carried"] == 0
    found = ledger.ledger([first, last])
    assert found["repeated"] == first["seconds"]["steps"] > 0
    assert found["steps"] == last["seconds"]["steps"] > 0
    assert last["began"] - killed - 0.1 <= found["down"] <= last["began"] - heard["seen"]
    assert sum(found.values()) == pytest.approx(last["seen"] - first["began"], abs=1.0)
    assert "; goodput " in line and "down between starts" in line
