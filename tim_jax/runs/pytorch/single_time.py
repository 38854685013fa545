"""What networks share that were published with one time."""

from typing import Any

from torch import Tensor

from tim_jax.runs.pytorch.layers import OwnTimeEmbedder
from tim_jax.runs.pytorch.transformer import Transformer


class SingleTime(Transformer):
    """A transformer that sees r by an embedding of t − r, which is added to that of t or is a token in front.

    Its time may run the other way, and its output may be negated, as published weights have it.
    """

    def __init__(self, interval: str, clock: str, negated: bool, **shared: Any):
        super().__init__(**shared)
        self.reversed, self.sign = clock == "1-t", -1 if negated else 1
        if not self.decoupled:
            self.delta_embedder = OwnTimeEmbedder(self.width)
            self.add_fronts(delta_tokens=1 if interval == "tokens" else 0)

    def time(self, t: Tensor) -> Tensor:
        return self.t_embedder(1 - t if self.reversed else t)

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        return self.delta_embedder(t - r)

    def image(self, y: Tensor, h: int, w: int) -> Tensor:
        return self.sign * super().image(y, h, w)[:, : self.channels]
