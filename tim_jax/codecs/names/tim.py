"""TiM's published names, and the two orders of positions that its parameters may be in."""

import numpy as np

from tim_jax.codecs.names.layouts import (
    ONE_IN,
    ONE_OUT,
    PATCH,
    SAME,
    Row,
    attention,
    embedder,
    linear,
    norm,
    projector,
)


def _swiglu(official: str, path: str) -> list[Row]:
    parts = {"fc1_g": "gate", "fc1_x": "up", "fc2": "down"}
    return [row for a, b in parts.items() for row in linear(f"{official}.{a}", f"{path}/{b}")]


NAMES = [
    *linear("x_embedder.proj", "patch", PATCH),
    *embedder("t_embedder", "t_embedder"),
    *embedder("delta_embedder", "delta_embedder"),
    Row("y_embedder.embedding_table.weight", "label_embedder/table", SAME),
    *norm("y_embedder.norm", "caption_embedder/norm"),
    *_swiglu("y_embedder.mlp", "caption_embedder/mlp"),
    *_swiglu("blocks.*.adaLN_modulation", "blocks/modulation"),
    *attention(),
    Row("blocks.*.attn.qkv_d.weight", "blocks/attn/qkv_delta/kernel", ONE_IN),
    *linear("blocks.*.cross_attn.q", "blocks/cross/q"),
    *linear("blocks.*.cross_attn.kv", "blocks/cross/kv"),
    *norm("blocks.*.cross_attn.q_norm", "blocks/cross/q_norm"),
    *norm("blocks.*.cross_attn.k_norm", "blocks/cross/k_norm"),
    *linear("blocks.*.cross_attn.proj", "blocks/cross/out", ONE_OUT),
    *_swiglu("blocks.*.mlp", "blocks/mlp"),
    *_swiglu("final_layer.adaLN_modulation", "final/modulation"),
    *linear("final_layer.linear", "final/linear"),
    *projector("projector"),
]

# Where queries and keys have the K values of a head last -> how many of the parts before the heads (q, k, v or k, v)
# are queries or keys; 0 where there are no parts.
QUERIES_AND_KEYS = {
    "blocks/attn/qkv": 2,
    "blocks/attn/qkv_delta": 2,
    "blocks/attn/q_norm": 0,
    "blocks/attn/k_norm": 0,
    "blocks/cross/q": 0,
    "blocks/cross/kv": 1,
    "blocks/cross/q_norm": 0,
    "blocks/cross/k_norm": 0,
}


def turned(path: str, leaf: np.ndarray) -> np.ndarray:
    """A parameter with the halves of queries and keys exchanged, see `official.transposed`."""
    module = path.rpartition("/")[0]
    if module not in QUERIES_AND_KEYS:
        return leaf
    exchanged = np.roll(leaf, leaf.shape[-1] // 2, axis=-1)
    if parts := QUERIES_AND_KEYS[module]:
        exchanged[..., parts:, :, :] = leaf[..., parts:, :, :]
    return exchanged
