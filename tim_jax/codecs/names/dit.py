"""The published names of DiT, of SiT, and of REPA's SiT, whose head for alignment is beside them."""

from tim_jax.codecs.names.layouts import PATCH, SAME, Row, attention, embedder, linear, projector

NAMES = [
    *linear("x_embedder.proj", "patch", PATCH),
    *embedder("t_embedder", "t_embedder"),
    Row("y_embedder.embedding_table.weight", "label_embedder/table", SAME),
    *linear("blocks.*.adaLN_modulation.1", "blocks/modulation"),
    *attention(),
    *linear("blocks.*.mlp.fc1", "blocks/mlp/in"),
    *linear("blocks.*.mlp.fc2", "blocks/mlp/out"),
    *linear("final_layer.adaLN_modulation.1", "final/modulation"),
    *linear("final_layer.linear", "final/linear"),
    *projector("projectors.0"),
]
