"""A discriminator on the states of a network: a small head after each of some blocks (LADD, arXiv 2403.12015).

The network is called on noised samples with their conditions and times, all of which its states know, so that heads are
given nothing else. A head tells true samples from generated ones by every token, as in LADD and SANA-Sprint
(arXiv 2503.09641); a loss takes the mean over tokens and heads. Published heads are convolutions with spectral norm and
see a token's neighbours. These leave that to the network's attention: tokens may then lie on several devices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.layers import Linear, standardise, wide
from tim_jax.types import Heads


class Discriminator(nn.Module):
    """Logits w_k · SiLU(W_k x̄ + b_k) + c_k, (B, K, N), of states x (B, N, D) after K blocks; x̄ is x standardised.

    They are float32 at least, and 0 at first.
    """

    blocks: int  # K
    hidden: int  # rows of W_k
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array]) -> jax.Array:
        if len(taps) != self.blocks:
            raise ValueError(f"taps are of {len(taps)} blocks; they must be of {self.blocks}, one for each head")
        heads = [DiscriminatorHead(self.hidden, self.dtype, name=f"head_{k}") for k in range(self.blocks)]
        logits = jnp.stack([head(x) for head, x in zip(heads, taps)], axis=1)
        return nn.with_logical_constraint(logits, ("batch", None, "tokens"))


class DiscriminatorHead(nn.Module):
    """The logits (B, N) of the states (B, N, D) after one block."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = nn.silu(Linear((self.hidden,), ("embed", "mlp"), dtype=self.dtype, name="in")(standardise(x_BND, 1e-6)))
        h = nn.with_logical_constraint(h, ("batch", "tokens", "mlp"))
        return Linear((1,), ("mlp", None), "zeros", dtype=wide(self.dtype), name="out")(h)[..., 0]


def head_nets(auxiliary: Mapping[str, Heads]) -> dict[str, Callable[[Any], Callable[..., Any]]]:
    """{name: function of parameters that returns it} of the auxiliary networks that are heads."""

    def net(heads: Heads) -> Callable[[Any], Callable[..., Any]]:
        module = Discriminator(len(heads.blocks), heads.width)
        return lambda params: lambda states: module.apply({"params": params}, states)

    return {name: net(heads) for name, heads in auxiliary.items()}


def head_initialisers(auxiliary: Mapping[str, Heads]) -> dict[str, Callable[[jax.Array, Mapping[str, int]], Any]]:
    """{name: function of key and widths of other networks that returns boxed parameters} of the same."""

    def initialiser(heads: Heads) -> Callable[[jax.Array, Mapping[str, int]], Any]:
        module = Discriminator(len(heads.blocks), heads.width)

        def init(key: jax.Array, widths: Mapping[str, int]) -> Any:
            states = (jnp.zeros((1, 1, widths[heads.trunk])),) * len(heads.blocks)
            return module.init(key, states)["params"]

        return init

    return {name: initialiser(heads) for name, heads in auxiliary.items()}
