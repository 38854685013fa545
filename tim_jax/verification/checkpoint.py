"""A checkpoint of a training state: written, read back as another start does, trained on; and the bandwidth of both."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from tim_jax.bench.compile import make_trainer
from tim_jax.bench.step import Case
from tim_jax.system import files
from tim_jax.training import checkpoints, sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.training.trainer import Trainer
from tim_jax.verification.setup import MiB, Setup
from tim_jax.verification.verdicts import WRONG, LeftOut, Line, slow_unless, wrong_unless

OF_FILE = 0.2  # share of the speed of one plain file below which checkpoints are slow
FILE = 256 * MiB  # bytes of that file, at most
NEXT = 1e-5  # how far the step after a restart may be off: sums of some devices have no fixed order
FOLDER = "tim_jax_verify"  # made in the folder that was given, and removed


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields lines for writing, reading and the step after the restart."""
    if setup.workdir is None and jax.process_count() > 1:
        yield LeftOut("all", "several processes write one checkpoint: give --workdir, a folder that all of them see")
        return
    with folder_in(setup.workdir) as folder:
        yield from in_folder(folder, setup)


@contextlib.contextmanager
def folder_in(workdir: epath.Path | None) -> Iterator[epath.Path]:
    """A context with a folder of its own, which is removed at its end."""
    if workdir is None:
        with tempfile.TemporaryDirectory() as made:
            yield epath.Path(made)
        return
    folder = files.absolute(workdir) / FOLDER
    try:
        yield folder
    finally:
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree()


def in_folder(folder: epath.Path, setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields the lines, with everything written to a folder."""
    trainer = make_trainer(setup.sizes.saved, jax.devices())
    batch = batch_on(trainer, setup.sizes.saved)
    state, _ = trainer(trainer.create(), batch)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    began = time.perf_counter()
    saver = checkpoints.Saver(checkpoints.open_manager(folder, 1))
    saver.save(1, state, {})
    saver.wait()
    written = time.perf_counter() - began
    saver.close()
    if saver.failures:
        yield Line("writing", saver.failures[0], "", WRONG)
        return
    began = time.perf_counter()
    manager = checkpoints.open_manager(folder, 1, read_only=True)
    again = jax.block_until_ready(checkpoints.restore(manager, trainer.abstract, 1))
    read = time.perf_counter() - began
    manager.close()
    plain = plain_file(folder / f"plain{jax.process_index()}", min(size, FILE))
    for what, seconds, rate in (("writing", written, plain[0]), ("reading", read, plain[1])):
        least = OF_FILE * rate
        measured = f"{size / seconds / 1e6:.4g} MB/s, {size / 1e6:.4g} MB in {seconds:.2g} s"
        limit = f"at least {least / 1e6:.3g}, {OF_FILE:.0%} of a plain file"
        figures = {"bandwidth": size / seconds, "bytes": size, "seconds": seconds, "plain": rate}
        yield Line(what, measured, limit, slow_unless(size / seconds >= least), figures)
    same = distance(trainer, state, again) == 0
    yield Line("state that was read", "every bit" if same else "other numbers", "every bit", wrong_unless(same))
    state, again = (trainer(each, batch)[0] for each in (state, again))
    off = distance(trainer, state, again)
    yield Line("step after the restart", f"{off:.2g} off", f"at most {NEXT:g}", wrong_unless(off <= NEXT), {"off": off})


def batch_on(trainer: Trainer, case: Case) -> dict:
    """Returns a batch of made-up examples on the devices of a trainer, `case.batch` of them for each process."""
    rng = np.random.RandomState(jax.process_index())
    count = max(case.batch, 2 * len(jax.local_devices()))
    x = rng.standard_normal((count, *case.latent)).astype(np.float32)
    return sharding.put_batch(trainer.mesh, {"x": x, "label": np.arange(count, dtype=np.int32) % 10})


def distance(trainer: Trainer, state: Any, other: Any) -> float:
    """Returns the largest distance of two numbers of two states, as a share of the largest number of their array."""

    def of(a, b):
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return jnp.where((a == b).all(), 0.0, jnp.inf)
        size = jnp.maximum(jnp.abs(a).max(), jnp.finfo(a.dtype).tiny)
        return jnp.where((a == b).all(), 0.0, jnp.abs(a - b).max() / size)

    def worst(state, other):
        return jnp.stack(jax.tree.leaves(jax.tree.map(of, state, other))).max()

    with on_mesh(trainer.mesh):
        return float(jax.jit(worst, out_shardings=sharding.replicated(trainer.mesh))(state, other))


def plain_file(file: epath.Path, size: int) -> tuple[float, float]:
    """Returns bytes per second (written, read) of one plain file, which is removed."""
    content = np.random.RandomState(0).bytes(size)
    began = time.perf_counter()
    file.write_bytes(content)
    written = time.perf_counter()
    file.read_bytes()
    read = time.perf_counter()
    file.unlink()
    return size / (written - began), size / (read - written)
