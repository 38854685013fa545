"""A second tier of checkpoints on a disk, or in the memory, of each host: quick to write, and gone with the host.

Every process writes what its devices hold of the state, each part once and as it is in memory, with a manifest of
checksums. A start goes on from the newest step of which every part is found on some host and matches its checksum, if
that is later than the workdir's latest checkpoint. Processes that lack parts, such as those of a new host, are sent
them by others that hold the same.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import jsonl
from tim_jax.system.user_errors import one_line
from tim_jax.training import checksums, formats, proof
from tim_jax.training.background import BackgroundSaver
from tim_jax.training.cadence import Cadence
from tim_jax.training.parts import Place, Places, assembled, held
from tim_jax.training.settings import CheckpointSettings

PARTS, ABOUT = "parts.bin", "about.json"
CANDIDATES = 4  # latest steps that processes look for


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint that a process has left on this host. about: What it says of itself."""

    folder: pathlib.Path
    step: int
    about: Mapping[str, Any]

    def follows(self, known: int, aside: Collection[int]) -> bool:
        """Whether it has come from a checkpoint that the workdir has or had; see `LocalCheckpoints.restore`."""
        return self.about["base"] <= known or self.about["base"] in aside

    def places(self) -> Places:
        """Returns where its parts are, {} where it does not match its checksums; that is logged."""
        try:
            wrong = checksums.damage(epath.Path(self.folder))
        except OSError as error:
            wrong = f"it cannot be read: {error.strerror or error}"
        if wrong:
            logging.warning("local checkpoint %s not used: %s", self.folder, wrong)
            return {}
        return {
            name: Place(self.folder / PARTS, offset, tuple(shape), jnp.dtype(dtype))
            for name, (offset, shape, dtype) in self.about["parts"].items()
        }


class LocalCheckpoints(BackgroundSaver):
    """The local checkpoints of a run, those of this process. A failure is logged, and training goes on."""

    def __init__(self, folder: pathlib.Path):
        """folder: Of the run, on this host; see `run_folder`."""
        super().__init__("local checkpoint")
        self._folder = folder
        self._own = folder / str(jax.process_index())
        self._base = 0  # step of the workdir's checkpoint that the present state has come from

    def clear(self) -> None:
        """Removes all, once the run has ended, but what another process is writing."""
        self.wait()
        for path in _all(self._folder):
            if path.parent == self._own or path.name.isdecimal():
                shutil.rmtree(path, ignore_errors=True)
        for folder in (*_entries(self._folder), self._folder):
            with contextlib.suppress(OSError):
                folder.rmdir()  # where it is empty

    def save(self, step: int, state: Any, base: int | None, productive_seconds: float) -> None:
        """Copies a state to the host, and writes it in the background.

        All processes save the same steps, none before all have written the last one: that alone stays meanwhile.

        Args:
            step: Of the state.
            state: A tree of arrays on the mesh.
            base: Step of the checkpoint that the workdir has got last in this start, or None.
            productive_seconds: See `Goodput.productive`.
        """
        self.wait()
        began = time.perf_counter()
        self._base = self._base if base is None else base
        for path in _all(self._folder):  # the others are of processes beside this one, or of a start with more of them
            own, name = path.parent == self._own, path.name
            if name != str(self.saved) if own else name.isdecimal() and int(name) < (self.saved or 0):
                shutil.rmtree(path, ignore_errors=True)
        if found := proof.not_finite(state):
            return self._fail(step, proof.NotProven(f"{found} is not finite"))
        parts = held(state)
        about = {"format": formats.FORMAT, "base": self._base, "productive_seconds": productive_seconds}
        self.begin(self._write, step, parts, about, began)

    def _write(self, step: int, parts: Mapping[str, np.ndarray], about: dict[str, Any], began: float) -> None:
        new, offset = self._own / f"{step}.new", 0
        try:
            new.mkdir(parents=True)
            about["parts"] = {}
            with (new / PARTS).open("wb") as file:
                for name, part in parts.items():
                    about["parts"][name] = (offset, part.shape, part.dtype.name)
                    offset += file.write(part.reshape(-1).view(np.uint8).data)
            (new / ABOUT).write_text(json.dumps(about))
            written = time.perf_counter()
            checksums.write(epath.Path(new))
            new.rename(self._own / str(step))
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            self._fail(step, error)
        else:
            self.done(step, began, written)

    def _fail(self, step: int, error: Exception) -> None:
        self.failures.append(f"the local checkpoint of step {step} could not be written: {one_line(error)[:300]}")
        logging.warning("%s; training goes on", self.failures[-1])

    def restore(
        self, abstract: Any, after: int | None, known: int, aside: Collection[int] = ()
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest state of which every part is found; all processes must call this.

        Those that the run does not go on with are removed.

        Args:
            abstract: A tree of jax.ShapeDtypeStruct with shardings.
            after: Step of the workdir's latest good checkpoint, 0 where it has none at all. Only later ones are looked
                for. None: all that it has are damaged; then nothing is removed unless the run goes on from here.
            known: Step of the latest checkpoint that the workdir has, good or damaged. What has come from a later one
                is not used: somebody has removed that one to go back.
            aside: Steps of checkpoints that starts have set aside as damaged. What has come from those is used.

        Returns:
            (state, what is recorded of it), or None where there is none; then the log says what was missing.
        """
        self.wait()
        self.saved, self._base, chosen = None, after or 0, None
        found = [one for one in _found(self._folder) if one.step > self._base and one.follows(known, aside)]
        for step in _newest(one.step for one in found):
            here = [one for one in found if one.step == step]
            state = assembled(abstract, step, {name: place for one in here for name, place in one.places().items()})
            if state is not None:
                chosen = (state, next((dict(one.about) for one in here), {}))
                self.saved = step if (self._own / str(step)).exists() else None
                break
        for path in _all(self._folder) if chosen or after is not None else ():
            if chosen is None or path.name != str(step):
                shutil.rmtree(path, ignore_errors=True)  # of a path that the run does not go on with
        return chosen


def run_folder(local: pathlib.Path, workdir: epath.Path, first_start: bytes) -> pathlib.Path:
    """Returns the folder of a run's local checkpoints, which no other run has.

    Args:
        local: `checkpoint.local`.
        workdir: Of the run, from the root.
        first_start: The line that the workdir has of its first start; a run begun anew in its place has another.
    """
    return local / f"tim_jax-{hashlib.sha256(str(workdir).encode() + first_start).hexdigest()[:16]}"


class Tier:
    """When a run saves locally; nothing where it has no local checkpoints."""

    def __init__(self, local: LocalCheckpoints | None, settings: CheckpointSettings):
        """Args:
        local: Who saves, or None.
        settings: How often.
        """
        self.local, self._due, self._fresh = local, False, False
        every = dataclasses.replace(settings, every=settings.local_every, keep_every=0)
        self._cadence = Cadence(every, local) if local else None

    @property
    def failures(self) -> Sequence[str]:
        """What could not be written, a line each."""
        return self.local.failures if self.local else ()

    @property
    def saved(self) -> int:
        """The latest step that this process has written, or 0."""
        return (self.local.saved if self.local else None) or 0

    def flags(self, step: int) -> tuple[bool, bool]:
        """What all processes must know after a step: whether the first one wishes to save, whether one is at it."""
        if not (self.local and self._cadence):
            return False, False
        return self._cadence.wish(step) and jax.process_index() == 0, self.local.busy

    def due(self, step: int, wished: bool, busy: bool) -> bool:
        """Whether a step is saved. wished, busy: What any process has said."""
        self._due = self._due or wished or (self._cadence is not None and self._cadence.planned(step))
        fresh, self._fresh = self._fresh, False  # with several processes, what was said is of before the last save
        return self._due and not (busy or fresh)

    def save(self, *args: Any) -> None:
        """As `LocalCheckpoints.save`."""
        if self.local and self._cadence:
            with self._cadence.saving():
                self.local.save(*args)
            self._due, self._fresh = False, True

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A context in which no step is made."""
        return self._cadence.paused() if self._cadence else contextlib.nullcontext()

    def metrics(self) -> dict[str, float]:
        """Returns those of `Cadence.metrics` as local_save_seconds and so on."""
        return {f"local_{name}": value for name, value in self._cadence.metrics().items()} if self._cadence else {}

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if self.local:
            self.local.wait()


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _all(folder: pathlib.Path) -> list[pathlib.Path]:
    """What any process has in a run's folder on this host."""
    return [path for writer in _entries(folder) for path in _entries(writer)]


def _found(folder: pathlib.Path) -> list[Found]:
    """The checkpoints there. Nothing but what they say of themselves is read."""
    found = []
    for path in (path for path in _all(folder) if path.name.isdecimal()):
        try:
            about = jsonl.read_object(epath.Path(path / ABOUT))
        except (OSError, ValueError) as error:
            logging.warning("local checkpoint %s not used: %s", path, one_line(error)[:200])
            continue
        if about.get("format") == formats.FORMAT and isinstance(about.get("base"), int):
            found.append(Found(path, int(path.name), about))
    return found


def _newest(steps: Iterable[int]) -> list[int]:
    """The latest steps that any process has, newest first."""
    own = sorted(set(steps), reverse=True)[:CANDIDATES]
    padded = np.array(own + [0] * (CANDIDATES - len(own)), np.int32)
    return sorted({int(step) for step in np.ravel(multihost_utils.process_allgather(padded)) if step}, reverse=True)
