"""Flips single bits on one of several devices while a tiny network trains, and counts which flips are found.

Every flip is a trial of its own, at a random step of the ten between two comparisons of replicas (the default of
training.compare_every), on a random device, in a random bit of a random number. What counts is whether a device's state
after that step is another than that of the undisturbed run; whether its weights are after any step until one tells, so
that an update was another; whether a check has told within ten steps, and named that device alone; and, where none has,
whether the state is that of the undisturbed run again, so that nothing is left.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from etils import epath

from tim_jax.bench.faults import TINY
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.run import Run
from tim_jax.system.progress import Bar
from tim_jax.system.user_errors import few
from tim_jax.training import sharding
from tim_jax.training.array_checksums import checksums, odd_against, odd_copies
from tim_jax.training.corruption import LISTED, Corrupted, Guard
from tim_jax.training.sharding import to_devices, to_hosts
from tim_jax.training.state import TrainState
from tim_jax.training.trainer import Trainer

COLUMNS = (
    ("bits flipped in", "{where}"),
    ("flips", "{flips}"),
    ("changed a step", "{changed}"),
    ("changed weights", "{weights}"),
    ("of these found", "{caught}"),
    ("found within 10 steps", "{found}"),
    ("device named", "{named}"),
    ("gone without a trace", "{gone}"),
    ("missed", "{missed}"),
)
WINDOW = 10  # steps
SETTINGS = {"training.compare_every": str(WINDOW), "training.recompute_every": "0"}
NOWHERE = np.uint32(2**32 - 1)  # no device has this number
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def flipped(array: jax.Array, part: int, element: int, bit: int) -> jax.Array:
    """Returns an array with a bit flipped in the copy of one device of this process.

    Args:
        array: On any mesh.
        part: Number of the device among `addressable_shards`.
        element: Number of the element in its part.
        bit: Of the element, modulo its size.
    """
    parts = [shard.data for shard in array.addressable_shards]
    values = np.array(parts[part])
    words = values.reshape(-1).view(BITS[values.itemsize])
    words[element % words.size] ^= words.dtype.type(1 << bit % (8 * values.itemsize))
    parts[part] = jax.device_put(values, array.addressable_shards[part].device)
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def flipped_in(tree: Any, part: int, rng: random.Random) -> Any:
    """Returns a tree of arrays with a random bit flipped in the copy of one device."""
    leaves, structure = jax.tree.flatten(tree)
    sizes = [max(leaf.addressable_shards[part].data.size, 1) for leaf in leaves]
    (chosen,) = rng.choices(range(len(leaves)), sizes)
    leaves[chosen] = flipped(leaves[chosen], part, rng.randrange(sizes[chosen]), rng.randrange(32))
    return jax.tree.unflatten(structure, leaves)


def gradient_flips(axes: tuple[str, ...], specs: Any) -> optax.GradientTransformation:
    """Returns a transformation that flips a bit of the gradient, after its sum over devices, on one device of the mesh.

    Its state says where, uint32 (4,): number of the device in the mesh, NOWHERE for none, of the array, of the element
    in the device's part, and the bits to flip. It is NOWHERE after each update: what is computed of the element that is
    named may be rounded otherwise, as it was on a CPU, although no bit of it is flipped.
    """

    def flip(gradients: Any, fault: jax.Array) -> Any:
        device = jax.lax.axis_index(axes).astype(jnp.uint32)
        leaves, structure = jax.tree.flatten(gradients)
        for number, leaf in enumerate(leaves):
            words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
            here = (device == fault[0]) & (fault[1] == number) & (jnp.arange(words.size, dtype=jnp.uint32) == fault[2])
            words ^= jnp.where(here, fault[3], np.uint32(0))
            leaves[number] = jax.lax.bitcast_convert_type(words.reshape(leaf.shape), leaf.dtype)
        return jax.tree.unflatten(structure, leaves)

    everywhere = jax.sharding.PartitionSpec()
    on_mesh = jax.shard_map(flip, in_specs=(specs, everywhere), out_specs=specs, check_vma=False)

    def update(gradients: Any, fault: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        return on_mesh(gradients, fault), jnp.full_like(fault, NOWHERE)

    return optax.GradientTransformation(lambda params: jnp.full(4, NOWHERE, jnp.uint32), update)


class WrongOnce:
    """A trainer that computes wrongly, once: from another batch than the one that it is given."""

    def __init__(self, trainer: Trainer, wrong: Any):
        """Args:
        trainer: Makes the steps.
        wrong: The batch of the first of them.
        """
        self.mesh, self._trainer, self._wrong = trainer.mesh, trainer, [wrong]

    def detailed(self, state: Any, batch: Any) -> tuple[Any, dict, dict]:
        """Makes a step."""
        return self._trainer.detailed(state, self._wrong.pop() if self._wrong else batch)


class Broken:
    """A trainer with a device that always computes wrongly: from other data than were sent to it."""

    def __init__(self, trainer: Trainer, device: jax.Device, spoil: Callable[[Any, int], Any]):
        """Args:
        trainer: Makes the steps.
        device: Which is wrong.
        spoil: Function (batch, number of the device among its shards) → what the device takes for the batch.
        """
        self.mesh, self._trainer, self._device, self._spoil = trainer.mesh, trainer, device, spoil

    def detailed(self, state: Any, batch: Any) -> tuple[Any, dict, dict]:
        """Makes a step."""
        part = [shard.device for shard in batch["x"].addressable_shards].index(self._device)
        return self._trainer.detailed(state, self._spoil(batch, part))


class Laboratory:
    """A tiny network that has been trained for WINDOW steps undisturbed.

    Attributes:
        run: The run.
        trainer: Its trainer, whose optimizer can flip a bit of a gradient.
        batch: The batch of every step.
        before: The state before each step, on the host.
        tables: The checksums of each device's copies after each step.
    """

    def __init__(self, folder: pathlib.Path, devices: list[jax.Device]):
        self.run: Run = build(load_config("digits", TINY | SETTINGS), devices)
        plain, self._folder = self.run.trainer, epath.Path(folder)
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, plain.abstract.params)
        tx = optax.chain(gradient_flips(plain.mesh.axis_names, specs), plain.step.tx)
        self.trainer = dataclasses.replace(plain, step=dataclasses.replace(plain.step, tx=tx))
        self.batch = sharding.put_batch(plain.mesh, made_up_batch(self.run.config, self.run.data.batch_size))
        self._sent = checksums(self.batch)
        self.before: list[Any] = []
        self.tables: list[np.ndarray] = []
        state = self.trainer.create()
        for step in range(1, WINDOW + 1):
            self.before.append(to_hosts(state))
            state = self.trainer.detailed(state, self.batch)[0]
            sums = checksums(state)
            if bool(sums.differ):  # every trial would be taken for found
                arrays = few(sums.names(odd_copies(sums).arrays), LISTED)
                raise RuntimeError(f"step {step} of the undisturbed run has other bits on some devices, in {arrays}")
            self.tables.append(sums.gathered())

    def trial(self, where: str, rng: random.Random) -> dict[str, bool]:
        """Makes one flip. Returns whether it changed a step and weights, was found, its device named, and is gone."""
        step, part = rng.randint(1, WINDOW), rng.randrange(self.run.mesh.size)
        state = self._state(step)
        device = state.step.addressable_shards[part].device
        batch, settings = self.batch, self.run.training
        trainer: Any = self.trainer
        elsewhere: Any = None
        changed = weights = gone = False
        if where == "gradient":
            state = state.replace(opt_state=(self._fault(device, rng), *state.opt_state[1:]))
        elif where == "data":
            batch = flipped_in(batch, part, rng)
        elif where == "computation":
            wrong = flipped_in(batch, part, rng)
            changed, weights = self._changed(trainer.detailed(state, wrong)[0], step)
            state, trainer = self._state(step), WrongOnce(trainer, wrong)
            settings = dataclasses.replace(settings, recompute_every=step)
        elif where == "broken":
            seed = str(rng.random())

            def spoil(batch: Any, part: int) -> Any:
                return flipped_in(batch, part, random.Random(seed))

            trainer, elsewhere = (Broken(maker, device, spoil) for maker in (trainer, trainer.elsewhere))
            changed, weights = self._changed(trainer.detailed(state, batch)[0], step)
            state = self._state(step)
            settings = dataclasses.replace(settings, recompute_every=step)
        else:
            state = state.replace(**{where: flipped_in(getattr(state, where), part, rng)})
        (self._folder / "corruption.jsonl").unlink(missing_ok=True)
        guard = Guard(self._folder, trainer, settings, 0, elsewhere)
        with contextlib.suppress(Corrupted):
            for number in range(step, WINDOW + 1):
                state = guard.step(number, state, batch)[0]
                whole, of_weights = self._changed(state, number)
                changed, weights = changed or number == step and whole, weights or of_weights
                guard.check(number, state, batch, self._sent)
                batch = self.batch
            guard.settle()
            gone = not whole
        told = self._told()
        found = bool(told)
        named = told == [str(device)]
        return {
            "changed": changed, "weights": weights, "caught": weights and found, "found": found, "named": named,
            "gone": gone and not found,
        }  # fmt: skip

    def _state(self, step: int) -> TrainState:
        """The undisturbed state before a step."""
        state: TrainState = to_devices(self.before[step - 1], self.run.mesh)
        return state

    def _changed(self, state: TrainState, step: int) -> tuple[bool, bool]:
        """Whether any device's state, and its weights, are others after a step than those of the undisturbed run."""
        sums = checksums(state)
        odd = odd_against(sums.gathered(), self.tables[step - 1])
        return bool(odd.arrays), any(name.startswith("params/") for name in sums.names(odd.arrays))

    def _fault(self, device: jax.Device, rng: random.Random) -> jax.Array:
        leaves = jax.tree.leaves(self.trainer.abstract.params)
        sizes = [int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves]
        (chosen,) = rng.choices(range(len(leaves)), sizes)
        position = self.run.mesh.devices.ravel().tolist().index(device)
        fault = np.array([position, chosen, rng.randrange(sizes[chosen]), 1 << rng.randrange(32)], np.uint32)
        return jax.device_put(fault, sharding.replicated(self.run.mesh))

    def _told(self) -> list[str]:
        path = self._folder / "corruption.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [each["device"] for line in lines[:1] for each in json.loads(line)["devices"]]


KINDS = {
    "params": "parameters",
    "emas": "EMAs",
    "opt_state": "the optimizer's state",
    "gradient": "gradients, after their sum",
    "data": "data",
    "computation": "a step made twice, computed wrongly once",
    "broken": "a step made elsewhere, of a device that is always wrong",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context warnings are not shown."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one row for each place where bits are flipped. Raises ValueError for wrong arguments."""
    if args.flips < 1:
        raise ValueError(f"--flips is {args.flips}; it must be at least 1")
    kinds = args.where.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--where has {kind!r}; each of them must be one of {', '.join(KINDS)}")
    if jax.device_count() < 3:
        raise ValueError(
            f"XLA_FLAGS is {os.environ.get('XLA_FLAGS', '')!r}; it must give at least 3 devices, such as "
            "--xla_force_host_platform_device_count=8"
        )
    rows: list[dict[str, Any]] = []
    with (
        quiet(),  # what is found is counted
        tempfile.TemporaryDirectory() as folder,
        Bar(total=args.flips * len(kinds), unit="flip") as bar,
    ):
        laboratory = Laboratory(pathlib.Path(folder), jax.devices())
        for where in kinds:
            rng = random.Random(f"{where} {args.seed}")
            counts = dict.fromkeys(("changed", "weights", "caught", "found", "named", "gone"), 0)
            for _ in range(args.flips):
                seen = laboratory.trial(where, rng)
                for name in counts:
                    counts[name] += seen[name] and seen["changed"]
                bar.update()
            missed = counts["changed"] - counts["found"] - counts["gone"]
            rows.append({"where": KINDS[where], "flips": args.flips, **counts, "missed": missed})
    return rows
