"""Rows of a table of published names, and how the layout of an array changes between PyTorch and here.

In published files a linear weight is (out, in) and a convolution weight (out, in, kh, kw). Here a kernel is
(in …, out …), so that a map from D to q, k and v of H heads of width K has a kernel (D, 3, H, K).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How the layout of an array changes.

    Attributes:
        load: maps (official array, shape here) to the array here.
        save: its inverse.
    """

    load: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """A parameter by its two names.

    Attributes:
        official: its official name, with * for the number of a block. Where several rows share one, the blocks of the
            first come first: "blocks.*" of an encoder, then of a decoder.
        path: its path here. Of a name with * all blocks are stacked along a first axis.
        layout: how its layout changes.
    """

    official: str
    path: str
    layout: Layout


SAME = Layout(lambda w, shape: w, lambda w: w)
FLAT = Layout(lambda w, shape: w.reshape(shape), lambda w: w.reshape(-1))
LEADING_ONE = Layout(lambda w, shape: w[0], lambda w: w[None])  # (1, N, D) to (N, D)
ONE_IN = Layout(lambda w, shape: w.T.reshape(shape), lambda w: w.reshape(w.shape[0], -1).T)
ONE_OUT = Layout(lambda w, shape: w.T.reshape(shape), lambda w: w.reshape(-1, w.shape[-1]).T)
# Of patches: a convolution (D, C, p, p) to (p, p, C, D); a linear map of patches in the order channel, row, column
# (D, C p p) to the same; and the same map back, (C p p, D) to (D, p, p, C), with its bias (C p p) to (p, p, C).
PATCH = Layout(lambda w, shape: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
UNFOLD = Layout(
    lambda w, shape: w.reshape(shape[3], shape[2], *shape[:2]).transpose(2, 3, 1, 0),
    lambda w: w.transpose(3, 2, 0, 1).reshape(w.shape[3], -1),
)
FOLD = Layout(
    lambda w, shape: w.reshape(shape[3], *shape[1:3], shape[0]).transpose(3, 1, 2, 0),
    lambda w: w.transpose(3, 1, 2, 0).reshape(-1, w.shape[0]),
)
FOLD_BIAS = Layout(
    lambda w, shape: w.reshape(shape[2], *shape[:2]).transpose(1, 2, 0), lambda w: w.transpose(2, 0, 1).reshape(-1)
)


def linear(official: str, path: str, layout: Layout = ONE_IN, bias: Layout = FLAT) -> list[Row]:
    """The weight and the bias of a linear map or a convolution."""
    return [Row(f"{official}.weight", f"{path}/kernel", layout), Row(f"{official}.bias", f"{path}/bias", bias)]


def norm(official: str, path: str) -> list[Row]:
    """The scale and the bias of a norm; an RMSNorm has the first alone."""
    return [Row(f"{official}.weight", f"{path}/scale", SAME), Row(f"{official}.bias", f"{path}/bias", SAME)]


def embedder(official: str, path: str) -> list[Row]:
    """The two linear maps of an embedder of times."""
    return [*linear(f"{official}.mlp.0", f"{path}/in"), *linear(f"{official}.mlp.2", f"{path}/out")]


def projector(official: str) -> list[Row]:
    """The three linear maps of the head that is aligned with image features."""
    parts = {0: "in", 2: "mid", 4: "out"}
    return [row for number, part in parts.items() for row in linear(f"{official}.{number}", f"projector/{part}")]


def attention(official: str = "blocks.*.attn", path: str = "blocks/attn") -> list[Row]:
    """Self-attention: q, k and v in one map, their norms, and the map of what is attended to."""
    return [
        *linear(f"{official}.qkv", f"{path}/qkv"),
        *norm(f"{official}.q_norm", f"{path}/q_norm"),
        *norm(f"{official}.k_norm", f"{path}/k_norm"),
        *linear(f"{official}.proj", f"{path}/out", ONE_OUT),
    ]
