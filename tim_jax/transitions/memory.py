"""Memory banks: queues of examples by class, which are part of the training state.

A queue holds the latest examples of its class, and one more, after those of the classes, the latest of all. What is in
them follows from the batches alone, in the order of steps and of rows within a batch: on every mesh it is the same, bit
for bit.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Memory = dict[str, jax.Array]


def queues(example: tuple[int, ...], classes: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and types of queues, which are empty where they are all zeros.

    Args:
        example: The shape of an example.
        classes: The number of classes.
        length: How many examples a queue holds.

    Returns:
        "queue" (classes + 1, length, …), and "added" (classes + 1,), by which their places are known: how many were
        added, less a multiple of `length` once a queue is full.
    """

    def empty() -> Memory:
        return {
            "queue": jnp.zeros((classes + 1, length, *example), jnp.float32),
            "added": jnp.zeros(classes + 1, jnp.int32),
        }

    shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(empty)
    return shapes


def push(memory: Mapping[str, jax.Array], x: jax.Array, label: jax.Array, present: jax.Array) -> Memory:
    """Returns queues with the examples of a batch in the place of the oldest ones.

    Args:
        memory: The queues.
        x: The examples (B, …).
        label: Their classes (B,).
        present: (B,) bool, false for padding. Examples that are not finite are left out as well, since all steps that
            read them would fail.
    """
    queue, added = memory["queue"], memory["added"]
    count, length = queue.shape[:2]
    present = present & jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
    x, present = jnp.concatenate([x, x]), jnp.concatenate([present, present])
    label = jnp.concatenate([label, jnp.full_like(label, count - 1)])
    of_class = jax.nn.one_hot(label, count, dtype=bool) & present[:, None]
    total = of_class.sum(axis=0, dtype=jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(of_class, axis=0, dtype=jnp.int32), label[:, None], axis=1)[:, 0] - 1
    kept = present & (rank >= total[label] - length)  # of more than a queue holds, the last
    row = jnp.where(kept, label, count)  # beyond all queues for those that are not
    queue = queue.at[row, (added[label] + rank) % length].set(x.astype(queue.dtype), mode="drop")
    added = added + total
    return {"queue": queue, "added": jnp.where(added < length, added, length + added % length)}


def take(memory: Mapping[str, jax.Array], label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the queues (G, length, …) of some classes (G,), and which of their places are taken, (G, length)."""
    queue, added = memory["queue"], memory["added"]
    return queue[label], jnp.arange(queue.shape[1])[None] < added[label][:, None]
