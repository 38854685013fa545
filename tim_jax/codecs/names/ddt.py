"""The published names of DDT, and of DiT^DH (RAE), whose blocks are numbered on from the encoder to the decoder."""

from tim_jax.codecs.names.layouts import (
    FOLD,
    FOLD_BIAS,
    PATCH,
    SAME,
    UNFOLD,
    Layout,
    Row,
    attention,
    embedder,
    linear,
    norm,
    projector,
)


def _names(modulation: str, mlp: dict[str, str], patch: Layout, out: tuple[Layout, ...]) -> list[Row]:
    """The names that both have.

    Args:
        modulation: What the modulation of a block and of the final layer is called.
        mlp: The official names of the maps of an MLP, and ours.
        patch: The layout of the patch embeddings.
        out: The layouts of the final weight and bias.
    """
    rows = [
        *linear("s_embedder.proj", "patch", patch),
        *linear("x_embedder.proj", "decoder_patch", patch),
        *linear("s_projector", "decoder_condition"),
        *embedder("t_embedder", "t_embedder"),
        Row("t_embedder.W", "t_embedder/frequencies", SAME),
        Row("y_embedder.embedding_table.weight", "label_embedder/table", SAME),
    ]
    for stack in ("encoder", "decoder"):
        rows += [
            *linear(f"blocks.*.{modulation}", f"{stack}/modulation"),
            *norm("blocks.*.norm1", f"{stack}/norm_0"),
            *attention(path=f"{stack}/attn"),
            *norm("blocks.*.norm2", f"{stack}/norm_1"),
            *(row for a, b in mlp.items() for row in linear(f"blocks.*.mlp.{a}", f"{stack}/mlp/{b}")),
        ]
    return [
        *rows,
        *norm("final_layer.norm_final", "final/norm"),
        *linear(f"final_layer.{modulation}", "final/modulation"),
        *linear("final_layer.linear", "final/linear", *out),
        *projector("proj"),
    ]


DDT = _names("adaLN_modulation.0", {"w1": "gate", "w3": "up", "w2": "down"}, UNFOLD, (FOLD, FOLD_BIAS))
DITDH = _names("adaLN_modulation.1", {"w12": "in", "w3": "down"}, PATCH, ())
