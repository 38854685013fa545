"""What the optimizer's part of a step needs beside parameters, gradients and state, from the compiled program."""

import functools

import jax
import jax.numpy as jnp

from tim_jax.system import timing
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import first_state
from tim_jax.training.step import PER_EXAMPLE, StepSettings, train_step
from tim_jax.types import Auxiliary

WIDTH = 2**16


def settings():
    """A step of one layer, whose activations are small beside its parameters."""
    optimizer = OptimizerSettings()

    def objective(nets, examples, step, key, number):
        zeros = jnp.zeros(examples.x.shape[0])
        loss = nets["online"](examples.x)
        return loss, {**dict.fromkeys((*PER_EXAMPLE, "tangent", "alignment"), zeros), "loss": loss}

    def net(params):
        return lambda x: jnp.square(x.reshape(x.shape[0], -1) @ params["w"]).mean(-1)

    return StepSettings(
        nets=dict.fromkeys(("online", "float32", "ema"), net),
        objective=objective,
        tx=make_optimizer(optimizer, {"online": Auxiliary()}),
        schedule=make_schedule(optimizer),
        emas={"slow": 0.999},
        conditions=lambda batch, is_null: ({}, {}),
    )


def test_state_is_written_in_place_once_an_update_is_known_to_be_finite():
    """There are the gradient, clipped, and the update; selected by an element, the new state lay beside the old one."""
    step = settings()
    params = {"w": jax.ShapeDtypeStruct((64, WIDTH), jnp.float32)}
    state = jax.eval_shape(lambda params: first_state(params, step.tx, step.emas, {}, {}, {}), params)
    batch = {"x": jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)}
    train = jax.jit(functools.partial(train_step, step), donate_argnums=0)
    compiled = train.lower(state, batch, jax.ShapeDtypeStruct((), jnp.uint32)).compile()
    assert timing.temporary_bytes(compiled) < 3.1 * 4 * 64 * WIDTH
    assert f"f32[64,{WIDTH}]{{1,0}} copy(" not in compiled.as_text()
