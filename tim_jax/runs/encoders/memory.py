"""Features of captions that are asked for again and again, computed once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

Condition = dict[str, np.ndarray]  # "text" (B, M, T) and "mask" (B, M)


class TextMemory:
    """The condition of texts, of which the last ones that were asked for are kept in the host's memory.

    Args:
        encode: maps `count` texts to their condition. What it is of a text depends on that text alone, and in all
            columns of padding the feature is the same.
        count: of texts that are encoded together.
        size: of texts that are kept.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Condition], count: int, size: int):
        self.encode, self.count, self.size, self._columns = encode, count, size, 0
        # The number of tokens, and the features of these and of one column of padding, if there is any.
        self._kept: OrderedDict[str, tuple[int, np.ndarray]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Condition:
        """The condition of B texts."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        for start in range(0, len(missing), self.count):
            some = missing[start : start + self.count]
            # Always as many, so that one program is compiled and a text's features do not depend on those beside it.
            encoded = self.encode([*some, *some[:1] * (self.count - len(some))])
            self._columns = encoded["mask"].shape[1]
            for text, features, mask in zip(some, encoded["text"], encoded["mask"]):
                tokens = int(mask.sum())
                self._kept[text] = tokens, features[: tokens + 1].copy()
        rows = []
        for text in texts:
            self._kept.move_to_end(text)
            rows.append(self._kept[text])
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        column = np.arange(self._columns)
        return {
            "text": np.stack([features[np.minimum(column, tokens)] for tokens, features in rows]),
            "mask": np.stack([column < tokens for tokens, _ in rows]),
        }
