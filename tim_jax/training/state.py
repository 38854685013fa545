"""Everything that changes while training, as one tree."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tim_jax.training.power_ema import PowerFunction
from tim_jax.types import Auxiliary, averages


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Examples, noise and times of a step follow from (seed, step), so that this tree is all that a run is. Trees of the
    same structure may hold other leaves, such as shapes and shardings.

    Attributes:
        step: Number of steps done, int32 scalar.
        params: Parameters of each trained network by its name: "online", and the auxiliary networks of the objective.
        emas: Exponential moving averages by name: of the online network's parameters, and of those of auxiliary
            networks where these are averaged.
        opt_state: State of the optimizer, optax's own.
        memory: What the objective remembers of earlier batches, arrays by name; {} for most objectives.
    """

    step: Any
    params: dict[str, Any]
    emas: dict[str, Any]
    opt_state: Any
    memory: Any = flax.struct.field(default_factory=dict)

    if TYPE_CHECKING:  # flax.struct gives every dataclass this method, which a type checker does not see

        def replace(self, **changes: Any) -> "TrainState": ...


def step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the key of everything that a step draws. seed: uint32 scalar. step: steps done before, from 0 on."""
    return jax.random.fold_in(jax.random.key(seed), step)


def init_key(seed: jax.Array) -> jax.Array:
    """Returns the key of the first parameters, which no step has. seed: uint32 scalar."""
    return jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))


def heads_key(seed: jax.Array) -> jax.Array:
    """Returns the key of the first parameters of heads, which no step has. seed: uint32 scalar."""
    return jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 2))


def first_state(
    online: Any,
    tx: optax.GradientTransformation,
    emas: Iterable[str],
    auxiliary: Mapping[str, Auxiliary] = {},
    memory: Mapping[str, jax.ShapeDtypeStruct] = {},
    heads: Mapping[str, Any] = {},
) -> TrainState:
    """Returns the state before the first step.

    Args:
        online: Parameters of the network that trains.
        tx: Optimizer.
        emas: Names of the EMAs of the online network; each starts as a copy of the parameters.
        auxiliary: The auxiliary networks by name, which start as copies as well.
        memory: Shapes and types of what the objective remembers; it starts with zeros.
        heads: Parameters of auxiliary networks that are of another kind.
    """

    def copies(trees: Mapping[str, Any]) -> dict[str, Any]:  # a step donates them all: no two may share memory
        return {name: jax.tree.map(jnp.copy, tree) for name, tree in trees.items()}

    params = {"online": online} | copies({name: heads.get(name, online) for name in auxiliary})
    averaged = dict.fromkeys(emas, online) | {ema: params[part] for ema, (part, _) in averages(auxiliary).items()}
    nothing = {name: jnp.zeros(array.shape, array.dtype) for name, array in memory.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, copies(averaged), tx.init(params), nothing)


def update_emas(
    emas: Mapping[str, Any],
    params: Any,
    decays: Mapping[str, float | PowerFunction],
    step: jax.Array,
    warmup: bool = True,
) -> dict[str, Any]:
    """Returns the EMAs after a step: decay · EMA + (1 − decay) · parameters.

    Args:
        emas: The EMAs before, by name.
        params: Parameters of the network after the step.
        decays: The decays by name, in [0, 1), or what gives them in every step.
        step: Number of steps done before.
        warmup: Whether decays start low, min(decay, (1 + step)/(10 + step)), so that the first parameters are soon
            forgotten. Power functions need none.
    """

    def share(decay: float | PowerFunction) -> Any:
        if isinstance(decay, PowerFunction):
            return decay.share(step)
        return 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else 1 - decay

    def update(name: str) -> Any:
        new_share = share(decays[name])
        return jax.tree.map(lambda ema, new: ema + new_share * (new - ema), emas[name], params)

    return {name: update(name) for name in emas}
