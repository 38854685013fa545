"""Parts of a state as processes hold them: named by their place in the whole array, read from files, sent to others.

Another mesh, or another number of processes, has the same parts where it cuts arrays in the same way.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from tim_jax.training.names import by_name

PIECE = 2**26  # bytes that a process sends at a time

Places = Mapping[str, "Place"]  # by the names of parts


class Place(NamedTuple):
    """Where a part lies. file: That has it. offset: Of its first byte there. shape, dtype: Its own."""

    file: pathlib.Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Returns the part."""
        count = math.prod(self.shape) * self.dtype.itemsize
        return np.fromfile(self.file, np.uint8, count, offset=self.offset).view(self.dtype).reshape(self.shape)


def held(state: Any) -> dict[str, np.ndarray]:
    """Returns what the devices of this process hold of a state, each part once, copied to the host."""
    here: dict[str, Any] = {}
    for name, leaf in by_name(state).items():
        here |= {_part(name, shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    for data in here.values():
        data.copy_to_host_async()
    return {name: np.array(data) for name, data in here.items()}  # not views: the next step may reuse the buffers


def assembled(abstract: Any, step: int, places: Places) -> Any:
    """Returns the state of a step, or None where parts of it are nowhere, which is logged; processes share parts.

    Args:
        abstract: A tree of jax.ShapeDtypeStruct with shardings.
        step: For messages.
        places: Of the parts that are on this host.
    """
    wanted: dict[str, tuple[tuple[int, ...], np.dtype]] = {}  # shape and type of every part
    users: dict[str, set[int]] = {}  # the processes whose devices need it
    for name, leaf in by_name(abstract).items():
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            part = _part(name, index, leaf.shape)
            wanted[part] = leaf.sharding.shard_shape(leaf.shape), np.dtype(leaf.dtype)
            users.setdefault(part, set()).add(device.process_index)
    here = {part: places[part] for part, kind in wanted.items() if part in places and places[part][2:] == kind}
    order = sorted(wanted)
    have = multihost_utils.process_allgather(np.array([part in here for part in order]))
    have = have.reshape(jax.process_count(), len(order))
    if missing := int((~have.any(axis=0)).sum()):
        if jax.process_index() == 0:
            logging.warning(
                "the local checkpoint of step %d is not used: %d of the %d parts of the state are on no host",
                step, missing, len(order),
            )  # fmt: skip
        return None
    read = {part: place.read() for part, place in here.items() if jax.process_index() in users[part]}
    need = np.array([[process in users[part] for part in order] for process in range(jax.process_count())])
    sent = {  # by whom, where a process lacks it
        part: int(have[:, i].argmax()) for i, part in enumerate(order) if (need[:, i] & ~have[:, i]).any()
    }
    read |= _exchanged({part: wanted[part] for part in sent}, sent, here)
    if jax.process_index() == 0:
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in map(wanted.__getitem__, sent)) / 1e6
        more = f"; {size:.1f} MB were sent to processes that lacked them" if sent else ""
        print(f"the state is that of the local checkpoint of step {step}{more}", flush=True)

    def array(name: str, leaf: Any) -> jax.Array:
        devices = leaf.sharding.addressable_devices_indices_map(leaf.shape).items()
        shards = [jax.device_put(read[_part(name, index, leaf.shape)], device) for device, index in devices]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

    leaves = [array(name, leaf) for name, leaf in by_name(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _exchanged(
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype]], senders: Mapping[str, int], here: Places
) -> dict[str, np.ndarray]:
    """Sends parts to all processes.

    Args:
        parts: Shape and type of each.
        senders: The process that sends it.
        here: Where this process has parts.
    """
    got = {}
    for sender in sorted(set(senders.values())):
        of_sender = [part for part in parts if senders[part] == sender]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in map(parts.__getitem__, of_sender)]
        data = np.zeros(sum(sizes), np.uint8)
        ends = np.cumsum(sizes)
        if sender == jax.process_index():
            for part, end, size in zip(of_sender, ends, sizes, strict=True):
                data[end - size : end] = here[part].read().reshape(-1).view(np.uint8)
        for at in range(0, len(data), PIECE):  # as bytes: sums of floats would lose the sign of zeros
            piece = multihost_utils.broadcast_one_to_all(data[at : at + PIECE], sender == jax.process_index())
            data[at : at + PIECE] = piece
        for part, end, size in zip(of_sender, ends, sizes, strict=True):
            shape, dtype = parts[part]
            got[part] = data[end - size : end].copy().view(dtype).reshape(shape)
    return got


def _part(name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """The name of a part of an array, such as "params/online/kernel[0:8,16:32]"."""
    ends = (piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True))
    return f"{name}[{','.join(f'{start}:{stop}' for start, stop in ends)}]"
