"""How large the checks are: on a CPU small, on an accelerator what it is for."""

import dataclasses

import jax
import jax.numpy as jnp
from etils import epath

from tim_jax.bench.compile import NETWORKS
from tim_jax.bench.step import CASES, Case

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the checks.

    Attributes:
        product: Rows and columns of the matrices whose product gives the peak.
        stream: Bytes of the array that is copied for the bandwidth of memory.
        tokens: Queries in the checks of attention.
        head_widths: In the checks of attention.
        message: Bytes that each device gives to a collective.
        training: Networks whose steps are measured.
        sampling: The network that is sampled from.
        saved: The network whose training state is written.
        compiled: Names in `bench.compile.NETWORKS`.
        rounds: Of the input pipeline.
        repeats: Timed calls of everything.
    """

    product: int
    stream: int
    tokens: int
    head_widths: tuple[int, ...]
    message: int
    training: tuple[Case, ...]
    sampling: Case
    saved: Case
    compiled: tuple[str, ...]
    rounds: int
    repeats: int


def in_bfloat16(case: Case, depth: int, batch: int) -> Case:
    """Returns a case with a network of so many blocks that computes in bfloat16."""
    encoder_depth = min(depth, 4)
    network = case.network.clone(depth=depth, encoder_depth=encoder_depth, dtype=jnp.bfloat16)
    return dataclasses.replace(case, network=network, batch=batch)


def sizes(name: str) -> Sizes:
    """Returns the sizes called "small" or "full"."""
    B, small = CASES["B/4"], CASES["small"]
    if name == "small":
        return Sizes(
            product=512,
            stream=32 * MiB,
            tokens=96,
            head_widths=(64,),
            message=MiB,
            training=(in_bfloat16(small, 4, 32), in_bfloat16(B, 2, 8)),
            sampling=dataclasses.replace(small, batch=16),
            saved=dataclasses.replace(small, batch=32),
            compiled=("small",),
            rounds=1,
            repeats=3,
        )
    return Sizes(
        product=8192,
        stream=1024 * MiB,
        tokens=1024,
        head_widths=(64, 72, 128),
        message=128 * MiB,
        training=(in_bfloat16(B, 12, 256), dataclasses.replace(NETWORKS["XL/2"], batch=64)),
        sampling=dataclasses.replace(NETWORKS["XL/2"], batch=16),
        saved=in_bfloat16(B, 12, 64),
        compiled=("small", "XL/2"),
        rounds=2,
        repeats=10,
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a check is given.

    Attributes:
        sizes: How large it is.
        workdir: The folder in which checkpoints are tried; None: one that is made for it and removed.
    """

    sizes: Sizes
    workdir: epath.Path | None = None


def default_size() -> str:
    """Returns the size for the devices of this process."""
    return "small" if jax.default_backend() == "cpu" else "full"
