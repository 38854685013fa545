"""What an objective remembers: the same bits on every mesh and after a resumption, and nothing of updates left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.overrides import override
from tim_jax.plan.memory import shard_bytes
from tim_jax.training import checkpoints, sharding

SMALL = {
    "data.batch_size": "64", "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8",
    "model.encoder_depth": "1", "model.patch_size": "4", "optimizer.warmup_steps": "0", "objective.name": "drifting",
    "objective.drift.samples": "8", "objective.drift.queue": "12", "objective.drift.guidance": "1.5",
    "model.remat": "none",
}  # fmt: skip
MESHES = [{}, {"mesh.data": "2", "mesh.fsdp": "4"}, {"mesh.fsdp": "2", "mesh.sequence": "2"}]
STEPS = 6


def made(changes):
    """A run on as many devices as its mesh has."""
    sizes = [int(value) for key, value in changes.items() if key.startswith("mesh.")]
    config = override(loading.load("base").get_config(), SMALL | changes)
    return build(config, jax.devices()[: int(np.prod(sizes or [1]))])


def batch(step, rows=64):
    rng = np.random.default_rng(step)
    x, label = rng.standard_normal((rows, 8, 8, 1), np.float32), rng.integers(0, 10, rows).astype(np.int32)
    return {"x": x, "label": label, "weight": (np.arange(rows) % 16 < 15).astype(np.float32)}


def trained(run, state, steps):
    losses = []
    for step in steps:
        state, metrics = run.trainer(state, sharding.put_batch(run.mesh, batch(step)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.slow
def test_a_run_that_stops_goes_on_with_the_same_memory_on_another_mesh(tmp_path):
    """All in one go on one device, and stopped twice, each time to go on on other devices."""
    whole = made(MESHES[0])
    expected, losses = trained(whole, whole.trainer.create(), range(STEPS))
    seen, state = [], None
    for part, mesh in enumerate(MESHES):
        run = made(mesh)
        manager = checkpoints.open_manager(epath.Path(tmp_path), 1)
        state = checkpoints.restore(manager, run.trainer.abstract) if part else run.trainer.create()
        assert int(state.step) == 2 * part
        state, found = trained(run, state, range(2 * part, 2 * part + 2))
        seen += found
        saver = checkpoints.Saver(manager)
        saver.save(int(state.step), state, {})
        saver.close()
        assert saver.failures == []
    assert state.memory.keys() == expected.memory.keys() == {"queue", "added"}
    for name, array in state.memory.items():
        np.testing.assert_array_equal(array, expected.memory[name])
    np.testing.assert_allclose(seen, losses, rtol=2e-5)


@pytest.mark.slow
def test_microbatches_read_the_memory_of_the_whole_batch_and_a_failed_update_leaves_it():
    run, halves = made({}), made({"optimizer.accumulation": "2"})
    (state, _), (in_halves, losses) = (trained(each, each.trainer.create(), range(2)) for each in (run, halves))
    for name, array in state.memory.items():
        np.testing.assert_array_equal(array, in_halves.memory[name])
    assert np.isfinite(losses).all()
    before = jax.device_get(state.memory)
    bad = batch(2) | {"noise": np.full((64, 8, 8, 1), np.nan, np.float32)}
    state, metrics = run.trainer(state, jax.tree.map(jnp.asarray, bad))
    assert metrics["nonfinite"] == 1 and int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.memory), before)


def test_queues_lie_over_fsdp_and_are_counted():
    run = made({"mesh.data": "2", "mesh.fsdp": "4"})
    queue = run.trainer.abstract.memory["queue"]
    assert queue.shape == (11, 12, 8, 8, 1) and queue.sharding.shard_shape(queue.shape)[1] == 3
    assert shard_bytes(run.trainer.abstract.memory) == 4 * (11 * 3 * 64 + 11)
    assert build(loading.load("base").get_config(), jax.devices()[:1]).trainer.abstract.memory == {}
