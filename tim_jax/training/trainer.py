"""The compiled programs of a run on a mesh: its first state and its step, one for each shape of batch."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from tim_jax.system import flops
from tim_jax.system.progress import Activity
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.training.state import TrainState, first_state, heads_key, init_key
from tim_jax.training.step import StepSettings, train_step
from tim_jax.types import averages

Batch = Mapping[str, jax.Array]
AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]


class FrozenNetwork(Protocol):
    """A network that the objective calls and that nothing changes, such as a teacher.

    Attributes:
        net: Function of parameters that returns the network on a tuple of Queries.
        width: That of its hidden states.
        abstract: Shapes, types and shardings of the parameters.
        params: The parameters, which are read when they are first used.
    """

    @property
    def net(self) -> Callable: ...

    @property
    def width(self) -> int: ...

    @property
    def abstract(self) -> Any: ...

    @property
    def params(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The first state and the step of a run as compiled programs.

    The seed is an argument of every program, so that runs which differ in nothing else share them.

    Attributes:
        mesh: The devices.
        init: Function of a key that returns boxed parameters of the online network.
        step: What the step is made of.
        step_without_remat: The same without rematerialisation, whose operations count as the model's; `step` itself
            where nothing is rematerialised.
        seed: Seed of the first parameters and of everything that a step draws, below 2³².
        frozen: Frozen networks, by the names that the objective knows them by.
        heads: For auxiliary networks that are heads, functions of key and widths of other networks by name that return
            boxed parameters.
        width: That of the online network's hidden states.
    """

    mesh: Mesh
    init: Callable[[jax.Array], Any]
    step: StepSettings
    step_without_remat: StepSettings
    seed: int = 0
    frozen: Mapping[str, FrozenNetwork] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, Callable[[jax.Array, Mapping[str, int]], Any]] = dataclasses.field(default_factory=dict)
    width: int = 0

    def with_frozen(self, frozen: Mapping[str, FrozenNetwork]) -> "Trainer":
        """Returns a trainer whose objective has these frozen networks."""
        nets = {name: network.net for name, network in frozen.items()}
        step = dataclasses.replace(self.step, nets={**self.step.nets, **nets})
        without_remat = step
        if self.step_without_remat is not self.step:
            without_remat = dataclasses.replace(self.step_without_remat, nets={**self.step_without_remat.nets, **nets})
        return dataclasses.replace(self, step=step, step_without_remat=without_remat, frozen=frozen)

    @functools.cached_property
    def elsewhere(self) -> "Trainer | None":
        """The same steps with each device's work on the next device of its process.

        None where it has one device, where others are needed for what a device computes of its own examples, or where
        there are frozen networks, which lie on the devices that they lie on.
        """
        devices = self.mesh.devices.ravel().tolist()
        here: dict[int, list[int]] = {}
        for place, device in enumerate(devices):
            here.setdefault(device.process_index, []).append(place)
        next_place = {a: b for places in here.values() for a, b in zip(places, places[1:] + places[:1], strict=True)}
        moved = np.array([devices[next_place[place]] for place in range(len(devices))]).reshape(self.mesh.devices.shape)
        alone = sharding.batch_shards(self.mesh) == self.mesh.size
        if self.frozen or not alone or (moved == self.mesh.devices).all():
            return None
        return dataclasses.replace(self, mesh=Mesh(moved, self.mesh.axis_names, axis_types=self.mesh.axis_types))

    @functools.cached_property
    def frozen_params(self) -> dict[str, Any]:
        """The parameters of the frozen networks by name. They are read here, once, and no step donates them."""
        return {name: network.params for name, network in self.frozen.items()}

    @functools.cached_property
    def abstract_frozen(self) -> dict[str, Any]:
        """Shapes, types and shardings of `frozen_params`; nothing is read."""
        return {name: network.abstract for name, network in self.frozen.items()}

    @functools.cached_property
    def abstract_seed(self) -> jax.ShapeDtypeStruct:
        """Shape, type and sharding of the seed as programs take it."""
        return jax.ShapeDtypeStruct((), np.uint32, sharding=sharding.replicated(self.mesh))

    @functools.cached_property
    def seed_array(self) -> jax.Array:
        """The seed as programs take it, on every device."""
        value = np.array(self.seed, np.uint32)
        return jax.make_array_from_callback((), self.abstract_seed.sharding, lambda _: value)

    @functools.cached_property
    def abstract_online(self) -> Any:
        """Shapes, types and shardings of the online network's parameters, for which no frozen network is needed."""
        boxed = jax.eval_shape(self.init, jax.random.key(0))
        shapes = jax.eval_shape(lambda key: nn.unbox(self.init(key)), jax.random.key(0))
        return sharding.abstract(shapes, sharding.shardings(self.mesh, boxed, shapes))

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        shapes = jax.eval_shape(self._first_state, self.abstract_seed)
        network = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_online)
        boxed = jax.eval_shape(self._first_heads, self.abstract_seed)
        heads = {name: sharding.shardings(self.mesh, tree, shapes.params[name]) for name, tree in boxed.items()}
        params = {name: heads.get(name, network) for name in shapes.params}
        everywhere = sharding.replicated(self.mesh)
        opt_state = sharding.like_parameters(shapes.opt_state, params, everywhere)
        emas = dict.fromkeys(shapes.emas, network)
        emas |= {name: params[part] for name, (part, _) in averages(self.step.auxiliary).items()}
        memory = {name: sharding.of_queues(self.mesh, array.shape) for name, array in shapes.memory.items()}
        return sharding.abstract(shapes, TrainState(everywhere, params, emas, opt_state, memory))

    @functools.cached_property
    def shardings(self) -> TrainState:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def _first_state(self, seed: jax.Array) -> TrainState:
        return self.state_with(nn.unbox(self.init(init_key(seed))), seed)

    def state_with(self, online: Any, seed: jax.Array) -> TrainState:
        """Returns the first state with these parameters of the online network, and heads that a seed gives."""
        step, heads = self.step, nn.unbox(self._first_heads(seed))
        return first_state(online, step.tx, step.emas, step.auxiliary, step.memory, heads)

    @property
    def of_heads(self) -> tuple[str, ...]:
        """The names of heads and of their EMAs."""
        return *self.heads, *(ema for ema, (part, _) in averages(self.step.auxiliary).items() if part in self.heads)

    def _first_heads(self, seed: jax.Array) -> dict[str, Any]:
        """Boxed parameters of the heads."""
        names = {*self.step.auxiliary, "online"}
        widths = {name: network.width for name, network in self.frozen.items()} | dict.fromkeys(names, self.width)
        keys = jax.random.split(heads_key(seed), max(len(self.heads), 1))
        return {name: init(key, widths) for key, (name, init) in zip(keys, self.heads.items(), strict=False)}

    def create(self) -> TrainState:
        """Returns the first state, made in place on the mesh."""
        with on_mesh(self.mesh):
            return jax.jit(self._first_state, out_shardings=self.shardings)(self.seed_array)

    @functools.cached_property
    def jitted(self):
        """The step as a function of (state, batch, seed, parameters of frozen networks); it donates the state."""
        frozen = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_frozen)
        everywhere = sharding.replicated(self.mesh)
        return jax.jit(
            functools.partial(train_step, self.step),
            in_shardings=(self.shardings, None, self.abstract_seed.sharding, frozen),
            out_shardings=(self.shardings, everywhere, everywhere),
            donate_argnums=0,
        )

    @functools.cached_property
    def _compiled(self) -> dict[tuple, jax.stages.Compiled]:
        return {}

    @functools.cached_property
    def _flops(self) -> dict[tuple, int]:
        return {}

    def flops(self, batch: Batch) -> int:
        """Returns the model's operations in the step of a batch that has been compiled for, over all devices."""
        return self._flops[_shapes(batch)]

    def trace(self, batch: AbstractBatch) -> jax.stages.Traced:
        """Returns the step of a batch of these shapes as a jaxpr, to be lowered and compiled."""
        jitted = self.jitted  # made outside of the mesh: devices that are not there run nothing
        with on_mesh(self.mesh):
            return jitted.trace(self.abstract, batch, self.abstract_seed, self.abstract_frozen)

    def model_flops(self, batch: AbstractBatch, traced: jax.stages.Traced) -> int:
        """Returns the operations of the step if nothing was recomputed, over all devices.

        Args:
            batch: The shapes.
            traced: The step of that batch.
        """
        if self.step_without_remat is self.step:
            return flops.count(traced.jaxpr)
        return flops.count(dataclasses.replace(self, step=self.step_without_remat).trace(batch).jaxpr)

    def compile(self, batches: Sequence[AbstractBatch]) -> None:
        """Compiles the step for global batches of these shapes, as many at a time as there are processors."""
        missing = {_shapes(batch): batch for batch in batches if _shapes(batch) not in self._compiled}
        if not missing:
            return
        titles = {shapes: f"compiling the step for {describe(batch)}" for shapes, batch in missing.items()}
        with (
            Activity(next(iter(titles.values())), len(missing), disable=jax.process_index() > 0) as activity,
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            waiting = {}
            for shapes, batch in missing.items():
                traced = self.trace(batch)
                waiting[pool.submit(traced.lower().compile)] = shapes
                self._flops[shapes] = self.model_flops(batch, traced)
            for done in concurrent.futures.as_completed(waiting):
                self._compiled[waiting[done]] = done.result()
                del titles[waiting[done]]
                if titles:
                    activity.next(next(iter(titles.values())))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one step. Returns the next state and the metrics; the state that was given is spent."""
        return self.detailed(state, batch)[:2]

    def detailed(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict, dict]:
        """Returns all that `train_step` does, from the program compiled for the shapes of this batch."""
        if _shapes(batch) not in self._compiled:
            self.compile([jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)])
        return self._compiled[_shapes(batch)](state, batch, self.seed_array, self.frozen_params)


def describe(batch: AbstractBatch) -> str:
    """Returns what tells a batch from others: "32x32, batch 128"."""
    count, height, width = batch["x"].shape[:3]
    return f"{height}x{width}, batch {count}"


def _shapes(batch: Mapping[str, Any]) -> tuple:
    return tuple((name, value.shape, np.dtype(value.dtype)) for name, value in sorted(batch.items()))
