"""Matrix products and copies on every device of this process: their speed, and whether products are right."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.verification import peaks
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import WRONG, LeftOut, Line, slow_unless, wrong_unless

OF_PUBLISHED = 0.5  # share of the published figure below which a device is slow
OF_OTHERS = 0.8  # share of the median of this process's devices


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields lines for each device of this process, and one for the first device's memory and float32."""
    here, sizes = jax.local_devices(), setup.sizes
    first = peaks.of_first_device(sizes)
    rates = [first.flops] + [peaks.product_rate(device, sizes.product, jnp.bfloat16) for device in here[1:]]
    chip = peaks.published()
    middle = float(np.median(rates))
    least = max(OF_PUBLISHED * chip.flops if chip else 0, OF_OTHERS * middle if len(here) > 1 else 0)
    for device, rate in zip(here, rates, strict=True):
        exact = is_exact(device)
        figures = {"flops": rate, "published": chip.flops if chip else None, "exact": exact}
        measured = f"{rate / 1e12:.4g} TFLOP/s" + ("" if exact else ", with wrong numbers")
        limit = f"at least {least / 1e12:.4g}" if least else ""
        verdict = slow_unless(rate >= least) if exact else WRONG
        yield Line(f"bfloat16 product on {device}", measured, limit, verdict, figures)
    yield Line(
        "float32 product, as trained",
        f"{first.float32_flops / 1e12:.4g} TFLOP/s",
        "",
        wrong_unless(True),
        {"flops": first.float32_flops},
    )
    least = OF_PUBLISHED * chip.memory_bandwidth if chip else 0
    yield Line(
        "memory, read and written",
        f"{first.memory_bandwidth / 1e9:.4g} GB/s",
        f"at least {least / 1e9:.4g}" if least else "",
        slow_unless(first.memory_bandwidth >= least),
        {"memory_bandwidth": first.memory_bandwidth, "published": chip.memory_bandwidth if chip else None},
    )


def is_exact(device: jax.Device, size: int = 512) -> bool:
    """Whether a product of whole numbers in bfloat16, with sums in float32 that hold them, is right to the bit."""
    rng = np.random.RandomState(0)
    a, b = (rng.randint(-8, 9, (size, size)) for _ in range(2))
    ours = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))(
        *(jax.device_put(jnp.asarray(x, jnp.bfloat16), device) for x in (a, b))
    )
    return bool(np.array_equal(np.asarray(ours), a @ b))
