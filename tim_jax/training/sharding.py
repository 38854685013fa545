"""How arrays lie on the mesh: the one table from logical axis names (in the networks) to its axes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from tim_jax.training.nets import apply_alone, in_F
from tim_jax.types import Output

# Examples go over data and fsdp; parameters over fsdp by width and over tensor by heads and hidden width.
RULES = (
    ("batch", ("data", "fsdp")),
    ("tokens", "sequence"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("layers", None),
    ("head", None),
    ("qkv", None),
)

EXAMPLES = ("data", "fsdp")
BATCH = PartitionSpec(EXAMPLES)
# The rules among devices that hold the same examples and tokens.
AMONG_SAME_EXAMPLES = tuple((name, axis if axis == "tensor" else None) for name, axis in RULES)


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """A context in which the logical axis names of networks mean axes of the mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_shards(mesh: Mesh) -> int:
    """Returns over how many devices the examples of a batch lie."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shards_here(mesh: Mesh) -> tuple[int, ...]:
    """Returns which of the `batch_shards` equal parts of a batch lie on devices of this process.

    On a TPU slice they need not be neighbours, and processes that share examples by the other axes have the same.
    """
    parts = mesh.devices.reshape(batch_shards(mesh), -1)
    here = jax.process_index()
    return tuple(i for i, part in enumerate(parts) if any(device.process_index == here for device in part))


def shardings(mesh: Mesh, boxed: Any, shapes: Any) -> Any:
    """Returns the sharding of every parameter.

    Args:
        mesh: The devices.
        boxed: Parameters with axis names, as flax's `init` gives them.
        shapes: The same without the boxes.
    """
    named = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    return jax.tree.map(lambda sharding, leaf: _fitting(sharding, leaf.shape), named, shapes)


def like_parameters(opt_state: Any, params: Any, other: NamedSharding) -> Any:
    """Returns the sharding of every leaf of an optimizer's state: that of the parameter it belongs to, or `other`.

    A leaf belongs to a parameter whose path ends its own.

    Args:
        opt_state: Shapes.
        params: The parameters' shardings.
        other: For leaves that belong to no parameter, and for scalars.
    """
    known = dict(jax.tree_util.tree_leaves_with_path(params))

    def sharding(path, leaf):
        found = (known[path[i:]] for i in range(len(path)) if path[i:] in known)
        return next(found, other) if leaf.ndim else other

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def _fitting(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Returns a sharding in which an axis that its mesh axes do not divide stays whole."""
    mesh = sharding.mesh

    def fits(size: int, axes) -> bool:
        total = 1
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            total *= mesh.shape[axis]
        return size % total == 0

    spec = [axes if fits(size, axes) else None for size, axes in zip(shape, sharding.spec, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*spec))


def of_queues(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of what an objective remembers: queues (classes, length, …) over fsdp by their length."""
    axes = (None, "fsdp") if len(shape) > 1 else ()
    return _fitting(NamedSharding(mesh, PartitionSpec(*axes)), shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict) -> dict:
    """Returns a global batch on the mesh, its examples over data and fsdp.

    What belongs to all examples ("null_…", the null condition) is on every device.

    Args:
        mesh: The devices.
        batch: Arrays by name with the examples of this process's devices, in the order of `shards_here`.
    """
    here, count = shards_here(mesh), batch_shards(mesh)

    def put(name, value):
        where = _of(mesh, name)
        if where.is_fully_replicated:
            return jax.make_array_from_callback(value.shape, where, lambda index: value[index])
        size = len(value) // len(here)

        def part(index):
            first = here.index((index[0].start or 0) // size) * size
            return value[first : first + size]

        return jax.make_array_from_callback((size * count, *value.shape[1:]), where, part)

    return {name: put(name, value) for name, value in batch.items()}


def abstract_batch(mesh: Mesh, spec: dict[str, tuple[tuple[int, ...], Any]]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch as `put_batch` makes it, for compiling.

    Args:
        mesh: The devices.
        spec: (global shape, type) by name.
    """
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=_of(mesh, name)) for name, (shape, dtype) in spec.items()}


def abstract(shapes: Any, shardings: Any) -> Any:
    """Returns shapes and shardings, trees of one structure, as a tree of jax.ShapeDtypeStruct."""

    def leaf(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(leaf, shapes, shardings)


def abstract_on(mesh: Mesh, tree: Any) -> Any:
    """Returns shapes on another mesh of the same axes."""

    def there(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where: Any = leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where.spec))

    return jax.tree.map(there, tree)


def to_hosts(tree: Any) -> Any:
    """Returns arrays on devices, every device's part of them, copied to the memory of its host."""
    return _moved(tree, None, "pinned_host")


def to_devices(tree: Any, mesh: Mesh) -> Any:
    """Returns a copy of arrays on a mesh, each device's part on the device at the same place of this one."""
    return _moved(tree, mesh, "device")


def _moved(tree: Any, mesh: Mesh | None, memory: str) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    before = leaves[0].sharding.mesh
    mesh = mesh or before
    there = dict(zip(before.devices.flat, mesh.devices.flat, strict=True))
    to = [NamedSharding(mesh, leaf.sharding.spec, memory_kind=memory) for leaf in leaves]
    parts = [leaf.addressable_shards for leaf in leaves]
    places = [[SingleDeviceSharding(there[part.device], memory_kind=memory) for part in own] for own in parts]
    copies = jax.device_put([[part.data for part in own] for own in parts], places, may_alias=False)
    made = jax.make_array_from_single_device_arrays
    return jax.tree.unflatten(
        structure, [made(leaf.shape, where, own) for leaf, where, own in zip(leaves, to, copies, strict=True)]
    )


def _of(mesh: Mesh, name: str) -> NamedSharding:
    return replicated(mesh) if name.startswith("null_") else batch_sharding(mesh)


def apply_on_mesh(mesh: Mesh, init: Callable, network: Any, params: Any, queries: Any, **options: Any) -> Any:
    """Applies a network, every device to its own examples and its own tokens of them.

    Nothing but parameters and gradients passes between devices that hold other examples: each layer gathers its
    parameters from `fsdp`, in the type that it computes in, once for all groups of examples in the forward pass and
    once more where the backward pass needs them, and scatters the sum of their gradients back. All other parameters
    are gathered once a step. Devices that hold other tokens of the same examples exchange what attention needs
    (tim_jax/networks/attention/sequence.py), and each has all of F, but of hidden states and taps its own tokens.

    Args:
        mesh: The devices.
        init: Function of a key that returns boxed parameters.
        network: A module with `apply`, `clone`, STACKS and the fields `read`, `tokens`, `dtype` and `to_F`.
        params: Its parameters.
        queries: A tuple of Queries.
        **options: Of `network.apply`.
    """
    tokens = () if mesh.shape["sequence"] == 1 else ("sequence",)
    if batch_shards(mesh) == 1 and not tokens:
        return apply_alone(network, params, queries, **options)
    boxed = jax.eval_shape(lambda: init(jax.random.key(0)))
    placed = shardings(mesh, boxed, params)
    specs = jax.tree.map(lambda sharding: PartitionSpec(*(a if a == "fsdp" else None for a in sharding.spec)), placed)
    # In the scan over layers a block has lost its first axis.
    split = (*EXAMPLES, *tokens)
    stacks = network.STACKS
    block_specs = {name: jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), specs[name]) for name in stacks}

    def apply(params, queries):
        blocks = {name: params[name] for name in stacks}
        others = {name: gather(part, specs[name], split) for name, part in params.items() if name not in stacks}
        read = lambda name, block: gather(block, block_specs[name], split, network.dtype)  # noqa: E731
        local = network.clone(read=read, tokens=tokens[0] if tokens else None)
        with nn.logical_axis_rules(AMONG_SAME_EXAMPLES):
            return local.apply({"params": blocks | others}, queries, **options)

    output: Any = Output
    states = PartitionSpec(EXAMPLES, *tokens)
    out_specs = (output(F=BATCH, hidden=states, heads=BATCH, taps=states),) * len(queries)
    on_mesh = jax.shard_map(apply, in_specs=(specs, BATCH), out_specs=out_specs, axis_names=set(split))
    return in_F(network, queries, on_mesh(params, queries))


def gather(params: Any, specs: Any, split: tuple[str, ...], dtype: Any = None) -> Any:
    """Returns whole parameters from a device's part of them, within `jax.shard_map`.

    Gradients go back the same way: summed over what a device does with a parameter, scattered over `fsdp`, and summed
    over the other axes.

    Args:
        params: The part.
        specs: How the parameters lie over the mesh, a tree of PartitionSpec.
        split: Axes of the `shard_map`.
        dtype: Type in which parameters are gathered; their own by default.
    """

    def whole(part, spec):
        part = jax.lax.pcast(part, tuple(axis for axis in split if axis not in spec), to="varying")
        for axis, name in enumerate(spec):
            if name == "fsdp":
                part = jax.lax.all_gather(part.astype(dtype or part.dtype), "fsdp", axis=axis, tiled=True)
        return part

    return jax.tree.map(whole, params, specs)
