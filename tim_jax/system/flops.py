"""Floating-point operations of a program, counted from its jaxpr.

XLA counts the body of a loop once; here a scan counts as often as it turns. Only products are counted (2 M N K for a
matrix product), as is usual for utilisation: norms, softmax and rotations are a few per cent beside them.
"""

import math
from typing import Any

import jax
from jax.extend import core


def count(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Returns the operations of matrix products, over all devices together."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    if eqn.primitive.name == "dot_general":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracting)
    inner = [count(jaxpr) for jaxpr in _inner(eqn.params)]
    if eqn.primitive.name == "cond" and eqn.params.get("branches_platforms"):
        # One way for each platform, the last for those without a name. Operations of a model are counted by that one,
        # so that they are the same everywhere, and without what a kernel pads or computes twice.
        return inner[-1]
    if eqn.primitive.name == "cond":
        return max(inner)
    if eqn.primitive.name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid) * sum(inner)
    if eqn.primitive.name == "scan":
        return eqn.params["length"] * sum(inner)
    if eqn.primitive.name == "shard_map":  # what is inside speaks of one device's share
        axes = eqn.params.get("newly_manual_axes") or eqn.params["manual_axes"]  # the name depends on JAX's version
        return math.prod(eqn.params["mesh"].shape[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _inner(params: dict[str, Any]) -> list:
    """Returns the programs inside an equation, without the rules by which one would be differentiated."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr)]
