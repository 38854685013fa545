"""Silent corruption: devices that compute or remember wrongly, and say nothing.

Steps are deterministic, and devices that hold the same part of an array hold the same bits. So what is amiss shows as
a difference: between replicas, between a batch and what was sent, or between a step and the same step made again. What
cannot be found this way: bits that flip in a part of the state of which no other device has a copy, and a fault that
gives the same wrong bits each time, unless other devices do the same.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import logging
from etils import epath

from tim_jax.system import cluster, jsonl
from tim_jax.system.user_errors import few
from tim_jax.training.array_checksums import Checksums, checksums, odd_against, odd_copies
from tim_jax.training.recomputation import ELSEWHERE, TWICE, Finding, MakesSteps, Recomputation
from tim_jax.training.settings import EXCLUDE, WARN, TrainingSettings
from tim_jax.training.trainer import Batch

TRIES = 3  # starts from the same checkpoint that may end with corruption
LISTED = 4  # devices, or arrays, that a message names; the file has all

REPLICAS, SENT = "replicas", "batch"  # what was compared, besides what `recomputation` compares
SAID = {
    REPLICAS: "other bits than in the replicas",
    SENT: "other bits than were put there",
    TWICE: "other bits than when the step was made again",
    ELSEWHERE: "other bits than when another device did the same",
}

T = TypeVar("T")


class Corrupted(RuntimeError):
    """A state may be wrong; the message says what was found. start: the step that the run had gone on from."""

    def __init__(self, message: str, start: int):
        super().__init__(message)
        self.start = start


class Excluded(RuntimeError):
    """The run ends so that it may be started without a host; the message names it."""


class RepeatedCorruption(RuntimeError):
    """The run has found corruption too often since its last checkpoint."""


def sound(attempt: Callable[[], T]) -> T:
    """Returns what `attempt` returns, which goes on from the last checkpoint each time that it finds corruption.

    Raises:
        RepeatedCorruption: If it does so TRIES times from the same checkpoint.
    """
    since: int | None = None
    count = 0
    while True:
        try:
            return attempt()
        except Corrupted as found:
            count = count + 1 if found.start == since else 1
            since, said = found.start, str(found)
        if count == TRIES:
            raise RepeatedCorruption(f"{said}; found {count} times since the checkpoint of step {since}")
        logging.warning("%s; the run goes back to its last checkpoint", said)


class Guard:
    """Makes the steps of a run and looks for corruption, which goes to corruption.jsonl."""

    def __init__(
        self,
        workdir: epath.Path,
        trainer: MakesSteps,
        settings: TrainingSettings,
        start: int,
        elsewhere: MakesSteps | None = None,
    ):
        """Args:
        workdir: Of the run.
        trainer: Makes the steps.
        settings: How often to look, and what to do about what is found.
        start: The step that the run goes on from.
        elsewhere: Makes the same steps with each device's work on another one; None: steps are made again where
            they were made.
        """
        self._path, self._trainer, self._start = workdir / "corruption.jsonl", trainer, start
        self._compare, self._recompute = settings.compare_every, settings.recompute_every
        self._do, self._again = settings.on_corruption, Recomputation(trainer, elsewhere)
        self._launched: list[tuple[int, Checksums, Checksums | None]] = []

    def step(self, number: int, state: Any, batch: Batch) -> tuple[Any, dict, dict]:
        """Makes a step, as `Trainer.detailed`, or makes it twice where that is due: see `Recomputation.step`.

        Raises:
            Corrupted: If a device always does something otherwise than others.
            Excluded: If two times differ, and a host is to be left out.
        """
        if not self._recompute or number % self._recompute:
            return self._trainer.detailed(state, batch)
        outputs, found = self._again.step(number, state, batch)
        if found is not None:
            self._found(number, found)
        return outputs

    def check(self, number: int, state: Any, batch: Batch, sent: Checksums | None, due: bool = False) -> None:
        """Launches the checks of a step that was launched, and takes those of the step before into account.

        Args:
            number: Of the step.
            state: The state after it.
            batch: Its batch.
            sent: Checksums of the batch when it was put on the devices; None where these are not known.
            due: Whether replicas are compared, however long ago that was last done.

        Raises:
            Corrupted: As `settle`.
            Excluded: As `settle`.
        """
        self.settle()
        if self._compare and sent is not None:
            self._launched.append((number, checksums(batch, sent), sent))
        if self._compare and self._trainer.mesh.size > 1 and (due or number % self._compare == 0):
            self._launched.append((number, checksums(state), None))

    def settle(self) -> None:
        """Waits for the checks that were launched.

        Raises:
            Corrupted: If one has found something, and the run is to go back.
            Excluded: Likewise, if a host is to be left out.
        """
        launched, self._launched = self._launched, []
        for number, sums, sent in launched:
            if bool(sums.differ):
                odd, check = odd_copies(sums), REPLICAS
                if sent is not None and (altered := odd_against(sums.gathered(), sent.gathered())).positions:
                    odd, check = altered, SENT
                devices = [self._trainer.mesh.devices[position] for position in odd.positions]
                self._found(number, Finding(check, devices, odd.certain, sums.names(odd.arrays)))

    def _found(self, number: int, found: Finding) -> None:
        """Writes and says what was found, and ends the attempt where it should end."""
        hosts, certain = cluster.hosts(), found.certain
        named = [{"process": d.process_index, "host": hosts[d.process_index], "device": str(d)} for d in found.devices]
        line = {"step": number, "time": round(time.time(), 3), "check": found.check, "certain": certain}
        if jax.process_index() == 0:
            jsonl.add(self._path, line | {"devices": named, "arrays": found.arrays, "from_step": self._start})
        where = few([f"{each['device']} (process {each['process']} on {each['host']})" for each in named], LISTED)
        said = f"step {number}: silent corruption on {'' if certain else 'one of '}{where}: {SAID[found.check]}, in "
        said += few(found.arrays, LISTED)
        if self._do == EXCLUDE:
            out = few(list(dict.fromkeys(each["host"] for each in named)), LISTED)
            raise Excluded(f"{said}; {'leave out' if certain else 'leave out one of'} {out}")
        if found.check == TWICE:
            logging.warning("%s; the run goes on with what it gave twice", said)
        elif self._do == WARN:
            logging.warning("%s; the run goes on with it (training.on_corruption)", said)
        else:
            raise Corrupted(said, self._start)
