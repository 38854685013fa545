"""The published names of LightningDiT, and the rows that JiT shares with it."""

from tim_jax.codecs.names.layouts import PATCH, SAME, Row, attention, embedder, linear, norm

# All but the embedding of patches.
SHARED = [
    *embedder("t_embedder", "t_embedder"),
    Row("y_embedder.embedding_table.weight", "label_embedder/table", SAME),
    *norm("blocks.*.norm1", "blocks/norm_0"),
    *attention(),
    *norm("blocks.*.norm2", "blocks/norm_1"),
    *linear("blocks.*.mlp.w12", "blocks/mlp/in"),
    *linear("blocks.*.mlp.w3", "blocks/mlp/down"),
    *linear("blocks.*.adaLN_modulation.1", "blocks/modulation"),
    *norm("final_layer.norm_final", "final/norm"),
    *linear("final_layer.adaLN_modulation.1", "final/modulation"),
    *linear("final_layer.linear", "final/linear"),
]

NAMES = [*linear("x_embedder.proj", "patch", PATCH), *SHARED]
