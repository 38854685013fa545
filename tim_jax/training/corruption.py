"""Silent corruption: devices that compute or remember wrongly, and say nothing.

Steps are deterministic, and devices that hold the same part of an array hold the same bits. So what is amiss shows as
a difference: between replicas, between a batch and what was sent, or between a step and the same step made again. What
cannot be found this way: a part of the state of which no other device has a copy and that changes between two steps,
and a fault that gives the same wrong bits each time a step is made.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from tim_jax.system import cluster, files
from tim_jax.training.array_checksums import Checksums, Odd, checksums, holders, odd_against, odd_copies, unequal
from tim_jax.training.settings import EXCLUDE, WARN, TrainingSettings

TRIES = 3  # starts from the same checkpoint that may end with corruption
MADE = 3  # times that a step is made where two of them differ
LISTED = 4  # devices, or arrays, that a message names; the file has all

REPLICAS, SENT, TWICE = "replicas", "batch", "step made twice"  # what was compared
SAID = {
    REPLICAS: "other bits than in the replicas",
    SENT: "other bits than were put there",
    TWICE: "other bits than when the step was made again",
}

Batch = Mapping[str, jax.Array]
T = TypeVar("T")


class MakesSteps(Protocol):
    """What a step is made by, such as a `Trainer`."""

    @property
    def mesh(self) -> Mesh: ...

    def detailed(self, state: Any, batch: Batch) -> tuple[Any, dict, dict]:
        """Returns the next state, metrics and what is known of each example; the state that was given is spent."""
        ...


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
    since, count = None, 0
    while True:
        try:
            return attempt()
        except Corrupted as found:
            count = count + 1 if found.start == since else 1
            since, said = found.start, str(found)
        if count == TRIES:
            raise RepeatedCorruption(f"{said}; this is the {count}rd time since the checkpoint of step {since}")
        logging.warning("%s; the run goes back to its last checkpoint", said)


class Guard:
    """Makes the steps of a run and looks for corruption, which goes to corruption.jsonl."""

    def __init__(self, workdir: epath.Path, trainer: MakesSteps, settings: TrainingSettings, start: int):
        """Args:
        workdir: Of the run.
        trainer: Makes the steps.
        settings: How often to look, and what to do about what is found.
        start: The step that the run goes on from.
        """
        self._path, self._trainer, self._start = workdir / "corruption.jsonl", trainer, start
        self._compare, self._recompute = settings.compare_every, settings.recompute_every
        self._do = settings.on_corruption
        self._launched: list[tuple[int, Checksums, Checksums | None]] = []

    def step(self, number: int, state: Any, batch: Batch) -> tuple[Any, dict, dict]:
        """Makes a step, as `Trainer.detailed`, or makes it twice where that is due.

        Where these differ it is made once more from the state before it, and the run goes on with what two of the three
        agree on.

        Args:
            number: Of the step, from 1 on.
            state: The state before, which is spent.
            batch: The batch.

        Raises:
            Excluded: If they differ, and a host is to be left out.
        """
        if not self._recompute or number % self._recompute:
            return self._trainer.detailed(state, batch)
        before, back = to_hosts(state), jax.tree.map(lambda leaf: leaf.sharding, state)
        made: list[Made] = []
        for _ in range(MADE):
            outputs = self._trainer.detailed(to_devices(before, back) if made else state, batch)
            made.append(Made.of(outputs))
            same = [turn for turn, other in enumerate(made[:-1]) if not unequal(other.sums, made[-1].sums)]
            if same:
                break
            if len(made) < MADE:
                del outputs  # of two states one is on the devices, and the other on the hosts
        if not same:
            self._recompute = 0
            logging.warning(
                "step %d, made %d times from one state, never gave the same bits: its program is not deterministic, "
                "or the machine is broken; no step is made twice any more (training.recompute_every)", number, MADE,
            )  # fmt: skip
        elif len(made) == MADE:
            odd = blamed(self._trainer.mesh, made[1 - same[0]], made[-1])
            self._found(number, TWICE, odd, made[-1].sums.names(odd.arrays))
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
        if self._compare and (due or number % self._compare == 0):
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
                odd = odd_copies(sums) if sent is None else odd_against(sums, sent)
                self._found(number, REPLICAS if sent is None else SENT, odd, sums.names(odd.arrays))

    def _found(self, number: int, check: str, odd: Odd, names: Sequence[str]) -> None:
        """Writes and says what was found, and ends the attempt where it should end."""
        devices, hosts = [self._trainer.mesh.devices[position] for position in odd.positions], cluster.hosts()
        named = [{"process": d.process_index, "host": hosts[d.process_index], "device": str(d)} for d in devices]
        line = {"step": number, "time": round(time.time(), 3), "check": check, "certain": odd.certain}
        if jax.process_index() == 0:
            try:
                log = files.Log(self._path)
                log.add(json.dumps(line | {"devices": named, "arrays": list(names), "from_step": self._start}))
                log.close()
            except OSError as error:
                logging.warning("%s could not be written: %s", self._path, error)
        where = few([f"{each['device']} (process {each['process']} on {each['host']})" for each in named])
        said = f"step {number}: silent corruption on {'' if odd.certain else 'one of '}{where}: {SAID[check]}, in "
        said += few(names)
        if self._do == EXCLUDE:
            out = few(list(dict.fromkeys(each["host"] for each in named)))
            raise Excluded(f"{said}; {'leave out' if odd.certain else 'leave out one of'} {out}")
        if check == TWICE:
            logging.warning("%s; the run goes on with what it gave twice", said)
        elif self._do == WARN:
            logging.warning("%s; the run goes on with it (training.on_corruption)", said)
        else:
            raise Corrupted(said, self._start)


class Made(NamedTuple):
    """What is known of a step that was made. sums: Checksums of all that it returned. per_example: On the host."""

    sums: Checksums
    per_example: dict[str, np.ndarray]

    @classmethod
    def of(cls, outputs: tuple[Any, dict, dict]) -> "Made":
        """Sums up what a step has returned."""
        named = dict(zip(("state", "metrics", "per_example"), outputs, strict=True))
        return cls(checksums(named), {name: np.asarray(values) for name, values in outputs[2].items()})


def blamed(mesh: Mesh, wrong: Made, right: Made) -> Odd:
    """Returns the devices at which a step went wrong that was made again.

    Where a sum over devices has carried it to all of them, it is those whose examples have other errors or losses. If
    none have, the gradient alone was wrong, and it may have been any device.
    """
    odd = odd_against(wrong.sums, right.sums)
    if len(odd.positions) < mesh.size or mesh.size == 1:
        return odd
    of_examples = holders(mesh, wrong.per_example, right.per_example)
    return Odd(of_examples or odd.positions, odd.arrays, certain=len(of_examples) == 1)


def to_hosts(tree: Any) -> Any:
    """Returns arrays on devices, every device's part of them, copied to the memory of its host."""
    return _moved(tree, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind("pinned_host"), tree))


def to_devices(tree: Any, shardings: Any) -> Any:
    """Returns a copy of arrays in the memory of hosts on the devices that they came from."""
    return _moved(tree, shardings)


def _moved(tree: Any, shardings: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    to = jax.tree.leaves(shardings)
    parts = [
        (part, where.memory_kind) for leaf, where in zip(leaves, to, strict=True) for part in leaf.addressable_shards
    ]
    places = [SingleDeviceSharding(part.device, memory_kind=kind) for part, kind in parts]
    copies = iter(jax.device_put([part.data for part, _ in parts], places, may_alias=False))
    made = [
        jax.make_array_from_single_device_arrays(leaf.shape, where, [next(copies) for _ in leaf.addressable_shards])
        for leaf, where in zip(leaves, to, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def few(texts: Sequence[str]) -> str:
    """Returns the first of several texts, and how many more there are."""
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more
