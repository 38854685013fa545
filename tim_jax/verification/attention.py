"""Every implementation of attention against float64: output, exact tangent, and gradients with and without it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.networks.attention.pallas import has_kernels
from tim_jax.types import DTYPES
from tim_jax.verification import exact
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import LeftOut, Line, wrong_unless

# How far the worst number may be off, as a share of the largest.
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}
CAPTION = 77  # keys of cross-attention, with a mask


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields a line for each implementation and type, with the worst of all shapes and results."""
    sizes, device = setup.sizes, jax.local_devices()[0]
    shapes = [(sizes.tokens, sizes.tokens, width, False) for width in sizes.head_widths]
    shapes.append((sizes.tokens, CAPTION, sizes.head_widths[0], True))
    for name, attend in ATTENTION.items():
        for dtype, limit in LIMITS.items():
            if name == "pallas" and not has_kernels(device, max(sizes.head_widths), DTYPES[dtype]):
                yield LeftOut(
                    f"{name}, {dtype}", f"it has no kernels for {device.device_kind}, where blockwise takes over"
                )
                continue
            found = {}
            for N, M, width, masked in shapes:
                for what, error in errors(attend, dtype, N, M, width, masked).items():
                    found[f"{what} of {N} × {M} tokens, heads {width}{', masked' if masked else ''}"] = error
            where = max(found, key=lambda what: found[what] if np.isfinite(found[what]) else np.inf)
            yield Line(
                f"{name}, {dtype}",
                f"{found[where]:.2g} off in the {where}",
                f"at most {limit:g}",
                wrong_unless(found[where] <= limit),
                {"error": found[where]},
            )


def errors(attend: Callable, dtype: str, N: int, M: int, width: int, masked: bool) -> dict[str, float]:
    """Returns the largest error of each result as a share of its largest number; inputs are exact in bfloat16."""
    rng = np.random.RandomState(0)
    lengths = (N, M, M, N, M, M, N)
    q, k, v, *dots, do = (rng.randint(-24, 25, (2, length, 2, width)) / 16 for length in lengths)
    mask = np.arange(M)[None] < np.array([[M // 3], [M]]) if masked else None
    truth = exact.attention((q, k, v), tuple(dots), do, mask)
    inputs = jax.tree.map(lambda x: jnp.asarray(x, DTYPES[dtype]), ((q, k, v), tuple(dots), do))
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda qkv, dots, do: results(attend, qkv, dots, do, mask))(*inputs)

    def error(name: str) -> float:
        right = truth[name.split()[0]]
        return float(np.abs(np.asarray(found[name], np.float64) - right).max() / np.abs(right).max())

    return {name: error(name) for name in found}


def results(attend: Callable, qkv: tuple, dots: tuple, do: jax.Array, mask: Any) -> dict[str, jax.Array]:
    """Returns output, tangent, and gradients of Σ o do as training takes them: within a `jax.jvp`, and outside."""
    mask = None if mask is None else jnp.asarray(mask)

    def loss(o):
        return jnp.sum((o * do).astype(jnp.float32))

    def outside(qkv):
        return loss(attend(*qkv, mask))

    def inside(qkv):
        o, o_dot = jax.jvp(lambda *qkv: attend(*qkv, mask, in_jvp=True), qkv, dots)
        return loss(o), (o, jax.lax.stop_gradient(o_dot))

    (dq, dk, dv), (o, o_dot) = jax.grad(inside, has_aux=True)(qkv)
    found = {"output": o, "tangent": o_dot, "dq": dq, "dk": dk, "dv": dv}
    dq, dk, dv = jax.grad(outside)(qkv)
    return found | {"dq outside jvp": dq, "dk outside jvp": dk, "dv outside jvp": dv}
