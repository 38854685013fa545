"""The text decoder of Gemma 3 (Gemma Team, arXiv 2503.19786) as an encoder of captions."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.codecs import configs
from tim_jax.codecs.layers import Hidden, RMSNorm
from tim_jax.codecs.loading import Kind, exactly

LOCAL, GLOBAL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings by their published names.

    layer_types has LOCAL or GLOBAL for each layer. rope_theta and rope_factor belong to global layers, where positions
    are divided by the latter; rope_local_base_freq belongs to local layers.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple
    sliding_window: int
    query_pre_attn_scalar: float = 256.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4
    rope_factor: float = 1.0

    def __post_init__(self):
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries, for {self.num_hidden_layers} layers")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )


ONLY: dict[str, list] = {
    "layer_types": [LOCAL, GLOBAL],
    "hidden_activation": ["gelu_pytorch_tanh"],
    "attention_bias": [False],
    "attn_logit_softcapping": [None],
    "use_bidirectional_attention": [False],
}
# These concern the words that are generated, and how many are allowed.
IGNORED = ["final_logit_softcapping", "max_position_embeddings"]


def read_config(values: Mapping[str, Any], source: str) -> Config:
    """Makes the Config of a config.json in any of its published forms. Raises ValueError with one line."""
    values = dict(values)
    pattern = values.pop("sliding_window_pattern", values.pop("_sliding_window_pattern", 6))
    scaling = values.pop("rope_scaling", None) or {}
    ropes = values.pop("rope_parameters", None) or {}
    local, whole = ropes.get(LOCAL, {}), ropes.get(GLOBAL, scaling)
    for rope, types in ((local, ["default"]), (whole, ["default", "linear"])):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in types:
            raise ValueError(f"{source}: a rope_type is {kind!r}; supported is {' or '.join(types)} there")
    if isinstance(values.get("num_hidden_layers"), int) and not values.get("layer_types"):
        layers = range(1, values["num_hidden_layers"] + 1)
        values["layer_types"] = [LOCAL if layer % pattern else GLOBAL for layer in layers]
    named = {
        "rope_local_base_freq": local.get("rope_theta"),
        "rope_theta": whole.get("rope_theta"),
        "rope_factor": whole.get("factor"),
    }
    values |= {key: value for key, value in named.items() if value is not None}
    return configs.make(Config, values, source, ONLY, IGNORED)


class Gemma(nn.Module):
    """Maps token numbers (B, M) and their mask (B, M), padded on the right, to Hidden in `dtype`.

    Each token attends to itself and to those before it, in local layers to the nearest `sliding_window` of them. A
    padding token attends to nothing, so that its hidden state is the same vector at all places of all captions: the
    published text-to-image weights, which do not mask, were trained with that.
    """

    config: Config
    dtype: Any = jnp.float32

    def example(self):
        """Returns small inputs, from which shapes of parameters are inferred."""
        return jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)

    @nn.compact
    def __call__(self, ids_BM, mask_BM) -> Hidden:
        c = self.config
        norm = partial(RMSNorm, c.rms_norm_eps, offset=1.0, dtype=self.dtype)
        mask_BM = mask_BM.astype(bool)
        with exactly(self.dtype):
            x = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype, name="embed_tokens")(ids_BM)
            # Published code rounds the factor as the embeddings are: 34 in bfloat16 for the 1B model, not 33.94.
            x *= jnp.asarray(math.sqrt(c.hidden_size), self.dtype)
            before = x
            for i, kind in enumerate(c.layer_types):
                before = x
                y = norm(name=f"layers.{i}.input_layernorm")(x)
                y = Attention(c, kind == LOCAL, self.dtype, name=f"layers.{i}.self_attn")(y, mask_BM)
                x += norm(name=f"layers.{i}.post_attention_layernorm")(y)
                y = norm(name=f"layers.{i}.pre_feedforward_layernorm")(x)
                y = MLP(c.intermediate_size, self.dtype, name=f"layers.{i}.mlp")(y)
                x += norm(name=f"layers.{i}.post_feedforward_layernorm")(y)
            return Hidden(norm(name="norm")(x), before)


class Attention(nn.Module):
    """Causal attention, with several heads to one key and value, and q and k normalised and rotated."""

    config: Config
    local: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BMD, mask_BM):
        c = self.config
        B, M, D = x_BMD.shape

        def heads(number, name):
            y = nn.Dense(number * c.head_dim, use_bias=False, dtype=self.dtype, name=name)(x_BMD)
            return y.reshape(B, M, number, c.head_dim)

        norm = partial(RMSNorm, c.rms_norm_eps, offset=1.0, dtype=self.dtype)
        q = norm(name="q_norm")(heads(c.num_attention_heads, "q_proj"))
        k = norm(name="k_norm")(heads(c.num_key_value_heads, "k_proj"))
        v = heads(c.num_key_value_heads, "v_proj")
        table = rope(M, c.head_dim, *((c.rope_local_base_freq, 1.0) if self.local else (c.rope_theta, c.rope_factor)))
        y = jax.nn.dot_product_attention(
            rotated(q, table),
            rotated(k, table),
            v,
            mask=mask_BM[:, None, None, :],
            scale=c.query_pre_attn_scalar**-0.5,
            is_causal=True,
            local_window_size=(c.sliding_window - 1, 0) if self.local else None,
        )
        y = jnp.where(mask_BM[:, :, None, None], y, 0).reshape(B, M, -1)
        return nn.Dense(D, use_bias=False, dtype=self.dtype, name="o_proj")(y)


class MLP(nn.Module):
    """A gated MLP, (B, M, D) to (B, M, D)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        gate = nn.gelu(dense(self.width, name="gate_proj")(x), approximate=True)
        return dense(x.shape[-1], name="down_proj")(gate * dense(self.width, name="up_proj")(x))


def rope(length: int, width: int, theta: float, factor: float):
    """Returns (cos, sin), each (length, width / 2), of the angles (position / factor) · theta^(−2 i / width)."""
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = (jnp.arange(length, dtype=jnp.float32) / factor)[:, None] * frequency[None]
    return jnp.cos(angle), jnp.sin(angle)


def rotated(x_BMHK, table):
    """Rotates the halves (a, b) of each head by the angles of a table: (a cos − b sin, b cos + a sin)."""
    cos, sin = (part[None, :, None, :] for part in table)
    a, b = jnp.split(x_BMHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BMHK.dtype)


# Files of whole language models have a prefix, and perhaps the output layer.
KIND = Kind(Gemma, read_config, [(r"^model\.", ""), (r"^lm_head\.weight$", None)])
