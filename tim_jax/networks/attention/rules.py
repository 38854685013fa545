"""Attention that JAX can differentiate, from three passes that it cannot.

A function can have only one differentiation rule of its own, for forward or for reverse mode. So there are two
functions: `outside_jvp` for groups without tangents, and `inside_jvp` for groups that pass through one `jax.jvp`,
within reverse mode or not.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from tim_jax.networks.attention import xla


def differentiable(forward: Callable, forward_and_tangent: Callable, backward: Callable) -> Callable:
    """Returns attention(q (B, N, H, K), k (B, M, H, K), v (B, M, H, K), mask (B, M) or None, in_jvp) -> (B, N, H, K).

    With `in_jvp`, for a call inside a `jax.jvp`, attention has no reverse mode outside `jax.jvp`; without, it has no
    `jax.jvp`. The passes take arrays (B, H, N or M, K); L (B, H, N) is the logarithm of a query's sum of exp(logit).

    Args:
        forward: (q, k, v, mask) -> (o, L).
        forward_and_tangent: (q, k, v, q_dot, k_dot, v_dot, mask) -> (o, L, o_dot).
        backward: (q, k, v, mask, o, L, do) -> (dq, dk, dv).
    """

    def outside_jvp(q, k, v, mask):
        return output(q, k, v, mask, *_named(forward(*jax.lax.stop_gradient((q, k, v)), mask)))

    @jax.custom_jvp
    def inside_jvp(q, k, v, mask):
        return forward(q, k, v, mask)[0]

    @inside_jvp.defjvp
    def inside_jvp_rule(primals, tangents):
        q, k, v, mask = primals
        dots = tangents[:3]
        *result, o_dot = forward_and_tangent(*jax.lax.stop_gradient((q, k, v, *dots)), mask)
        # Output and tangent come from one pass and have reverse rules of their own: where a loss does not differentiate
        # the tangent, JAX drops that rule together with everything that it needs.
        return output(q, k, v, mask, *_named(result)), _tangent(q, k, v, *dots, mask, o_dot)

    @jax.custom_vjp
    def output(q, k, v, mask, o, L):
        """Returns o, as a function of q, k and v."""
        return o

    def output_forward(q, k, v, mask, o, L):
        return o, (q, k, v, mask, o, L)

    def output_backward(saved, do):
        return *backward(*saved, do), None, None, None

    output.defvjp(output_forward, output_backward)

    def attention(q_BNHK, k_BMHK, v_BMHK, mask_BM=None, in_jvp: bool = False):
        q, k, v = (x.swapaxes(1, 2) for x in (q_BNHK, k_BMHK, v_BMHK))
        return (inside_jvp if in_jvp else outside_jvp)(q, k, v, mask_BM).swapaxes(1, 2)

    return attention


def _named(result):
    """Names (o, L), all that the backward pass needs besides q, k and v, for policies of `jax.checkpoint`."""
    return [checkpoint_name(x, "attention") for x in result]


@jax.custom_vjp
def _tangent(q, k, v, q_dot, k_dot, v_dot, mask, o_dot):
    """Returns o_dot, as a function of q, k, v and their tangents; its gradient is that of `xla`, with its memory."""
    return o_dot


def _tangent_forward(*inputs):
    return inputs[-1], inputs[:-1]


def _tangent_backward(saved, do_dot):
    *inputs, mask = saved

    def tangent(*inputs):
        inputs = tuple(x.swapaxes(1, 2) for x in inputs)
        return jax.jvp(lambda *qkv: xla.attention(*qkv, mask), inputs[:3], inputs[3:])[1].swapaxes(1, 2)

    return *jax.vjp(tangent, *inputs)[1](do_dot), None, None


_tangent.defvjp(_tangent_forward, _tangent_backward)
