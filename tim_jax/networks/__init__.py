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
from collections.abc import Callable
from typing import Any

from tim_jax.networks.ddt import DDT, DiTDH
from tim_jax.networks.dit import DiT
from tim_jax.networks.jit import JiT
from tim_jax.networks.lightningdit import LightningDiT
from tim_jax.networks.tim import TiM
from tim_jax.networks.transformer import Transformer

__all__ = ["NETWORKS", "TiM", "Transformer"]

# Transformers by name: `model.network`. Their fields are the keys of `model`.
NETWORKS: dict[str, type[Transformer]] = {
    "tim": TiM,
    "dit": DiT,
    "sit": DiT,  # one network, two names
    "lightningdit": LightningDiT,
    "jit": JiT,
    "ddt": DDT,
    "ditdh": DiTDH,
}

SIZED = tuple(dict.fromkeys(key for kind in NETWORKS.values() for size in kind.SIZES.values() for key in size))


@dataclasses.dataclass(frozen=True)
class Size:
    """The keys of `model` that are no fields of networks."""

    network: str = "tim"  # a name in tim_jax.networks.NETWORKS
    size: str = "S"  # XS, S, B, L, XL, …, of which width, depth, heads and the like are where they are 0


def _unread() -> dict[tuple[str, ...], tuple[str, Callable[[Any], Any]]]:
    """The keys that only some networks have: keys → why they have no effect, and whether so in a configuration."""
    having: dict[str, tuple[str, ...]] = {}
    for name, kind in NETWORKS.items():
        for field in dataclasses.fields(kind):
            having[field.name] = (*having.get(field.name, ()), name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for field_name, names in having.items():
        if len(names) < len(NETWORKS):
            groups.setdefault(names, []).append(f"model.{field_name}")

    def lacking(key: str) -> Callable[[Any], bool]:
        return lambda c: not hasattr(NETWORKS.get(c.model.network, TiM), key.partition(".")[2])

    return {
        tuple(keys): (f"model.network is not {' or '.join(map(repr, names))}", lacking(keys[0]))
        for names, keys in groups.items()
    }


UNUSED = _unread()
