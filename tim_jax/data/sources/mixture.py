"""Several sources as one, each with a weight: its share of the rows that are drawn."""

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import numpy as np

from tim_jax.data.faults import BadRecord
from tim_jax.data.sizes import headers
from tim_jax.data.sources.base import Fields, Source, digest


@dataclasses.dataclass(frozen=True)
class Mixture(Fields):
    """Row i is a row of the source in whose turn i falls, the sources lying one after another.

    weights: of each source, above 0. An epoch draws as many rows as there are, source k's share of them being
    weights[k] / sum: a source is passed share x rows / (its own rows) times, every row of it alike.
    Raises ValueError for sources that do not go together.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(
                f"data.mixture has {len(self.sources)} sources and {len(self.weights)} weights; "
                "it must have a weight for each source"
            )
        for source, weight in zip(self.sources, self.weights, strict=True):
            if not weight > 0 or not np.isfinite(weight):
                raise ValueError(f"data.mixture: the weight of {source.name} is {weight}; it must be above 0")
        for what in (lambda s: s.image_shape[-1], lambda s: getattr(s, "captions", False)):
            if len({what(source) for source in self.sources}) > 1:
                described = ", ".join(
                    f"{s.name} ({s.image_shape[-1]} channels, captions {getattr(s, 'captions', False)})"
                    for s in self.sources
                )
                raise ValueError(f"data.mixture: {described}; channels and captions must be the same in all")

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    @property
    def parts(self) -> tuple[tuple[int, Fraction], ...]:
        """(rows, passes per epoch) of each source."""
        weights = [Fraction(str(weight)) for weight in self.weights]
        rows = [len(source) for source in self.sources]
        return tuple((n, w / sum(weights) * sum(rows) / n) for n, w in zip(rows, weights, strict=True))

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    @property
    def num_classes(self) -> int:
        return max(source.num_classes for source in self.sources)

    @property
    def captions(self) -> bool:
        return getattr(self.sources[0], "captions", False)

    @property
    def latents(self) -> bool:
        return getattr(self.sources[0], "latents", False)

    @property
    def null(self) -> dict[str, np.ndarray]:
        return getattr(self.sources[0], "null", {})

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        shapes = {source.image_shape for source in self.sources}
        return shapes.pop() if len(shapes) == 1 else (None, None, self.sources[0].image_shape[-1])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, i: int) -> tuple[Source, int]:
        at = int(np.searchsorted(self._ends, i, "right"))
        return self.sources[at], i - (int(self._ends[at - 1]) if at else 0)

    def __getitem__(self, i: int) -> dict[str, Any]:
        source, row = self._place(i)
        return source[row] | {"index": int(i)}

    def row(self, i: int) -> dict[str, Any]:
        """Row i, its image as its source gives it."""
        source, row = self._place(i)
        return getattr(source, "row", source.__getitem__)(row) | {"index": int(i)}

    def headers(self, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
        """(height, width), or what is wrong, of the rows from start to stop - 1."""
        found = []
        while start < stop:
            source, row = self._place(start)
            take = min(stop - start, len(source) - row)
            found += _size(source, row, row + take)
            start += take
        return found

    def identity(self, i: int) -> str:
        source, row = self._place(i)
        return f"{source.name}/{source.identity(row)}"

    def fingerprint(self) -> str:
        return digest("mixture", [source.fingerprint() for source in self.sources])


def _size(source: Source, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
    height, width, _ = source.image_shape
    return [(height, width)] * (stop - start) if height and width else headers(source, start, stop)
