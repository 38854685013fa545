"""The cost of attention by number of tokens: of its output, of output and tangent, and with the gradient of the output.

Memory is that of the compiled program, which is made for every number of tokens; time is measured up to --run-to
tokens. With --target nothing runs: programs are compiled for a device of a topology that need not be there, as in the
planner. Compiled is how long tracing and compiling took.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tim_jax.bench.step import check_names, read_numbers
from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.networks.attention.pallas import has_kernels
from tim_jax.system import devices, timing, topologies
from tim_jax.system.progress import Bar
from tim_jax.types import DTYPES

COLUMNS = (
    ("implementation", "{implementation}"),
    ("mode", "{mode}"),
    ("tokens", "{tokens}"),
    ("compiled", "{compile_seconds:.1f} s"),
    ("seconds", "{time}"),
    ("temporary bytes", "{temporary_bytes:,}"),
)
TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384)


def forward(attention: Callable, qkv: tuple, dots: tuple) -> Any:
    """Computes the output, as sampling does."""
    return attention(*qkv)


def jvp(attention: Callable, qkv: tuple, dots: tuple) -> Any:
    """Computes (output, tangent)."""
    return jax.jvp(lambda *qkv: attention(*qkv, in_jvp=True), qkv, dots)


def jvp_grad(attention: Callable, qkv: tuple, dots: tuple) -> Any:
    """Computes (tangent, gradients) of a loss in which the tangent is a constant, as it is in the objective."""

    def loss(qkv):
        o, o_dot = jvp(attention, qkv, dots)
        o_dot = jax.lax.stop_gradient(o_dot)
        return jnp.sum(jnp.square(o - o_dot), dtype=jnp.float32), o_dot

    gradients, o_dot = jax.grad(loss, has_aux=True)(qkv)
    return o_dot, gradients


MODES = {"forward": forward, "jvp": jvp, "jvp_grad": jvp_grad}


def compile_mode(
    implementation: str,
    mode: str,
    shape: tuple[int, int, int, int],
    dtype: Any,
    device: jax.Device | None = None,
    keys: int | None = None,
    masked: bool = False,
) -> jax.stages.Compiled:
    """Compiles a mode.

    Args:
        implementation: a name in ATTENTION.
        mode: a name in MODES.
        shape: (B, N, H, K) of q, k, v and their tangents.
        dtype: their type.
        device: what the program is for, which need not be there; by default the first device.
        keys: the number of keys, where it is not N: cross-attention.
        masked: whether a mask says which keys may be attended to.
    """
    mesh = Mesh(np.array([device or jax.devices()[0]]), ("one",))
    on_device = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec()))  # noqa: E731
    inputs = jax.tree.map(on_device, _inputs(shape, dtype, keys, masked))

    def program(qkv, dots, mask):
        return MODES[mode](lambda *qkv, **how: ATTENTION[implementation](*qkv, mask, **how), qkv, dots)

    with jax.set_mesh(mesh):
        return jax.jit(program).lower(*inputs).compile()


def caller(
    compiled: jax.stages.Compiled,
    shape: tuple[int, int, int, int],
    dtype: Any,
    keys: int | None = None,
    masked: bool = False,
) -> Callable[[], Any]:
    """Returns a function that runs a program on random numbers; a mask is of two thirds of the keys."""
    qkv, dots, mask = _inputs(shape, dtype, keys, masked)
    random = iter(jax.random.split(jax.random.key(0), 6))
    qkv, dots = jax.tree.map(lambda x: jax.random.normal(next(random), x.shape, x.dtype), (qkv, dots))
    if mask is not None:
        mask = jnp.broadcast_to(3 * jnp.arange(mask.shape[1]) < 2 * mask.shape[1], mask.shape)
    return lambda: compiled(qkv, dots, mask)


def _inputs(shape, dtype, keys, masked) -> tuple:
    """Returns abstract (q, k, v), their tangents, and a mask or None."""
    B, N, H, K = shape
    q, k = (jax.ShapeDtypeStruct((B, length, H, K), dtype) for length in (N, keys or N))
    return (q, k, k), (q, k, k), jax.ShapeDtypeStruct(k.shape[:2], bool) if masked else None


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row per implementation, mode and number of tokens. Raises ValueError for wrong arguments."""
    check_names("modes", args.modes, MODES)
    if args.implementations is not None:
        check_names("implementations", args.implementations, ATTENTION)
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype is {args.dtype!r}; it must be one of {', '.join(DTYPES)}")
    for name in ("batch", "heads", "head_width", "keys", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    cases = [(mode, tokens) for tokens in read_numbers("tokens", args.tokens) for mode in args.modes.split(",")]
    device = target(args.target) if args.target else jax.devices()[0]
    kernels = has_kernels(device, args.head_width, DTYPES[args.dtype])
    if args.implementations is None:
        args.implementations = ",".join(name for name in ATTENTION if kernels or name != "pallas")
        if not kernels:
            logging.warning(
                "pallas is left out: it has no kernels for %s with heads of width %d in %s",
                device.device_kind, args.head_width, args.dtype,
            )  # fmt: skip
    elif "pallas" in args.implementations.split(",") and not kernels:
        raise ValueError(
            f"--implementations is {args.implementations}; it must be without pallas, which has no kernels for "
            f"{device.device_kind} with heads of width {args.head_width} in {args.dtype}"
        )
    if not args.target:
        devices.announce(sys.stderr)
    return [row for mode, number in Bar(cases, unit="case") for row in measure_case(args, mode, number, device)]


def target(name: str) -> jax.Device:
    """Returns a device of a topology, for its compiler."""
    topologies.host_devices([name])
    return topologies.topology(name).devices[0]


def measure_case(args: argparse.Namespace, mode: str, tokens: int, device: jax.Device) -> list[dict[str, Any]]:
    """Measures a row per implementation; they are timed in turn, and times are None above --run-to tokens."""
    shape, dtype = (args.batch, tokens, args.heads, args.head_width), DTYPES[args.dtype]
    names = args.implementations.split(",")
    compiled, seconds = {}, {}
    for name in names:
        began = time.monotonic()
        compiled[name] = compile_mode(name, mode, shape, dtype, device, args.keys, args.masked)
        seconds[name] = time.monotonic() - began
    timings = {}
    if tokens <= args.run_to and not args.target:
        calls = {name: caller(compiled[name], shape, dtype, args.keys, args.masked) for name in names}
        timings = timing.interleaved(calls, args.repeats)

    def row(name):
        timed = timings.get(name)
        return {
            "implementation": name,
            "mode": mode,
            "tokens": tokens,
            "compile_seconds": seconds[name],
            "seconds": timed and timed.seconds,
            "spread": timed and timed.spread,
            "time": f"{timed.seconds:.4g} ± {timed.spread:.2g}" if timed else "not run",
            "temporary_bytes": timing.temporary_bytes(compiled[name]),
        }

    return [row(name) for name in names]
