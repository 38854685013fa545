"""How a process ends when a signal asks for it: between two steps where it trains, at once everywhere else."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tim_jax.system import peers
from tim_jax.system.exit_codes import RESTART, leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stop(contextlib.ContextDecorator):
    """A context, or a decorator, in which SIGTERM, SIGINT and SIGHUP end the process with exit code 75.

    They do so at once, whatever it is doing (compiling, loading, sampling). Within `held()` they only set `asked`, and
    the caller ends the process when it has saved its work; a second SIGINT ends it at once. SIGHUP, that of a terminal
    or an ssh session which is closed, stays ignored where nohup has it so. Outside the main thread, where signals
    cannot be caught, the context does nothing. It must be entered after jax.distributed.initialize, which takes SIGTERM
    for itself.

    Attributes:
        asked: Name of the signal that has come, or None.
        before: Function that is called before the process ends at once.
        lost: Function that is called then, and says what is lost: "" for nothing, None where nothing is known of it.
    """

    def __init__(self, lost: Callable[[], str | None] = lambda: None) -> None:
        self.asked: str | None = None
        self.before: Callable[[], None] = lambda: None
        self.lost = lost
        self._held = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Stop":
        self.asked, self._held = None, False
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            # Python runs signal handlers in the main thread when it comes back from compiled code, which takes minutes
            # while XLA compiles; the number of a signal is written to this socket at once and read by a thread.
            self._read, self._write = socket.socketpair()
            self._write.setblocking(False)
            caught = [number for number in SIGNALS if number != signal.SIGHUP or not _ignored(number)]
            self._former = {number: signal.signal(number, lambda *_: None) for number in caught}
            self._former_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True, name="signals").start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        peers.leave_if_gone(error)
        if self._active:
            signal.set_wakeup_fd(self._former_fd)
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._write.close()

    @contextlib.contextmanager
    def held(self, held: bool = True) -> Iterator[None]:
        """A context in which a signal waits for the caller to look at `asked`. held: False for the opposite."""
        with self._lock:
            self._held = held
            if self.asked and not held:
                self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._held = not held

    def released(self) -> contextlib.AbstractContextManager[None]:
        """A context inside `held()` in which a signal ends the process at once again."""
        return self.held(False)

    def _watch(self) -> None:
        while number := self._read.recv(1):
            if number[0] not in SIGNALS:
                continue
            with self._lock:
                again = self.asked is not None
                self.asked = signal.Signals(number[0]).name
                if not self._held or (again and number[0] == signal.SIGINT):
                    self._leave()

    def _leave(self) -> None:
        self.before()
        with contextlib.suppress(OSError):  # nobody reads it, such as a pipe's reader that the same Ctrl-C has ended
            lost = self.lost()
            what = "" if lost is None else f"; {lost or 'no work is lost'}"
            print(f"\nstopped by {self.asked}{what}: start it again with the same command", file=sys.stderr)
        leave(RESTART)


def _ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


class Agreement:
    """Tells all processes after the same step what any of them knows, such as to stop; one step late with several.

    JAX's own preemption service takes SIGTERM for itself, and would not tell while the process compiles or samples.
    """

    def __init__(self, mesh: Mesh):
        self._count = mesh.size
        self._spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda flags: jnp.any(flags, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: jax.Array | None = None

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        """Returns which flags any process has; all processes must call it after every step.

        Args:
            flags: Those of this one, always as many.
        """
        if jax.process_count() == 1:
            return flags
        shape = (self._count, len(flags))
        spread = jax.make_array_from_callback(shape, self._spread, lambda _: np.array([flags]))
        before, self._pending = self._pending, self._any(spread)
        return tuple(map(bool, np.asarray(before))) if before is not None else (False,) * len(flags)
