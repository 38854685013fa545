"""BERT (Devlin et al., arXiv 1810.04805), of which MiniLM (arXiv 2002.10957) is a small one, as a text encoder."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.codecs import configs
from tim_jax.codecs.layers import Hidden
from tim_jax.codecs.loading import Kind, exactly


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names. max_position_embeddings is the length of the longest text, in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )


ONLY: dict[str, list] = {
    "hidden_act": ["gelu"],
    "position_embedding_type": ["absolute"],
    "is_decoder": [False],
    "add_cross_attention": [False],
}
IGNORED = ["classifier_dropout", "gradient_checkpointing"]  # of other uses of the same files, and of training


def read_config(values: Mapping[str, Any], source: str) -> Config:
    """Makes the Config of a config.json. Raises ValueError with one line."""
    return configs.make(Config, values, source, ONLY, IGNORED)


class Bert(nn.Module):
    """Maps token numbers (B, M) and their mask (B, M), padded on the right, to Hidden in `dtype`.

    Each token attends to all tokens of its text. Hidden states of padding are 0.
    """

    config: Config
    dtype: Any = jnp.float32

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred."""
        return jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)

    @nn.compact
    def __call__(self, ids_BM, mask_BM) -> Hidden:
        c = self.config
        mask_BM = mask_BM.astype(bool)
        embedding = partial(nn.Embed, features=c.hidden_size, dtype=self.dtype)
        norm = partial(nn.LayerNorm, c.layer_norm_eps, dtype=self.dtype, use_fast_variance=False)
        with exactly(self.dtype):
            words = embedding(c.vocab_size, name="embeddings.word_embeddings")(ids_BM)
            places = embedding(c.max_position_embeddings, name="embeddings.position_embeddings")(
                jnp.arange(ids_BM.shape[1])
            )
            kind = embedding(c.type_vocab_size, name="embeddings.token_type_embeddings")(jnp.zeros(1, jnp.int32))
            x = before = norm(name="embeddings.LayerNorm")(words + places[None] + kind[None])
            for i in range(c.num_hidden_layers):
                before, x = x, Layer(c, norm, self.dtype, name=f"encoder.layer.{i}")(x, mask_BM)
        return Hidden(*(jnp.where(mask_BM[:, :, None], states, 0) for states in (x, before)))


class Layer(nn.Module):
    """Attention and an MLP, each added to its input and normalised after that."""

    config: Config
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x_BMD, mask_BM):
        c, (B, M, D) = self.config, x_BMD.shape
        dense = partial(nn.Dense, dtype=self.dtype)
        q, k, v = (
            dense(D, name=f"attention.self.{name}")(x_BMD).reshape(B, M, c.num_attention_heads, -1)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(q, k, v, mask=mask_BM[:, None, None, :]).reshape(B, M, D)
        y = dense(D, name="attention.output.dense")(y)
        x = self.norm(name="attention.output.LayerNorm")(x_BMD + y)
        y = nn.gelu(dense(c.intermediate_size, name="intermediate.dense")(x), approximate=False)
        return self.norm(name="output.LayerNorm")(x + dense(D, name="output.dense")(y))


# Files of models with a task have a prefix and that task's layers. The pooler makes one vector of a text, by which
# sentences are compared in training BERT; positions are stored as well in some files.
KIND = Kind(
    Bert,
    read_config,
    [(r"^bert\.", ""), (r"^(pooler|cls)\.", None), (r"^embeddings\.position_ids$", None)],
)
