"""Several sources as one, each with a weight: its share of the examples that are drawn."""

import dataclasses
import functools
from collections import Counter
from fractions import Fraction

import numpy as np

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import Example, Source, digest


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """A source that holds the examples of several sources, one source after another.

    An epoch draws as many examples as there are, and source k's share of them is weights[k] / sum(weights). So source k
    is passed (share x all examples / its own examples) times per epoch, and each of its examples is drawn alike.

    Attributes:
        sources: at least one; all with the same channels, and either all or none with captions, losers and rewards.
        weights: of each source, above 0.

    Raises:
        ValueError: the sources do not go together, or a weight is not above 0.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(
                f"data.mixture is of {len(self.sources)} sources and {len(self.weights)} weights; "
                "it must have a weight for each source"
            )
        for source, weight in zip(self.sources, self.weights, strict=True):
            if not weight > 0 or not np.isfinite(weight):
                raise ValueError(
                    f"data.mixture is of weights {self.weights}; each of them must be above 0, and that of "
                    f"{source.name} "
                    "is not"
                )
        if len({(source.image_shape[-1], source.captions, source.preference) for source in self.sources}) > 1:
            described = ", ".join(
                f"{source.name} ({source.image_shape[-1]} channels, captions {source.captions}"
                f"{''.join(f', with a {name}' for name in source.preference)})"
                for source in self.sources
            )
            raise ValueError(
                f"data.mixture is {described}; they must have the same channels, and all or none captions, losers and "
                "rewards"
            )

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    @property
    def parts(self) -> tuple[tuple[int, Fraction], ...]:
        weights = [Fraction(str(weight)) for weight in self.weights]
        counts = [len(source) for source in self.sources]
        return tuple((n, w / sum(weights) * sum(counts) / n) for n, w in zip(counts, weights, strict=True))

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    @property
    def num_classes(self) -> int:
        return max(source.num_classes for source in self.sources)

    @property
    def class_names(self) -> tuple[str, ...]:
        return max((source.class_names for source in self.sources), key=len)

    def names_of(self, label: int) -> list[str]:
        """What the sources call a label, each name once."""
        names = (source.class_names[label] for source in self.sources if label < len(source.class_names))
        return list(dict.fromkeys(names))

    def differing_label(self) -> int | None:
        """The first label that two sources call differently; None if there is none."""
        labels = range(len(self.class_names))
        return next((label for label in labels if len(self.names_of(label)) > 1), None)

    @property
    def left_out(self) -> dict[str, int]:
        return dict(sum((Counter(source.left_out) for source in self.sources), Counter()))

    @property
    def captions(self) -> bool:
        return self.sources[0].captions

    @property
    def latents(self) -> bool:
        return self.sources[0].latents

    @property
    def preference(self) -> tuple[str, ...]:
        return self.sources[0].preference

    @property
    def null_text(self) -> dict[str, np.ndarray]:
        return self.sources[0].null_text

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        shapes = {source.image_shape for source in self.sources}
        return shapes.pop() if len(shapes) == 1 else (None, None, self.sources[0].image_shape[-1])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, i: int) -> tuple[Source, int]:
        """The source that holds example i, and the example's number there."""
        at = int(np.searchsorted(self._ends, i, "right"))
        return self.sources[at], i - (int(self._ends[at - 1]) if at else 0)

    def read(self, i: int) -> Example:
        source, index = self._locate(i)
        return source.read(index) | {"index": int(i)}

    def annotations(self, i: int) -> Example:
        source, index = self._locate(i)
        return source.annotations(index)

    @property
    def labels_at_hand(self) -> bool:
        return all(source.labels_at_hand for source in self.sources)

    def labels(self, examples: np.ndarray) -> np.ndarray:
        found, at = np.empty(len(examples), np.int64), np.searchsorted(self._ends, examples, "right")
        for part, (source, end) in enumerate(zip(self.sources, self._ends, strict=True)):
            found[at == part] = source.labels(examples[at == part] - (end - len(source)))
        return found

    def headers(self, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
        found: list[tuple[int, int] | BadRecord] = []
        while start < stop:
            source, index = self._locate(start)
            count = min(stop - start, len(source) - index)
            height, width, _ = source.image_shape
            found += [(height, width)] * count if height and width else source.headers(index, index + count)
            start += count
        return found

    def identity(self, i: int) -> str:
        source, index = self._locate(i)
        return f"{source.name}/{source.identity(index)}"

    def fingerprint(self) -> str:
        return digest("mixture", [source.fingerprint() for source in self.sources])
