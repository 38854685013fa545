"""A run that goes on with fewer processes where some are gone for good (`--min-processes`)."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
from etils import epath

from tim_jax.config import fewer
from tim_jax.config.run import Run
from tim_jax.system import cluster, files, jsonl, paths, rendezvous
from tim_jax.transitions.objective import Objective

PLANNED = "planned.json"
WAIT = 300.0  # seconds, where --wait does not say


@dataclasses.dataclass(frozen=True)
class Elastic:
    """What `--min-processes` asks for.

    Attributes:
        folder: WORKDIR/processes, where the processes meet.
        least: The smallest number of processes that the run goes on with.
        wait: Seconds in which nobody has come, after which fewer than all go on.
    """

    folder: epath.Path
    least: int
    wait: float

    @property
    def planned(self) -> dict[str, Any]:
        """What the first start has recorded: "processes", "devices" of all of them, "counts"; {} before it."""
        path = self.folder / PLANNED
        return jsonl.read_object(path) if path.exists() else {}

    def join(self) -> bool:
        """Makes this process one of those that go on; False where the run has ended while it waited.

        The first start waits for all processes. So does every process that a scheduler counts, such as srun.

        Raises:
            ValueError: If there are fewer processes than `least`.
        """
        found = cluster.processes_here()
        everyone = found.get("num_processes", 0) if found else 1
        if everyone and everyone < self.least:
            raise ValueError(f"--min-processes is {self.least}; it must be at most the number of processes, {everyone}")
        if found and "coordinator_address" in found:
            address = rendezvous.own_address(found["coordinator_address"])
            counts = [n for n in self.planned.get("counts", [everyone]) if self.least <= n <= everyone] or [everyone]
            place = rendezvous.meet(self.folder, found["process_id"], everyone, address, counts, self.wait)
            if place is None:
                return False
            found |= {"coordinator_address": place.address, "num_processes": place.count, "process_id": place.index}
            found["initialization_timeout"] = cluster.MET
        cluster.join(found)
        if jax.process_count() < self.least:
            raise ValueError(
                f"--min-processes is {self.least}; it must be at most the number of processes, {jax.process_count()}"
            )
        return True

    def devices(self) -> int:
        """Returns the number of devices that the run was planned for."""
        return max(self.planned.get("devices", 0), jax.device_count())

    def plan(self, run: Run) -> dict[str, Any]:
        """Returns what is to be recorded of the run: with how many processes it can go on.

        Raises:
            ValueError: If it cannot go on with fewer than all of them, or not with as many as there are.
        """
        here, each, before = jax.process_count(), jax.local_device_count(), self.planned
        everyone = max(before.get("processes", 0), here)
        if run.data.buckets.tokens:
            raise ValueError(
                f"data.buckets.tokens is {run.data.buckets.tokens}; it must be 0 with --min-processes: the number of "
                "devices decides the size of such batches"
            )
        objective = cast(Objective, run.trainer.step.objective)
        found = fewer.counts(run.config, objective, everyone, each, self.least)
        if here not in found:
            raise ValueError(
                f"--min-processes is {self.least}; the run can go on with {_listed(found)} processes, not with {here}"
            )
        if len(found) == 1 and self.least < everyone:
            raise ValueError(
                f"--min-processes is {self.least}; data.batch_size, {run.data.batch_size}, must be a multiple of the "
                f"devices and microbatches of fewer than {everyone} processes, and mesh.data -1"
            )
        return {"processes": everyone, "devices": everyone * each, "counts": found}

    def record(self, plan: Mapping[str, Any]) -> None:
        """Writes the plan, and says what it is where processes are missing. One process does it, in a locked folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.replace(self.folder / PLANNED, json.dumps(plan).encode())
        more = sorted((n for n in plan["counts"] if n < plan["processes"]), reverse=True)
        if jax.process_count() < plan["processes"]:
            print(f"{jax.process_count()} of {plan['processes']} processes are here and go on", flush=True)
        elif more:
            print(f"where processes are gone for good, {_listed(more)} of {plan['processes']} go on", flush=True)

    def finish(self) -> None:
        """Tells processes that wait for the next start that there is none."""
        rendezvous.finish(self.folder)


def asked(least: int | None, wait: float | None, folder: str) -> Elastic | None:
    """Returns what the arguments `--min-processes` and `--wait` ask for, None for nothing.

    Raises:
        ValueError: Naming the argument that is wrong.
    """
    if least is None:
        if wait is not None:
            raise ValueError(f"--wait is {wait:g}; it has no effect without --min-processes")
        return None
    if not folder:
        raise ValueError("--workdir: missing; processes that --min-processes lets go on meet there")
    if least < 1:
        raise ValueError(f"--min-processes is {least}; it must be at least 1")
    if wait is not None and not 0 < wait < math.inf:
        raise ValueError(f"--wait is {wait:g}; it must be above 0 and finite")
    return Elastic(paths.run_folder(folder, "--workdir") / "processes", least, WAIT if wait is None else wait)


def _listed(counts: list[int]) -> str:
    return " or ".join(map(str, counts))
