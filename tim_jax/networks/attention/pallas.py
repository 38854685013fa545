"""Attention as fused kernels: `tpu` for TPUs, `hopper` for NVIDIA GPUs of that kind; elsewhere it is `blockwise`.

Compilers cannot split a kernel over devices, so under a mesh every device runs it on its own examples and heads.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from tim_jax.networks.attention import blockwise, hopper, rules, tpu


def attention_by(kernels: Any) -> Callable:
    """Returns `attention` by `tpu.Kernels` or `hopper.Kernels`, wherever it is called."""
    return rules.differentiable(*map(_by_device, (kernels.forward, kernels.forward_and_tangent, kernels.backward)))


def has_kernels(device: jax.Device, width: int, dtype: Any) -> bool:
    """Returns whether there are kernels for heads of this width and type on a device; else `blockwise` takes over.

    On TPUs there are kernels for any width, in float32 and bfloat16; on NVIDIA GPUs of compute capability 9.0 up to
    `hopper.MAX_WIDTH`, in bfloat16.
    """
    if device.platform == "tpu":
        return True
    return _is_hopper(device) and _hopper_takes(width, dtype)


def _hopper_takes(width: int, dtype: Any) -> bool:
    return width <= hopper.MAX_WIDTH and dtype == jnp.bfloat16


def _is_hopper(device: jax.Device) -> bool:
    return device.platform == "gpu" and str(getattr(device, "compute_capability", "")) == "9.0"


def _where_it_runs(name: str) -> Callable:
    """Returns a pass by the kernels for the platform that the program is compiled for, else by `blockwise`.

    That need not be the platform of the process that traces it: the planner compiles for devices that are not there.
    """
    otherwise: Callable = getattr(blockwise, name)

    def each(q, *arrays):
        if q.dtype == jnp.float64:
            return otherwise(q, *arrays)
        kernels, here = {"tpu": getattr(tpu.Kernels(), name)}, jax.local_devices()[0]
        if _hopper_takes(q.shape[3], q.dtype) and (here.platform != "gpu" or _is_hopper(here)):
            kernels["cuda"] = getattr(hopper.Kernels(), name)
        return jax.lax.platform_dependent(q, *arrays, **kernels, default=otherwise)

    return _by_device(each)


def _by_device(run: Callable) -> Callable:
    """Returns `run`, a function of (B, H, ...) arrays and a mask (B, M) or None, for each device's examples and heads.

    To JAX's transformations it is one operation: a mapped axis becomes more examples, and `jax.checkpoint` saves or
    repeats the whole. (What it saves from within a `jax.shard_map` inside another one, JAX 0.10 cannot lower.)
    """

    @jax.custom_batching.custom_vmap
    def each(*arrays):
        mesh = jax.sharding.get_abstract_mesh()
        free = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual]
        if mesh.size == 1 or not free:
            return run(*arrays)
        named = zip(nn.logical_to_mesh_axes(("batch", "heads")), arrays[0].shape, strict=False)
        split = [_fitting(axes, size, {axis: mesh.shape[axis] for axis in free}) for axes, size in named]
        specs = jax.tree.map(lambda x: PartitionSpec(*(split if x.ndim > 2 else split[:1])), arrays)
        return jax.shard_map(run, in_specs=specs, out_specs=PartitionSpec(*split), axis_names=set(free))(*arrays)

    @each.def_vmap
    def mapped(size, is_batched, *arrays):
        def flattened(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        outs = each(*jax.tree.map(flattened, arrays, tuple(is_batched)))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), outs), jax.tree.map(lambda _: True, outs)

    return each


def _fitting(axes, size: int, free: dict[str, int]) -> tuple[str, ...] | None:
    """Returns those of the axes that are free, if they divide the size."""
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if axis in free)
    return axes if size % math.prod(free[axis] for axis in axes) == 0 else None


attention = rules.differentiable(*map(_where_it_runs, ("forward", "forward_and_tangent", "backward")))
