"""How the processes of one run find each other, and what they agree on. `join` comes before all else that touches a
device."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tim_jax.system import int64, peers

# Seconds. Hosts of a pod may fetch their image minutes apart, and one that is late must not end those that wait.
START = 900
# The same of processes that have met before (see `rendezvous`): one of them may have gone since.
MET = 120
# A host that is silent for this long is lost: all others end, and the launch script starts them anew. Heartbeats come
# from a thread of their own, which neither compilation nor a checkpoint holds up.
HEARTBEAT = 60
# At the end, how long to wait for a process that still writes its part of a checkpoint.
END = 300
NAME = 255  # bytes of a host's name, at most

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
BY_SRUN = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def processes_here() -> dict[str, Any] | None:
    """Returns what `processes` does of the variables of this process."""
    config: Any = jax.config  # whose options type checkers do not see
    return processes(os.environ, "tpu" in (config.jax_platforms or ""))  # JAX writes it there when it finds TPUs


def join(found: dict[str, Any] | None = None) -> None:
    """Makes this process one of its run's processes; a lone process, or one that has joined, stays as it is.

    Processes are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID where these are set (each
    process then has all GPUs of its host, or those of JAX_LOCAL_DEVICE_IDS), and else as JAX finds them under srun and
    on TPU slices.

    Args:
        found: What `processes` returns, by default that of the environment; with other arguments of
            jax.distributed.initialize, if need be.

    Raises:
        ValueError: For a variable that is wrong, or that is missing while others are set; it names the variable.
    """
    found = found or processes_here()
    if found is None or found.get("num_processes") == 1 or jax.distributed.is_initialized():
        return
    timeouts = {
        "initialization_timeout": START,
        "heartbeat_timeout_seconds": HEARTBEAT,
        "shutdown_timeout_seconds": END,
    }
    with peers.watched():
        jax.distributed.initialize(**timeouts | found)


def processes(environ: Mapping[str, str], on_tpu: bool = False) -> dict[str, Any] | None:
    """Returns arguments for jax.distributed.initialize, which finds out what is missing, or None for a lone process.

    Args:
        environ: Variables of the environment.
        on_tpu: Whether this host has TPUs.

    Raises:
        ValueError: As `join`.
    """
    by_hand = [name for name in BY_HAND if environ.get(name)]
    if by_hand:
        _all_set(environ, BY_HAND, f"{by_hand[0]} is; set all of {', '.join(BY_HAND)} or none")
        host, _, port = environ["JAX_COORDINATOR_ADDRESS"].rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is {environ['JAX_COORDINATOR_ADDRESS']!r}; it must be host:port of process 0"
            )
        count = _whole(environ, "JAX_NUM_PROCESSES", least=1)
        index = _index(environ, "JAX_PROCESS_ID", count, "JAX_NUM_PROCESSES")
        return None if count == 1 else {
            "coordinator_address": environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }  # fmt: skip
    if environ.get("SLURM_PROCID") and environ.get("SLURM_NTASKS", "1") != "1":
        # A batch script has some of these variables too; only what srun starts is one of several processes.
        _all_set(environ, BY_SRUN, f"SLURM_NTASKS is {environ['SLURM_NTASKS']}; start the command with srun")
        count = _whole(environ, "SLURM_NTASKS", least=1)
        _index(environ, "SLURM_PROCID", count, "SLURM_NTASKS")
        _index(environ, "SLURM_LOCALID", count, "SLURM_NTASKS")
        _whole(environ, "SLURM_JOB_ID", least=0)
        return {"cluster_detection_method": "slurm"}
    # The hosts of a slice are told by Kubernetes in a variable, on plain TPU machines by the metadata server.
    if on_tpu and (environ.get("TPU_WORKER_HOSTNAMES") or "TPU_SKIP_MDS_QUERY" not in environ):
        return {}
    return None


def _all_set(environ: Mapping[str, str], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if not environ.get(name):
            raise ValueError(f"{name} is not set, though {why}")


def _whole(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ[name]
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def _index(environ: Mapping[str, str], name: str, count: int, of: str) -> int:
    index = _whole(environ, name, least=0)
    if index >= count:
        raise ValueError(f"{name} is {index}; it must be less than {of}, which is {count}")
    return index


def summed(counts: np.ndarray) -> np.ndarray:
    """Returns the sum of counts (n,), int64, over all processes; all must call it."""
    if jax.process_count() == 1:
        return counts
    return int64.from_halves(multihost_utils.process_allgather(int64.to_halves(counts))).sum(0)


def agreed(flags: Sequence[bool]) -> list[bool]:
    """Returns whether each of several things is so on all processes; all must call it."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags, np.int32)).all(axis=0).tolist()


def gathered(array: jax.Array) -> np.ndarray:
    """Returns the values of a global array on the host, of all processes, each of which must call this."""
    whole = jax.process_count() == 1
    return np.asarray(array if whole else multihost_utils.process_allgather(array, tiled=True))


def hosts() -> list[str]:
    """Returns the names of all processes' hosts, by process; all must call it."""
    name = np.frombuffer(socket.gethostname().encode()[:NAME].ljust(NAME, b"\0"), np.uint8)
    names = multihost_utils.process_allgather(name) if jax.process_count() > 1 else name[None]
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(names)]
