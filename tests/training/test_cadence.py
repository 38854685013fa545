"""When a run with `checkpoint.every=auto` saves: on a clock of its own, and what a kill loses at most."""

import math
import os
import signal

import pytest

from tests.helpers.processes import Run, good
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tim_jax.training.cadence import REMEMBERED, RETRY, Cadence, Save, earliest, slowed
from tim_jax.training.settings import CheckpointSettings


def test_the_next_save_may_begin_when_the_last_one_has_paid_for_itself():
    assert earliest([], 0.05) == -math.inf
    assert earliest([Save(10.0, 2.0)], 0.05) == 50.0
    assert earliest([Save(10.0, 2.0)], 1.0) == 12.0
    once_slow = [Save(0.0, 1.0), Save(20.0, 500.0), Save(40.0, 1.0)]
    assert earliest(once_slow, 0.05) == 60.0, "one slow save does not put off the next"
    assert earliest([Save(0.0, 9.0)] * 3 + [Save(float(i), 1.0) for i in range(REMEMBERED)], 0.5) == 6.0
    assert earliest([Save(10.0, 0.0, failed=True)], 1.0) == 10.0 + RETRY, "a full disk is not tried all the time"


def test_what_steps_lose_during_a_save_is_counted_from_the_usual_step():
    assert slowed([1.5, 1.5, 2.0], [1.0, 1.0, 7.0]) == 2.0
    assert slowed([0.5], [1.0]) == 0.0 and slowed([], [1.0]) == 0.0 and slowed([3.0], []) == 0.0


class Simulated:
    """A run on a clock of its own. Steps take 1 s, and `slower` s during a save; a save blocks and then goes on.

    Attributes:
        saves: (step, when it began, when it ended), each.
        held_up: Seconds by which saves have held up steps.
    """

    seconds, proof_seconds, slower, failing = None, None, 1.0, False

    def __init__(self, every="auto", blocks=0.5, lasts=7.0, late=0, **settings):
        self.now, self.failures, self.saves, self.told, self.held_up = 0.0, [], [], [False] * late, 0.0
        self.blocks, self.lasts = blocks, lasts
        self.cadence = Cadence(CheckpointSettings(every, **settings), self, lambda: self.now)

    @property
    def busy(self):
        return bool(self.saves) and self.now < self.saves[-1][2]

    def train(self, steps):
        for step in range(1, steps + 1):
            more = self.slower - 1.0 if self.busy else 0.0
            self.now += 1.0 + more
            self.held_up += more
            self.told.append(self.cadence.wish(step))
            if self.told.pop(0) or self.cadence.planned(step):
                with self.cadence.paused(), self.cadence.saving():
                    self.now = max([self.now, *(ended for _, _, ended in self.saves[-1:])])  # one at a time
                    self.saves.append((step, self.now, self.now + self.blocks + self.lasts))
                    self.failures += ["full"] * self.failing
                    self.now += self.blocks
                    self.held_up += self.blocks
        return self

    def most_lost(self):
        """Seconds from a save's beginning to the end of the next one, at most."""
        return max(after[2] - before[1] for before, after in zip(self.saves, self.saves[1:], strict=False))


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(
    "blocks, slower, share", [(0.5, 1.0, 1.0), (0.5, 1.0, 0.05), (0.0, 1.25, 0.1), (2.0, 1.5, 0.5)]
)
def test_lost_work_and_time_spent_are_bounded(late, blocks, slower, share):
    """late: by how many steps processes agree after the first one has spoken."""
    run = Simulated(blocks=blocks, late=late, max_share=share)
    run.slower = slower
    run.train(4000)
    duration, cost = blocks + run.lasts, run.held_up / len(run.saves)
    rounding = 2 + late  # steps: one that is under way as a save ends, and those until all know
    assert run.most_lost() <= duration + max(duration, cost / share) + rounding * slower
    assert run.held_up <= share * run.now + cost
    assert run.cadence.metrics() == {}, "nothing has been written"
    run.seconds, run.proof_seconds = duration, 1.0
    assert run.cadence.metrics()["save_share"] == pytest.approx(run.held_up / run.now, rel=0.02)
    if share == 1.0:
        assert run.most_lost() >= 2 * duration, "saves follow one another, no more"


def test_a_save_asked_for_is_made_once_where_processes_agree_late():
    steps = [step for step, _, _ in Simulated(blocks=0.0, lasts=0.5, late=1, max_share=1.0).train(40).saves]
    assert steps == list(range(4, 41, 2))


def test_steps_that_stay_for_good_are_saved_whatever_else_is():
    run = Simulated(keep_every=10, max_share=0.05).train(200)
    steps = [step for step, _, _ in run.saves]
    assert set(range(10, 201, 10)) <= set(steps) and len(set(steps)) == len(steps)
    assert [step for step, _, _ in Simulated(every=30, keep_every=20).train(100).saves] == [30, 60, 90]


def test_a_failed_save_is_not_tried_again_at_once():
    run = Simulated()
    run.failing = True
    began = [began for _, began, _ in run.train(300).saves]
    assert len(began) >= 4 and all(b - a >= RETRY for a, b in zip(began, began[1:], strict=False))


@pytest.mark.slow
def test_a_killed_run_that_saves_continuously_goes_on_and_keeps_what_stays_for_good(tmp_path):
    auto = {"checkpoint__every": "auto", "checkpoint__keep": 1, "checkpoint__keep_every": 40}
    run = Run(tmp_path, training__steps=10**6, **auto)
    run.wait_for(lambda: len(run.steps_saved()) > 1 and max(run.steps_saved()) > 40)
    run.signal(signal.SIGKILL)
    run.process.join()
    saved = max(step for step in run.steps_saved() if good(run, step))
    done = run.step()
    end = (done // 40 + 2) * 40
    again = Run(tmp_path, training__steps=end, **auto)
    code, _ = again.end()
    assert code == 0 and f"going on from step {saved} of {end}" in again.said()
    assert set(again.steps_saved()) == set(range(40, end + 1, 40)), "one stays, the last, and those for good"
    assert os.listdir(run.workdir / "checkpoints") and all(good(again, step) for step in again.steps_saved())
