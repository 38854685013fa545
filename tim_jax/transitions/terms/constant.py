"""Auxiliary networks where they do not learn."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from tim_jax.types import ema_of


def constant(nets: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    """Returns a network through which gradients reach its inputs, but not its parameters.

    That is the EMA of an auxiliary network, where it is averaged.

    Args:
        nets: The networks by name.
        name: That of the network.
    """
    net = nets.get(ema_of(name), nets[name])

    def call(inputs: Any, **options: Any) -> Any:
        # Parameters are what a network closes over; integers among the inputs have no gradient to lose.
        pure, parameters = jax.closure_convert(lambda inputs: net(inputs, **options), inputs)
        return pure(inputs, *jax.lax.stop_gradient(parameters))

    return call
