"""Queues of examples by class: the latest of each, in the order of rows, and padding is not among them."""

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions import memory

CLASSES, LENGTH = 3, 4


def empty():
    return {name: jnp.zeros(array.shape, array.dtype) for name, array in memory.queues((2,), CLASSES, LENGTH).items()}


def contents(queues):
    """The examples of each class, and of all, that the queues hold, oldest first."""
    held = []
    for queue, added in zip(*(np.asarray(queues[name]) for name in ("queue", "added")), strict=True):
        first = added % LENGTH if added >= LENGTH else 0
        held.append(np.roll(queue, -first, axis=0)[: min(added, LENGTH)])
    return held


def test_queues_hold_the_latest_examples():
    """Against lists, over batches with more examples of a class than a queue holds, and with none."""
    rng, queues, lists = np.random.default_rng(0), empty(), [[] for _ in range(CLASSES + 1)]
    push = jax.jit(memory.push)
    for batch in range(30):
        x = rng.standard_normal((11, 2)).astype(np.float32)
        label, present = rng.integers(0, 1 + batch % CLASSES, 11), rng.random(11) < 0.7
        queues = push(queues, x, label, present)
        for row in np.flatnonzero(present):
            lists[label[row]].append(x[row])
            lists[CLASSES].append(x[row])
        for held, kept in zip(contents(queues), lists, strict=True):
            np.testing.assert_array_equal(held, np.reshape(kept[-LENGTH:], (-1, 2)))
        assert (queues["added"] < 2 * LENGTH).all()
    found, there = memory.take(queues, jnp.array([CLASSES, 0]))
    np.testing.assert_array_equal(found, queues["queue"][np.array([CLASSES, 0])])
    assert there.shape == (2, LENGTH) and there.all()


def test_neither_padding_nor_what_is_not_finite_is_held():
    x = jnp.ones((3, 2)).at[2, 0].set(jnp.nan)
    queues = memory.push(empty(), x, jnp.array([1, 1, 0]), jnp.array([True, False, True]))
    assert jnp.isfinite(queues["queue"]).all()
    _, there = memory.take(queues, jnp.arange(CLASSES + 1))
    np.testing.assert_array_equal(there.sum(axis=1), [0, 1, 0, 1])
