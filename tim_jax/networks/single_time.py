"""Networks that are published with one time, t: how they learn of r, and what clock and sign their weights have."""

from collections.abc import Callable

import flax.linen as nn
import jax

from tim_jax.networks.checks import check_choices
from tim_jax.networks.embeddings import TimeEmbedder
from tim_jax.networks.transformer import Transformer

UNUSED = {("model.interval",): ("model.decoupled_depth is above 0", lambda c: c.model.decoupled_depth > 0)}

# Where the embedding of the interval enters: the condition c, or a token of its own.
INTERVALS_ENTER = ("modulation", "tokens")
# The time that a network is given, of that of the query.
CLOCKS: dict[str, Callable[[jax.Array], jax.Array]] = {"t": lambda t: t, "1-t": lambda t: 1 - t}


class SingleTime(Transformer):
    """A transformer whose published form sees t alone.

    Of r it sees an embedding of t − r that is 0 at first, so that at first F(x, t, r) = F(x, t, t): with "modulation"
    that is exactly the published F, with "tokens" that of the same network with one more token in front.
    """

    interval: str = "modulation"  # where the embedding of t - r enters: "modulation", or "tokens": in context
    # The time that the network sees, "t" or "1-t", and whether its output is -F: "1-t" and True for published weights
    # whose time runs from noise (0) to data (1) and that predict data - noise. Neither changes what training can reach.
    clock: str = "t"
    negated: bool = False

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_choices(self, {"interval": INTERVALS_ENTER, "clock": CLOCKS})

    def time_embedder(self) -> Callable[[jax.Array], jax.Array]:
        embed, clock = self.published_time_embedder(), CLOCKS[self.clock]
        return lambda t: embed(clock(t))

    def published_time_embedder(self) -> nn.Module:
        """Returns the embedder of the network's own time, (B,) -> (B, D)."""
        return TimeEmbedder(self.width, "normal", self.dtype, name="t_embedder")

    def interval_embedder(self, T: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        embed = TimeEmbedder(self.width, "normal", self.dtype, "zeros", name="delta_embedder")
        return lambda t, r: embed(t - r)

    @property
    def context_tokens(self) -> dict[str, int]:
        tokens = self.interval == "tokens" and not self.decoupled_depth
        return super().context_tokens | ({"delta_tokens": 1} if tokens else {})

    def final(self, name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
        layer, sign = self.final_layer(name), -1 if self.negated else 1
        return lambda x, c: sign * layer(x, c)[..., : self.channels]
