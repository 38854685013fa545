"""Which processes go on: in a simulation whose processes take turns, on a clock of their own."""

import heapq
import itertools
import json
import random
import threading

import pytest
from etils import epath

from tim_jax.system import rendezvous
from tim_jax.system.rendezvous import Place

WAIT, END = 20.0, 150.0  # seconds of the simulation


class World:
    """Processes 0 … n−1 on n hosts that share a folder; one runs at a time, until it sleeps."""

    def __init__(self, folder, counts, everyone=4):
        self.folder, self.counts, self.everyone = epath.Path(folder), counts, everyone
        self.now, self.dead, self.places, self.joined_at = 0.0, set(), {}, {}
        self._queue, self._order, self._back = [], itertools.count(), threading.Semaphore(0)

    def _later(self, seconds, index, turn):
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), index, turn))

    def start(self, index, at=0.0):
        """Starts a process after so many seconds."""
        turn = threading.Semaphore(0)

        def sleep(seconds):
            self._later(seconds, index, turn)
            self._back.release()
            turn.acquire()

        def life():
            turn.acquire()
            self.places[index] = rendezvous.meet(
                self.folder, index, self.everyone, f"host{index}:1", self.counts, WAIT, lambda: self.now, sleep
            )
            self.joined_at[index] = self.now
            self._back.release()

        threading.Thread(target=life, daemon=True).start()
        self._later(at, index, turn)

    def kill(self, index):
        """From now on the process does nothing: its file stays."""
        self.dead.add(index)

    def run(self, until=END):
        while self._queue and self._queue[0][0] <= until:
            self.now, _, index, turn = heapq.heappop(self._queue)
            if index not in self.dead:
                turn.release()
                self._back.acquire()
        self.now = until
        return self


def going(world):
    """Those who go on, in the order of their new numbers; all agree on the first one's address and on how many."""
    by_place = {place.index: index for index, place in world.places.items() if place}
    members = [by_place[n] for n in range(len(by_place))]
    assert {place for place in world.places.values() if place} == {
        Place(f"host{members[0]}:1", len(members), n) for n in range(len(members))
    }
    return members


def test_all_go_on_at_once(tmp_path):
    world = World(tmp_path, [4, 3])
    for index in (2, 0, 3, 1):
        world.start(index, at=index)
    assert going(world.run(until=WAIT / 3)) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [rendezvous.DECISION]


@pytest.mark.parametrize("gone", range(4))
def test_without_one_the_others_go_on_once_nobody_has_come_for_the_stated_time(gone, tmp_path):
    """Also without the first; and when it is back, all go on together at the next restart, not before."""
    world, left = World(tmp_path, [4, 3, 2]), [index for index in range(4) if index != gone]
    for index in left:
        world.start(index, at=10.0 * index)
    assert going(world.run()) == left
    last = 10.0 * left[-1]
    assert all(last + WAIT <= at <= last + WAIT + 5 for at in world.joined_at.values())

    world.places.clear()
    world.start(gone)
    world.run(until=2 * END)
    assert not world.places, "it waits while the others train"
    for index in left:
        world.start(index, at=5.0)
    assert going(world.run(until=2 * END + WAIT)) == [0, 1, 2, 3]


def test_a_run_that_ends_lets_those_go_who_wait(tmp_path):
    world = World(tmp_path, [4, 2])
    for index in (1, 2, 3):
        world.start(index)
    assert going(world.run()) == [1, 2], "a batch does not divide over three"
    rendezvous.finish(world.folder)
    assert world.run(until=2 * END).places[3] is None
    world.places.clear()
    for index in range(4):
        world.start(index)
    assert going(world.run(until=3 * END)) == [0, 1, 2, 3], "that an earlier run has ended is the past"


def test_too_few_wait_for_another(tmp_path, capsys):
    world = World(tmp_path, [4, 3])
    world.start(0), world.start(2)
    assert not world.run().places
    assert "process 0 waits: 2 of 4 are here, 3 are needed" in capsys.readouterr().err
    world.start(3)
    assert going(world.run(until=2 * END)) == [0, 2, 3]


def test_one_that_was_killed_while_it_waited_is_not_waited_for(tmp_path):
    """Its file stays, and does not change any more."""
    world = World(tmp_path, [4, 3])
    for index in (0, 1):
        world.start(index)
    world.run(until=20)
    world.kill(0)
    for index in (2, 3):
        world.start(index, at=1.0)
    assert going(world.run()) == [1, 2, 3]
    (tmp_path / "0.waiting").write_text(json.dumps({"process": "of yesterday", "beat": 10**6}))
    for name in ("x.waiting", "7.waiting", "1.waiting"):
        (tmp_path / name).write_text("torn {")
    world.places.clear()
    for index in (1, 2, 3):
        world.start(index)
    assert going(world.run(until=2 * END)) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_whoever_comes_and_goes_one_decision_holds(seed, tmp_path):
    """Processes that start at random times, of which one may be killed: those that go on agree on who they are."""
    draw, world = random.Random(seed), World(tmp_path, [4, 3, 2])
    for index in draw.sample(range(4), draw.choice([3, 4])):
        world.start(index, at=draw.uniform(0, 60))
    world.run(until=draw.uniform(0, 30))
    world.kill(draw.choice([9, *(index for _, _, index, _ in world._queue)]))
    assert len(going(world.run())) >= 2


def test_the_address_is_that_of_this_host():
    assert rendezvous.own_address("localhost:8482") == "localhost:8482"
    host, port = rendezvous.own_address("no-such-host.invalid:8482").split(":")
    assert port == "8482" and host.count(".") == 3
