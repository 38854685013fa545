"""The published names of JiT."""

from tim_jax.codecs.names.layouts import LEADING_ONE, PATCH, Layout, Row, linear
from tim_jax.codecs.names.lightningdit import SHARED

# A convolution of one pixel, (D, C, 1, 1), to (C, D).
POINTWISE = Layout(lambda w, shape: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])

NAMES = [
    Row("x_embedder.proj1.weight", "patch_in/kernel", PATCH),
    *linear("x_embedder.proj2", "patch", POINTWISE),
    Row("in_context_posemb", "class_tokens/tokens", LEADING_ONE),
    *SHARED,
]
