"""The network of the golden numbers of objectives: two matrices (tests/golden/README.md)."""

import jax
import jax.numpy as jnp

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.times import Times
from tim_jax.types import Examples, Output

WEIGHTS = ("W1", "a", "b", "d", "e", "g", "W2")
OT_FM = TRANSPORTS["ot_fm"]()
GIVEN = Times("uniform", share_equal=0.0, share_min=0.0)  # times are given: all examples go the general way
TOLERANCE = 1e-10
NULL = 4  # the label of the null condition


def weights(arrays, prefix=""):
    """The weights of a probe by name."""
    return {name: jnp.asarray(arrays[prefix + name]) for name in WEIGHTS if prefix + name in arrays}


def hidden_layer(params, x, t, r, labels, extra=None):
    """tanh(W1 x + a t + b r + e[labels] + d + g extra)."""
    hidden = x.reshape(len(x), -1) @ params["W1"].T + params["d"][None] + params["e"][labels]
    hidden += t[:, None] * params["a"][None] + r[:, None] * params["b"][None]
    if extra is not None:
        hidden += extra @ params["g"].T
    return jnp.tanh(hidden)


def probe(params, x, t, r, labels, extra=None):
    """W2 times the hidden layer, shaped like x."""
    return (hidden_layer(params, x, t, r, labels, extra) @ params["W2"].T).reshape(x.shape)


def as_net(params):
    """The probe as a network, which sees t and r."""
    return lambda queries: tuple(Output(probe(params, q.x_t, q.t, q.r, q.condition["label"])) for q in queries)


def examples(x, noise, labels, is_null=None):
    """Examples with labels; those `is_null` are trained with the null condition."""
    labels, is_null = jnp.asarray(labels), jnp.zeros(len(x), bool) if is_null is None else jnp.asarray(is_null)
    condition, null = {"label": jnp.where(is_null, NULL, labels)}, {"label": jnp.full_like(labels, NULL)}
    return Examples(jnp.asarray(x), jnp.asarray(noise), condition, null, is_null)


def largest_difference(found, expected):
    """The largest absolute difference of all numbers, gradients as {weight: …} included."""
    differences = jax.tree.map(lambda a, b: float(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max()), found, expected)
    return max(jax.tree.leaves(differences))


def gradients(arrays, case, folder="grad"):
    """The published gradients by weight."""
    return {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{case}/{folder}/")}
