"""Networks beside the student that make several updates in a step: those of a loop by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.waves import plain_times, random
from tim_jax.training.nets import class_conditions
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import first_state, step_key
from tim_jax.training.step import StepSettings, make_examples, train_step
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.types import Auxiliary, Output

STEPS, RATE, WARMUP = 3, 0.05, 2


def network(params):
    """A network of two matrices, which sees both times."""

    def net(queries):
        def F(q):
            inputs = jnp.concatenate([q.x_t.reshape(len(q.t), -1), q.t[:, None], q.r[:, None]], axis=1)
            return (jnp.tanh(inputs @ params["in"]) @ params["out"]).reshape(q.x_t.shape)

        return tuple(Output(F(q)) for q in queries)

    return net


def parameters(seed):
    return {"in": random(seed, (14, 8)), "out": 0.3 * random(seed + 1, (8, 12))}


def a_batch():
    return {"x": random(0), "label": jnp.arange(16) % 3, "weight": jnp.ones(16).at[-3:].set(0.0)}


def settings_of(auxiliary):
    objective = OBJECTIVES["distribution_matching"](plain_times("ot_fm"))
    matching = dataclasses.replace(objective.matching, network=auxiliary, weight=2.0)
    objective = dataclasses.replace(objective, matching=matching, rollout=Rollout(2))
    optimizer = OptimizerSettings(learning_rate=RATE, warmup_steps=WARMUP, clip=0.0)
    return StepSettings(
        nets=dict.fromkeys(("online", "ema", "float32", "teacher"), network),
        objective=objective,
        tx=make_optimizer(optimizer, {"online": Auxiliary(), **objective.auxiliary}),
        schedule=make_schedule(optimizer),
        emas={"slow": 0.9},
        conditions=class_conditions(3),
        auxiliary=objective.auxiliary,
    )


class ByHand:
    """The same steps in a loop, by an AdamW for each network."""

    def __init__(self, settings, online, teacher):
        self.settings, self.objective = settings, settings.objective
        self.own, self.teacher = self.objective.matching.network, network(teacher)
        self.params, self.average = {"online": online, "score": online}, online
        updates = {"online": (RATE, 1), "score": (self.own.learning_rate or RATE, self.own.updates)}

        def adam(rate, count):  # whose warm-up takes as many steps, whatever the number of updates in each
            schedule = lambda n: rate * jnp.minimum((n + 1) / (WARMUP * count), 1.0)  # noqa: E731
            return optax.adamw(schedule, b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.01)

        self.tx = {name: adam(*given) for name, given in updates.items()}
        self.state = {name: tx.init(self.params[name]) for name, tx in self.tx.items()}
        self.updates = {name: jax.jit(tx.update) for name, tx in self.tx.items()}
        self.examples = jax.jit(functools.partial(make_examples, settings))
        self.gradients = {
            name: jax.jit(jax.grad(lambda params, *rest, name=name: self.losses(params, *rest)[name]))
            for name in self.params
        }

    def losses(self, params, average, examples, key, step):
        """Mean losses of student and score."""
        nets = {name: network(tree) for name, tree in params.items()} | {"teacher": self.teacher}
        if self.own.average:
            nets["score_average"] = network(average)
        rollout_key, term_key = jax.random.split(key)
        x = self.objective.rollout(self.objective, nets, examples, rollout_key)
        of_student, of_score, _ = self.objective.matching(self.objective, nets, examples, x, step, term_key)
        weight = examples.weight / examples.weight.sum()
        return {"online": 2.0 * jnp.sum(of_student * weight), "score": jnp.sum(of_score * weight)}

    def gradient(self, name, examples, key, step):
        return self.gradients[name](self.params, self.average, examples, key, step)[name]

    def update(self, name, gradient):
        updates, self.state[name] = self.updates[name](gradient, self.state[name], self.params[name])
        self.params[name] = optax.apply_updates(self.params[name], updates)

    def step(self, step, seed):
        examples_key, key = jax.random.split(step_key(seed, step))
        examples = self.examples(a_batch(), examples_key)
        for turn in range(self.own.updates - 1):
            turn_key = jax.random.fold_in(key, jnp.uint32(2**32 - 4 - turn))
            self.update("score", self.gradient("score", examples, turn_key, step))
        key = jax.random.fold_in(key, jnp.uint32(2**32 - 3))
        found = {name: self.gradient(name, examples, key, step) for name in self.params}
        for name, gradient in found.items():
            self.update(name, gradient)
        share = 1 - min(self.own.average, (1 + step) / (10 + step))
        self.average = jax.tree.map(lambda a, new: a + share * (new - a), self.average, self.params["score"])
        return {"grad_norm": optax.tree.norm(found["online"]), "grad_norm_score": optax.tree.norm(found["score"])}


@pytest.mark.parametrize(
    "auxiliary",
    [
        pytest.param(Auxiliary(), marks=pytest.mark.slow),
        pytest.param(Auxiliary(updates=3), marks=pytest.mark.slow),
        Auxiliary(learning_rate=0.02, updates=3, average=0.9),
    ],
    ids=str,
)
def test_updates_are_those_of_a_loop(auxiliary, x64):
    """The score's alone, then those of both; with the gradient of its own loss in each."""
    settings, seed = settings_of(auxiliary), jnp.uint32(5)
    online, teacher = parameters(10), parameters(20)
    state = first_state(online, settings.tx, settings.emas, settings.auxiliary)
    hand, step = ByHand(settings, online, teacher), jax.jit(lambda *given: train_step(settings, *given))
    for number in range(STEPS):
        state, metrics, _ = step(state, a_batch(), seed, {"teacher": teacher})
        norms = hand.step(number, seed)
        np.testing.assert_allclose([metrics[name] for name in norms], list(norms.values()), rtol=1e-6)
        assert metrics["nonfinite"] == 0 and min(norms.values()) > 1e-3
    found, expected = (state.params,), (hand.params,)
    if auxiliary.average:
        found, expected = (*found, state.emas["score_average"]), (*expected, hand.average)
    # Learning rates are computed in single precision.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), found, expected)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), state.params["score"], online)
    assert min(jax.tree.leaves(moved)) > RATE / 10
