"""Networks F(x_t, t, r, condition).

Every array in a network carries logical axis names, for parameters by `nn.with_logical_partitioning` and for
activations by `nn.with_logical_constraint`; without rules and a mesh they change nothing. The names are

    batch   examples                    heads   attention heads
    tokens  patches of an image         head    the width K of one head
    embed   the residual width D        mlp     hidden width of any MLP
    layers  stacked blocks              qkv     the two or three of (q, k, v)

and None for axes that are never split: pixels of a patch, sinusoids, caption features and tokens, classes. In a list of
rules `batch` should come before `embed`, so that both may go to one mesh axis: activations then split by examples, and
parameters by width.

`module.init(key, groups)["params"]` returns boxed parameters: `nn.get_partition_spec` reads the axis names from them,
`nn.unbox` gives the plain arrays that `module.apply` takes.
"""

import dataclasses

from tim_jax.networks.tim import TiM

__all__ = ["NETWORKS", "SIZES", "TiM"]

NETWORKS: dict[str, type[TiM]] = {"tim": TiM}  # with the fields of TiM, which are the keys of `model`

# Fields of TiM by size. The bottleneck is a third of the width, rounded up to a multiple of 8; XS, for CPUs, is not
# published.
SIZES = {
    "XS": {"depth": 4, "width": 160, "heads": 5, "bottleneck": 56, "encoder_depth": 2},
    "S": {"depth": 12, "width": 384, "heads": 6, "bottleneck": 128, "encoder_depth": 4},
    "B": {"depth": 12, "width": 768, "heads": 12, "bottleneck": 256, "encoder_depth": 4},
    "L": {"depth": 24, "width": 1024, "heads": 16, "bottleneck": 344, "encoder_depth": 8},
    "XL": {"depth": 28, "width": 1152, "heads": 16, "bottleneck": 384, "encoder_depth": 8},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """The keys of `model` that are no attributes of TiM."""

    network: str = "tim"  # a name in tim_jax.networks.NETWORKS
    size: str = "S"  # XS, S, B, L or XL; the next five keys override parts of it where they are not 0
