"""TensorBoard's event files: a new one for every start, and steps taken back that a run will make again.

A file is a sequence of records: length (uint64), its checksum (uint32), the event, its checksum (uint32). An event
begins with its time (field 1, a double) and its step (field 2, a varint).
"""

import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from tim_jax.system import files
from tim_jax.training.tensorboard import Event, RecordWriter, SessionLog

HEAD = 24  # bytes of an event that hold time and step
NUMBER = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class Log:
    """A new file of events, whose name sorts behind those of the files that are there: TensorBoard reads in this order.

    The number in it is the time in seconds, as elsewhere, or one more than the largest, where two starts share a second
    or the clock went backwards.
    """

    def __init__(self, folder: epath.Path):
        """Makes the folder, if need be, and the file in it."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(found[1]) for path in folder.iterdir() if (found := NUMBER.match(path.name))]
        for number in itertools.count(max([int(time.time()), *(n + 1 for n in numbers)])):
            path = folder / f"events.out.tfevents.{number:010}.{socket.gethostname()}"
            try:
                if files.is_local(path):
                    open(path, "x").close()  # evaluation may write beside training
                break
            except FileExistsError:
                continue
        self._records = RecordWriter(str(path))
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Adds an event."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Writes what waits."""
        self._records.flush()

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        self._records.flush()
        self._records.close()


def forget(folder: epath.Path, step: int) -> None:
    """Cuts all event files of a folder off before their first event of a later step than this one."""
    for path in folder.iterdir() if folder.exists() else ():
        with path.open("rb") as file:
            end = next((place for place, at in _steps(file) if at > step), None)
        if end is not None and files.is_local(path):
            os.truncate(path, end)
        elif end is not None:
            files.replace(path, path.read_bytes()[:end])


def restart(step: int) -> Event:
    """Returns the event by which a TensorBoard that runs meanwhile drops what it has shown from this step on."""
    return Event(step=step, session_log=SessionLog(status=SessionLog.START))


def _steps(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yields place and step of every event; a record that is cut off counts as of a step without end."""
    place, size = 0, file.seek(0, os.SEEK_END)
    file.seek(0)
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        data = file.read(min(length, HEAD))
        after = place + 12 + length + 4
        if after > size:
            yield place, 2**63
            return
        yield place, _step(data)
        file.seek(after)
        place = after
    if head:
        yield place, 2**63


def _step(event: bytes) -> int:
    event = event[9:] if event[:1] == b"\x09" else event
    value = 0
    for i, byte in enumerate(event[1:11] if event[:1] == b"\x10" else b""):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            break
    return value
