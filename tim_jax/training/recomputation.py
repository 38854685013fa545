"""Steps that are made twice from the same state, which must give the same bits."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tim_jax.training.array_checksums import Checksums, checksums, holders, odd_against
from tim_jax.training.sharding import to_devices, to_hosts
from tim_jax.training.trainer import Batch

TWICE, ELSEWHERE = "step made twice", "step made elsewhere"  # what was compared


class MakesSteps(Protocol):
    """What a step is made by, such as a `Trainer`."""

    @property
    def mesh(self) -> Mesh: ...

    def detailed(self, state: Any, batch: Batch) -> tuple[Any, dict, dict]:
        """Returns the next state, metrics and what is known of each example; the state that was given is spent."""
        ...


@dataclasses.dataclass(frozen=True)
class Finding:
    """A difference that tells of silent corruption.

    Attributes:
        check: What was compared.
        devices: Where it may have happened.
        certain: Whether it was all of these devices, and not one of them.
        arrays: Names of those that differ.
    """

    check: str
    devices: Sequence[jax.Device]
    certain: bool
    arrays: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Made:
    """What is known of a step that was made.

    Attributes:
        sums: Checksums of all that it returned.
        table: The same on the host.
        per_example: What it returned of each example, on the host.
    """

    sums: Checksums
    table: np.ndarray
    per_example: dict[str, np.ndarray]

    @classmethod
    def of(cls, outputs: tuple[Any, dict, dict]) -> "Made":
        """Sums up what a step has returned; all processes must call this."""
        sums = checksums(dict(zip(("state", "metrics", "per_example"), outputs, strict=True)))
        return cls(sums, sums.gathered(), {name: np.asarray(values) for name, values in outputs[2].items()})


class Recomputation:
    """Makes steps twice."""

    def __init__(self, trainer: MakesSteps, elsewhere: MakesSteps | None = None):
        """Args:
        trainer: Makes the steps.
        elsewhere: Makes the same steps with each device's work on another one; None: the trainer makes both.
        """
        self._trainer, self._elsewhere, self._active = trainer, elsewhere, True

    def step(self, number: int, state: Any, batch: Batch) -> tuple[tuple[Any, dict, dict], Finding | None]:
        """Makes a step twice, and a third time where these differ.

        Args:
            number: Of the step, from 1 on.
            state: The state before, which is spent.
            batch: The batch.

        Returns:
            What the step gives, as `MakesSteps.detailed` does (what two of three times agree on), and what was found.
            Once three times have all differed, the program is not deterministic, and steps are made once.
        """
        if not self._active:
            return self._trainer.detailed(state, batch), None
        made: list[Made] = []
        before = to_hosts(state)
        outputs: Any = None
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # one state at a time is on the devices: the one before waits on the hosts
        for maker in (self._elsewhere or self._trainer, self._trainer, self._trainer):
            del outputs
            given = batch if maker is self._trainer else to_devices(batch, maker.mesh)
            outputs = maker.detailed(to_devices(before, maker.mesh), given)
            made.append(Made.of(outputs))
            same = [turn for turn, other in enumerate(made[:-1]) if np.array_equal(other.table, made[-1].table)]
            if same:
                break
        if not same:
            self._active = False
            logging.warning(
                "step %d, made three times from one state, never gave the same bits: its program is not deterministic, "
                "or the machine is broken; no step is made twice any more (training.recompute_every)", number,
            )  # fmt: skip
        if len(made) == 2 or not same:
            return outputs, None
        if same == [1] and self._elsewhere is not None:
            return outputs, self._always_other(number, self._elsewhere.mesh, *made[:2])
        return outputs, _once_wrong(self._trainer.mesh, made[1 - same[0]], made[2])

    def _always_other(self, number: int, there: Mesh, elsewhere: Made, here: Made) -> Finding | None:
        """What it means that a step gives the same bits each time, and others on other devices."""
        positions = holders(there, elsewhere.per_example, here.per_example)
        if not positions:  # every device computes the same of its own examples: only sums of gradients differ
            self._elsewhere = None
            logging.warning(
                "step %d: sums over devices depend on which device has which examples; steps are made twice on the "
                "same devices from here on (training.recompute_elsewhere)", number,
            )  # fmt: skip
            return None
        # A device that always computes wrongly does so at one place of the mesh here, and at another one there.
        both = [[mesh.devices[position] for position in positions] for mesh in (self._trainer.mesh, there)]
        suspects = [device for device in both[0] if device in both[1]] or [*both[0], *both[1]]
        names = here.sums.names(odd_against(elsewhere.table, here.table).arrays)
        return Finding(ELSEWHERE, suspects, len(suspects) == 1, names)


def _once_wrong(mesh: Mesh, wrong: Made, right: Made) -> Finding:
    """Where a step went wrong that was made again.

    Where a sum over devices has carried it to all of them, it is those whose examples have other errors or losses. If
    none have, the gradient alone was wrong, and it may have been any device.
    """
    odd = odd_against(wrong.table, right.table)
    positions, certain = odd.positions, True
    if len(positions) == mesh.size > 1:
        of_examples = holders(mesh, wrong.per_example, right.per_example)
        positions, certain = of_examples or positions, len(of_examples) == 1
    return Finding(TWICE, [mesh.devices[position] for position in positions], certain, right.sums.names(odd.arrays))
