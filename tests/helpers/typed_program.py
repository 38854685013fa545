"""A typed program of a user's, which mypy checks as strictly as it can: what the package exports has types."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from PIL import Image

import tim_jax
from tim_jax.transitions import (
    OBJECTIVES,
    SAMPLERS,
    TRANSPORTS,
    Examples,
    Net,
    Objective,
    Output,
    Query,
    Sampling,
    Times,
    Transport,
    as_net,
    generate,
    make_plan,
    mean_loss,
    sample,
    time_grid,
    unweighted,
)


@dataclasses.dataclass(frozen=True)
class Scaled(Objective):
    """An objective of one's own, with a knob."""

    scale: float = 2.0

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        losses, metrics = super().loss(nets, examples, t, r, step, key)
        return self.scale * losses, metrics


def net(x: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
    return x * (t - r)[:, None]


def house_net(queries: tuple[Query, ...]) -> tuple[Output, ...]:
    return tuple(Output(query.x_t) for query in queries)


def train(transport: Transport, x: jax.Array, key: jax.Array) -> float:
    objective: Objective = Scaled(transport, Times())
    loss, metrics = mean_loss(objective, net, x, key)
    error: jax.Array = metrics["error"]
    make: Callable[[Transport], Objective] = OBJECTIVES["tim"]
    return float(loss) + float(error.mean()) + float(mean_loss(make(transport), net, x, key, step=0)[0])


def draw(noise: jax.Array, key: jax.Array) -> jax.Array:
    transport = TRANSPORTS["ot_fm"]()
    sampling = Sampling(sampler=next(iter(SAMPLERS)))
    plan = make_plan(transport, time_grid(transport, 4, sampling), sampling)
    both: tuple[Net, ...] = (house_net, as_net(net))
    drawn = [sample(one, plan, noise, None, None, jax.random.split(key, len(noise))) for one in both]
    return jnp.stack([*drawn, generate(unweighted(transport, Times()), net, noise, steps=4, sampling=sampling)])


def images(path: str) -> list[Image.Image]:
    tim = tim_jax.load(path, plugin="mine.py", sampling={"guidance": 1.5})
    drawn = tim([1, 2], steps=4, count=2)
    drawn.save("grid.png")
    step: int | None = tim.step
    print(step, tim.path, tim.facts()["objective"])
    return drawn
