"""The job of python -m tim_jax.classify: a classifier of a run's examples, trained by their labels."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax.traverse_util import flatten_dict

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.networks.classifier import suited
from tim_jax.runs.input_pipeline import SourcePipeline, open_pipeline
from tim_jax.system import cluster, files
from tim_jax.system.progress import Bar
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.types import ClassScores, PyTree

LEARNING_RATE = 2e-3  # of Adam; falls to 0 as a cosine


def check(run: Run) -> None:
    """Raises ValueError for a run without labels that differ."""
    if run.config.model.condition != "class":
        raise ValueError(
            f"model.condition is {run.config.model.condition!r}; it must be 'class', as a classifier learns labels"
        )
    if run.config.model.num_classes < 2:
        raise ValueError(
            f"model.num_classes is {run.config.model.num_classes}; it must be at least 2, for a classifier has "
            "nothing else to tell apart"
        )


def fit(run: Run, steps: int, out: pathlib.Path) -> str:
    """Trains a classifier for so many steps, with a progress bar, writes it to the file `out`, and says how good it is.

    Examples are those that the run trains on, latents among them, in its batches.
    """
    module = suited(run.config.model.num_classes, min(run.image_shape[:2]))
    init_key, _ = jax.random.split(jax.random.key(run.config.seed))
    tx = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(params: PyTree, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = cast(ClassScores, module.apply({"params": params}, batch["x"])).logits
        right = (logits.argmax(-1) == batch["label"]).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), right

    def update(params: PyTree, opt_state: PyTree, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree, jax.Array]:
        grads, right = jax.grad(loss, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, right

    whole = sharding.replicated(run.mesh)
    first = jnp.zeros((1, 1, 1, run.image_shape[-1]))
    with on_mesh(run.mesh):
        params = jax.jit(lambda key: nn.unbox(module.init(key, first)["params"]), out_shardings=whole)(init_key)
        opt_state = jax.jit(tx.init, out_shardings=whole)(params)
        step = jax.jit(update, donate_argnums=(0, 1), out_shardings=whole)
        bar = Bar(batches(open_pipeline(run), out.parent, steps), total=steps, desc="classifier", unit="step")
        for batch in bar:
            params, opt_state, right = step(params, opt_state, batch)
        said = [f"{float(right):.1%} of the last batch are right"]
        if (held_out := open_held_out(run)) is not None:
            count = max(len(held_out.source) // held_out.plan.buckets[0].batch_size, 1)
            judge = jax.jit(lambda params, batch: loss(params, batch)[1], out_shardings=whole)
            share = np.mean([float(judge(params, batch)) for batch in batches(held_out, out.parent, count)])
            said = [f"{share:.1%} of what is held out", *said]
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        arrays = flatten_dict(jax.device_get(params), sep="/")
        files.replace(out, safetensors.numpy.save({name: np.asarray(array) for name, array in arrays.items()}))
    return ", ".join(said)


def batches(pipeline: SourcePipeline, folder: pathlib.Path, count: int) -> Iterator[dict[str, jax.Array]]:
    """The images, or latents, and labels of the first batches; bad records are listed in the folder."""
    account = data.Account(folder, jax.process_index(), pipeline.run.inputs.max_bad_share, cluster.summed)
    for batch, _ in itertools.islice(dataclasses.replace(pipeline, account=account).batches(0), count):
        yield {name: batch[name] for name in ("x", "label")}


def open_held_out(run: Run) -> SourcePipeline | None:
    """The part of the data that is not trained on, as the run would train on it; None if there is none."""
    for split in data.NOT_TRAINED_ON:
        if split != run.data.split:
            with contextlib.suppress(data.UnknownSplit):
                return open_pipeline(dataclasses.replace(run, inputs=dataclasses.replace(run.inputs, split=split)))
    return None
