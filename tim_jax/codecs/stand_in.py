"""A small text encoder of Gemma's architecture with fixed random weights, which reads bytes.

It takes the place of a published encoder where there is none. Different captions have different features, and training
on them goes through the same code, but it knows nothing of language.
"""

import jax
import jax.numpy as jnp

from tim_jax.codecs import gemma
from tim_jax.codecs.tokenizer import BYTES

NAME = "stand-in"
SEED = 0
CONFIG = gemma.Config(
    vocab_size=BYTES.vocab_size,
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=24,
    layer_types=(gemma.LOCAL, gemma.LOCAL, gemma.GLOBAL),
    sliding_window=16,
    query_pre_attn_scalar=24.0,
)


def describe(dtype=jnp.float32) -> gemma.Gemma:
    """Returns the module without its parameters."""
    return gemma.Gemma(CONFIG, dtype)


def load(dtype=jnp.float32) -> tuple[gemma.Gemma, dict]:
    """Returns (module, parameters); the parameters are the same on every machine."""
    params = jax.jit(gemma.Gemma(CONFIG).init)(jax.random.key(SEED), *gemma.Gemma(CONFIG).example())["params"]
    return describe(dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), params)
