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
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import files

NAME = "lock"
# Errors of file systems without locks: NFS without its lock service, some of FUSE and of clusters.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
POLL = 0.2  # seconds between looks at a lock that is waited for
BEAT = 10.0  # seconds between signs of life where files cannot be locked (object storage)


@contextlib.contextmanager
def locked(
    folder: epath.Path,
    lead: bool = True,
    count: int = 1,
    option: str = "--workdir",
    name: str = NAME,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """A context in which no other run works in the folder, which is made.

    A local file is locked by the operating system, which lets go of it when the process ends, however it ends.
    Elsewhere, and on file systems without locks, a file is rewritten every BEAT seconds, and one that does not change
    any more is taken over.

    Args:
        folder: Of the run.
        lead: Whether this process takes the lock for all processes of its run; each of them must enter.
        count: Number of processes of the run.
        option: Option of the command line that named the folder, for errors.
        name: Of the lock's file: what is never done by two at a time. NAME stands for all of a run, and stays; files of
            other names are there while the lock is held.
        waiting: If given, another run is waited for rather than an error, and this is called once, with who it is.

    Raises:
        ValueError: If another run works there, or the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if lead:
            try:
                who = _enter(stack, folder, name, waiting)
                refused = who and f"another run is at work there ({who}): stop it or give another"
            except OSError as error:
                refused = f"it cannot be written to ({error.strerror or error}); give another"
        if count > 1:
            others = bool(multihost_utils.broadcast_one_to_all(np.array(refused is not None)))
            refused = refused or ("the first process cannot work there" if others else None)
        if refused:
            raise ValueError(f"{option}={folder}: {refused}")
        yield


def _enter(
    stack: contextlib.ExitStack, folder: epath.Path, name: str, waiting: Callable[[str], None] | None
) -> str | None:
    """Enters what holds the lock, at once or when nobody else does; or returns who does."""
    told = False
    while True:
        with contextlib.ExitStack() as attempt:
            who = attempt.enter_context(_taken(folder, name))
            if who is None or waiting is None:
                stack.enter_context(attempt.pop_all())
                return who
        if not told:
            waiting(who)
            told = True
        time.sleep(POLL)


@contextlib.contextmanager
def _taken(folder: epath.Path, name: str) -> Iterator[str | None]:
    """A context that holds the lock and gives None, or that says who holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if "://" in str(folder):
        with _alive(path) as who:
            yield who
        return
    while True:
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
                break
            if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                continue  # who held it has removed it meanwhile, and another may hold a new one
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
            try:
                yield None  # closing the file unlocks it
            finally:
                if name != NAME:
                    path.unlink(missing_ok=True)
            return
    with _alive(path) as who:
        yield who


@contextlib.contextmanager
def _alive(path: epath.Path) -> Iterator[str | None]:
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
        return f"process {me['process']} on {me['host']} since {me['since']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
