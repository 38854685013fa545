"""An endless sequence in which each item comes at its own rate; any position is found without storing the sequence.

Item k comes a_k times per epoch (a_k any positive fraction): by the end of epoch e it has come floor(e a_k) times, so
what is left over goes to the next epoch. Within an epoch the m visits of an item lie evenly, at times (i + u) / m with
an offset u in (0, 1) of its own, and the sequence is all items' visits in the order of their times.
"""

import dataclasses
import functools
from fractions import Fraction

import numpy as np

from tim_jax.data.order import uniform


@dataclasses.dataclass(frozen=True)
class Interleave:
    """The sequence.

    Attributes:
        amounts: how often each item comes per epoch; not all are 0.
        seed: of the offsets.
    """

    amounts: tuple[Fraction, ...]
    seed: int

    def visits(self, epochs: int) -> np.ndarray:
        """How often each of K items has come by the end of so many epochs, int64 (K,)."""
        return np.array([epochs * a.numerator // a.denominator for a in self.amounts], np.int64)

    @functools.cached_property
    def _rate(self) -> Fraction:
        return sum(self.amounts, Fraction(0))

    def epoch(self, position: int) -> int:
        """The epoch that holds a position."""
        epoch = int(position / self._rate)
        while self.visits(epoch + 1).sum() <= position:
            epoch += 1
        return epoch

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items at positions (n,) >= 0, and how often each of them came before: int64 (n,) both."""
        positions = np.asarray(positions, np.int64)
        if len(self.amounts) == 1:
            return np.zeros_like(positions), positions
        items, ranks = np.empty_like(positions), np.empty_like(positions)
        todo = np.ones(positions.shape, bool)
        while todo.any():
            epoch = self.epoch(int(positions[todo].min()))
            before, after = self.visits(epoch), self.visits(epoch + 1)
            here = todo & (positions < after.sum())
            items[here], within = _select(positions[here] - before.sum(), after - before, self._offsets(epoch))
            ranks[here] = before[items[here]] + within
            todo &= ~here
        return items, ranks

    def _offsets(self, epoch: int) -> np.ndarray:
        return uniform(self.seed, epoch, np.arange(len(self.amounts)))


def _select(q: np.ndarray, m: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the q-th visits of an epoch by bisection over time.

    Args:
        q: numbers of visits, from 0, (n,).
        m: how often each item comes in this epoch, (K,).
        u: the offsets of the items, (K,).

    Returns:
        (item, number of its visit), (n,) both.
    """

    def before(time):
        """How many visits of each item lie before each time, (n, K); monotone in time even after rounding."""
        return np.clip(np.ceil(time[:, None] * m[None, :] - u[None, :]), 0, m[None, :]).astype(np.int64)

    low, high = np.zeros(q.shape), np.ones(q.shape)
    at_low, at_high = before(low), before(high)
    while True:
        middle = (low + high) / 2
        if np.all((at_high.sum(1) - at_low.sum(1) == 1) | (middle == low) | (middle == high)):
            break
        at_middle = before(middle)
        left = at_middle.sum(1) > q
        high, at_high = np.where(left, middle, high), np.where(left[:, None], at_middle, at_high)
        low, at_low = np.where(left, low, middle), np.where(left[:, None], at_low, at_middle)
    extra = np.cumsum(at_high - at_low, axis=1)
    rest = q - at_low.sum(1)
    item = np.argmax(extra > rest[:, None], axis=1)
    n = np.arange(len(q))
    return item, at_high[n, item] - (extra[n, item] - rest)
