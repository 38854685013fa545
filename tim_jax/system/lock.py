"""One run per workdir: a lock that a killed process does not leave behind."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid

import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import files

NAME = "lock"
# Errors of file systems without locks: NFS without its lock service, some of FUSE and of clusters.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
BEAT = 10.0  # seconds between signs of life where files cannot be locked (object storage)


@contextlib.contextmanager
def locked(folder: epath.Path, lead: bool = True, count: int = 1, option: str = "--workdir"):
    """A context in which no other run works in the folder, which is made.

    A local file is locked by the operating system, which lets go of it when the process ends, however it ends.
    Elsewhere, and on file systems without locks, a file is rewritten every BEAT seconds, and one that does not change
    any more is taken over.

    Args:
        folder: Of the run.
        lead: Whether this process takes the lock for all processes of its run; each of them must enter.
        count: Number of processes of the run.
        option: Option of the command line that named the folder, for errors.

    Raises:
        ValueError: If another run works there, or the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if lead:
            try:
                refused = stack.enter_context(_taken(folder))
            except OSError as error:
                refused = f"it cannot be written to ({error.strerror or error}); give another"
        if count > 1:
            others = bool(multihost_utils.broadcast_one_to_all(np.array(refused is not None)))
            refused = refused or ("the first process cannot work there" if others else None)
        if refused:
            raise ValueError(f"{option}={folder}: {refused}")
        yield


@contextlib.contextmanager
def _taken(folder: epath.Path):
    """A context that holds the lock and gives None, or that says why not."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if "://" in str(folder):
        with _alive(path) as refused:
            yield refused
        return
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield _who(file.read())
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            logging.warning(
                "%s: its file system has no locks (%s); signs of life in %s keep other runs away instead",
                folder, error.strerror, path,
            )  # fmt: skip
        else:
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
            yield None  # closing the file unlocks it
            return
    with _alive(path) as refused:
        yield refused


@contextlib.contextmanager
def _alive(path: epath.Path):
    """The same where files cannot be locked, by signs of life."""
    before = path.read_text() if path.exists() else ""
    if before:
        end = time.monotonic() + 3 * BEAT
        while time.monotonic() < end:
            time.sleep(BEAT / 4)
            now = path.read_text() if path.exists() else None
            if now is None:
                break
            if now != before:
                yield _who(now)
                return
    me, ended = _me() | {"run": uuid.uuid4().hex, "beat": 0}, threading.Event()
    files.replace(path, json.dumps(me).encode())

    def beat():
        while not ended.wait(BEAT):
            me["beat"] += 1
            with contextlib.suppress(OSError):
                files.replace(path, json.dumps(me).encode())

    thread = threading.Thread(target=beat, daemon=True, name="lock")
    thread.start()
    try:
        yield None
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _me() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _who(text: str) -> str:
    try:
        me = json.loads(text)
        who = f"process {me['process']} on {me['host']} since {me['since']}"
    except (ValueError, KeyError, TypeError):
        who = "unknown"
    return f"another run is at work there ({who}): stop it or give another"
