"""The mesh of devices: its axes, how a run's devices are laid out on them, and how large `fsdp` is by default.

Devices in one slice of TPUs, or in one node of GPUs, are joined by fast links, several slices by the data-centre
network. Of a mesh over several slices the data axis alone crosses that network, once a step, with gradients.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# In this order: within the shard_map over the other axes attention has one over `tensor`, and XLA of JAX 0.12 ends the
# process where the axes of nested ones do not rise.
AXES = ("data", "fsdp", "sequence", "tensor")

AUTO = 0  # of mesh.fsdp: chosen
# A network of fewer parameters stays whole on every device: with its optimizer and EMA it takes less than 1 GB, and
# summing its gradients costs less than gathering its parameters twice.
WHOLE = 50_000_000
# Numbers of the width that a device has at least: a row of a TPU's registers. Compilers pad narrower pieces to it, and
# send the padding.
PIECE = 128


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Returns a mesh. The compiler places what the rules of `sharding` leave open (automatic axes).

    Args:
        sizes: Of each axis in AXES; one may be −1 for the rest, and `fsdp` AUTO.
        devices: All by default.
        fsdp: The size of that axis where it is AUTO and `data` is −1. Beside a `data` of its own it is the rest.

    Raises:
        ValueError: If the sizes do not multiply up to the number of devices, or do not fit its slices.
    """
    devices = jax.devices() if devices is None else devices
    named = f"{', '.join(f'mesh.{axis}' for axis in AXES)} are {', '.join(str(sizes[axis]) for axis in AXES)}"
    if sizes["fsdp"] == AUTO:
        sizes = {**sizes, "fsdp": fsdp if sizes["data"] == -1 else -1}
    shape = [sizes[axis] for axis in AXES]
    if sum(size == -1 for size in shape) > 1 or any(size == 0 or size < -1 for size in shape):
        raise ValueError(f"{named}; they must be at least 1, mesh.fsdp 0 to be chosen, and at most one -1 for the rest")
    known = 1
    for size in shape:
        known *= size if size > 0 else 1
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
        known = len(devices)
    if known != len(devices):
        raise ValueError(f"{named}; they must multiply to the number of devices, {len(devices)}")
    # Neighbours in the mesh are neighbours in a TPU slice; an axis may take a part of one of its rings.
    slices = slices_of(devices)
    if slices > 1 and shape[0] % slices == 0:
        inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
        placed = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    elif slices > 1 and devices[0].platform == "tpu":
        raise ValueError(
            f"mesh.data is {shape[0]}; it must be a multiple of the number of slices, {slices}, which it alone joins"
        )
    else:
        placed = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices_of(devices: Sequence[jax.Device]) -> int:
    """Returns how many slices of TPUs, or nodes of GPUs, the devices are; 1 where these are not equally large."""
    found = Counter(getattr(device, "slice_index", 0) for device in devices)
    return len(found) if len(set(found.values())) == 1 else 1


def choose_fsdp(
    sizes: Mapping[str, int], devices: Sequence[jax.Device], width: int, parameters: Callable[[], int]
) -> int:
    """Returns the size of `fsdp` that suits a network.

    It is the largest number of devices of one slice that divides the width into pieces of at least PIECE, and 1 for a
    network of fewer than WHOLE parameters.

    Args:
        sizes: Of the other axes, as for `make_mesh`.
        devices: Of the mesh.
        width: Of the network.
        parameters: Counts those of the network.
    """
    together = len(devices) // slices_of(devices) // max(1, sizes["tensor"] * sizes["sequence"])
    sizes_that_fit = [n for n in range(2, width // PIECE + 1) if together % n == 0 and width % n == 0]
    return max(sizes_that_fit) if sizes_that_fit and parameters() >= WHOLE else 1


def mesh_text(mesh: Mesh) -> str:
    """Returns the axes of a mesh that have more than one device, as text."""
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    return " × ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
