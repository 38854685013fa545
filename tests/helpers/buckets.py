"""A source of images that have nothing but a size, and plans of it."""

import dataclasses

import numpy as np

from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.plan import Bucketing, make_plan
from tim_jax.data.sizes import read_sizes


@dataclasses.dataclass(frozen=True)
class Sized(data.Source):
    """A made-up source of images of given sizes, whose pixels are their numbers modulo 256; `broken` are not read."""

    sizes: tuple
    broken: tuple = ()
    name: str = "sized"
    num_classes: int = 3
    image_shape: tuple = (None, None, 3)

    def __len__(self):
        return len(self.sizes)

    def header(self, i):
        if not self.sizes[i]:
            raise BadRecord("unreadable")
        return self.sizes[i]

    def identity(self, i):
        return f"row {i}"

    def read(self, i):
        if i in self.broken or not self.sizes[i]:
            raise BadRecord("truncated")
        return {"image": np.full((*self.sizes[i], 3), i % 256, np.uint8), "label": i % 3, "index": i}

    def fingerprint(self):
        return repr(self)


def made_plan(source, tmp_path, **how):
    return make_plan(source, read_sizes(source, tmp_path), Bucketing(**how), tmp_path)
