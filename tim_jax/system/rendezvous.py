"""Which of a run's processes go on, where some may be gone for good.

They meet in a folder that all of them see. Each writes a file that it rewrites as long as it waits, and the one of
lowest number that waits decides: all go on at once where all are there, and as many as a run can go on with where
nobody has come for a while. Who comes later waits for the next decision, which is that of the next restart.

Nothing here compares the clocks of two machines: a process waits as long as its file goes on changing.
"""

import dataclasses
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator

from etils import epath

from tim_jax.system import files, jsonl

POLL, POLL_REMOTE = 1.0, 5.0  # seconds between looks; in object storage, where writing to a file has a limited rate
SILENCE = 10  # looks after which a process whose file has not changed is not waiting any more
TELL = 60.0  # seconds between lines that say who is waited for
DECISION = "decision.json"
FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a process is among those that go on.

    Attributes:
        address: host:port of the first of them.
        count: How many they are.
        index: Which of them this one is.
    """

    address: str
    count: int
    index: int


def largest(counts: Collection[int], here: int) -> int:
    """Returns the largest of `counts` that is not above `here`, 0 for none."""
    return max((count for count in counts if count <= here), default=0)


def meet(
    folder: epath.Path,
    index: int,
    everyone: int,
    address: str,
    counts: Collection[int],
    wait: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Place | None:
    """Waits until it is decided who goes on, and returns this process's place among them.

    Args:
        folder: Which all processes see, and nothing else uses.
        index: Of this process, in [0, everyone).
        everyone: How many processes there are when none is gone.
        address: host:port of this process, on which it can be the first.
        counts: How many may go on. Of those who are there, the lowest numbers do; the others wait.
        wait: Seconds in which nobody has come, after which fewer than all go on.
        clock: Seconds that never fall.
        sleep: Waits so many seconds.

    Returns:
        The place, or None if the run has ended while this process waited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me, own = secrets.token_hex(8), folder / f"{index}.waiting"
    poll = POLL if files.is_local(folder) else POLL_REMOTE
    before, seen = _decided(folder), _Seen(clock, SILENCE * poll)
    changed, told, here, beat = clock(), clock(), {index: me}, 0
    try:
        while True:
            beat += 1
            files.replace(own, json.dumps({"process": me, "address": address, "beat": beat}).encode())
            decided = _decided(folder)
            if me in decided.get("members", ()):
                return Place(decided["address"], len(decided["members"]), decided["members"].index(me))
            if decided != before and decided.get(FINISHED):
                return None
            there = {index: me} | {number: who for number, who in seen.look(folder) if number < everyone}
            if there != here:
                here, changed = there, clock()
            going = everyone if len(here) == everyone else largest(counts, len(here))
            late = len(here) < everyone and clock() - changed < wait
            joining = set(here.values()) & set(decided.get("members", ()))  # others, who have not read it yet
            if index == min(here) and going and not late and not joining:
                members = [here[number] for number in sorted(here)][:going]
                files.replace(folder / DECISION, json.dumps({"members": members, "address": address}).encode())
                continue
            if clock() - told >= TELL:
                told = clock()
                least = f", {min(counts)} are needed" if not going else ""
                print(f"process {index} waits: {len(here)} of {everyone} are here{least}", file=sys.stderr, flush=True)
            sleep(poll)
    finally:
        own.unlink(missing_ok=True)


def finish(folder: epath.Path) -> None:
    """Tells those who wait that the run has ended."""
    files.replace(folder / DECISION, json.dumps({FINISHED: secrets.token_hex(8)}).encode())


def own_address(coordinator: str) -> str:
    """Returns host:port on which others reach this process, with the port of the coordinator that was named."""
    host, _, port = coordinator.rpartition(":")
    try:
        if socket.gethostbyname(host).startswith("127."):
            return coordinator  # all of them are on this machine
    except OSError:  # its host is gone, and with it its name
        pass
    return f"{socket.gethostbyname(socket.gethostname())}:{port}"


def _decided(folder: epath.Path) -> dict:
    try:
        return jsonl.read_object(folder / DECISION)
    except (FileNotFoundError, ValueError):
        return {}


class _Seen:
    """Who else waits, by files that change."""

    def __init__(self, clock: Callable[[], float], silence: float):
        self._clock, self._silence = clock, silence
        self._last: dict[int, tuple[dict, float | None]] = {}  # what a file said, and when it was seen to have changed

    def look(self, folder: epath.Path) -> Iterator[tuple[int, str]]:
        """Yields (number, name) of every process that waits."""
        for path in list(folder.iterdir()):
            number = path.name.removesuffix(".waiting")
            if number == path.name or not number.isdigit():
                continue
            try:
                said = jsonl.read_object(path)
            except (FileNotFoundError, ValueError):
                continue
            before, when = self._last.get(int(number), (None, None))
            if before is not None and said != before:
                when = self._clock()
            self._last[int(number)] = said, when
            if when is not None and self._clock() - when < self._silence and isinstance(said.get("process"), str):
                yield int(number), said["process"]
