"""Features of captions that are asked for again and again, computed once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

Condition = dict[str, np.ndarray]


class TextMemory:
    """The condition of texts, of which the last ones that were asked for are kept in the host's memory.

    Args:
        encode: maps `count` texts to their condition, arrays (count, …), which depend on the text alone.
        count: of texts that are encoded together.
        size: of texts that are kept.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Condition], count: int, size: int):
        self.encode, self.count, self.size = encode, count, size
        self._kept: OrderedDict[str, Condition] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Condition:
        """The condition of B texts, arrays (B, …)."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        for start in range(0, len(missing), self.count):
            some = missing[start : start + self.count]
            # Always as many, so that one program is compiled and a text's features do not depend on those beside it.
            encoded = self.encode([*some, *some[:1] * (self.count - len(some))])
            for i, text in enumerate(some):
                self._kept[text] = {name: np.array(rows[i]) for name, rows in encoded.items()}
        for text in texts:
            self._kept.move_to_end(text)
        rows = [self._kept[text] for text in texts]
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
