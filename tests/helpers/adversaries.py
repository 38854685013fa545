"""An adversary that is told its logits, for tests of what asks it."""

import dataclasses
from collections.abc import Callable

import jax

from tim_jax.transitions.terms.adversary import Adversary


def nothing(*_):
    raise AssertionError("no logits were told")


@dataclasses.dataclass(frozen=True)
class Told(Adversary):
    """Its logits (B, M) are those of a function of the same arguments."""

    weight: float = 1.0
    blocks: tuple[int, ...] = (1,)
    told: Callable[..., jax.Array] = nothing

    def logits(self, objective, nets, x_t, t, examples):
        return self.told(objective, nets, x_t, t, examples)
