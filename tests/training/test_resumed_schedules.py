"""What changes over training goes on where it was, when a run is resumed in the midst of it, also on another mesh."""

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers.configs import tiny_config
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.training import checkpoints, sharding, warm_start

STEPS, SAVED = 8, 3
MESH = {"mesh.data": "2", "mesh.fsdp": "2", "mesh.sequence": "2"}
# Each changes between the checkpoint and the end; α of α-Flow is 0 from step 6 on.
SCHEDULES = {
    "alphaflow": {"objective.bootstrap.alpha.end_share": "0.75", "objective.bootstrap.alpha.clamp": "0"},
    "soflow": {},
    "modular_mean_flow": {"objective.tangent.differentiate_steps": "6"},
    "scm": {"objective.tangent.warmup_steps": "6"},
}


def run_of(name, mesh):
    changes = {"data.batch_size": "16", "training.steps": str(STEPS), "ema.slow": "0.9"}
    config = tiny_config(f"objectives/{name}", changes | SCHEDULES[name] | mesh)
    return build(config, jax.devices()[: 8 if mesh else 1])


def go_on(run, state, steps):
    """The state after these steps, each on a batch of its own, and what they tell."""
    told = []
    for step in steps:
        rng = np.random.default_rng(step)
        batch = {
            key: rng.normal(size=value.shape).astype(value.dtype) if key == "x" else value
            for key, value in made_up_batch(run.config, 16).items()
        }
        state, metrics = run.trainer(state, sharding.put_batch(run.mesh, batch))
        told.append([float(metrics[key]) for key in ("loss", "grad_norm", "error_moving")])
    return state, np.array(told)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "alphaflow" else pytest.mark.nightly) for n in SCHEDULES]
)
def test_a_schedule_is_resumed_exactly_and_on_another_mesh(name, tmp_path):
    one = run_of(name, {})
    state, _ = go_on(one, one.trainer.create(), range(SAVED))
    saver = checkpoints.Saver(checkpoints.open_manager(epath.Path(tmp_path), 1))
    saver.save(SAVED, state, {})
    saver.close()
    end, whole = go_on(one, state, range(SAVED, STEPS))

    def resumed(run):
        found = warm_start.resume(warm_start.find(str(tmp_path), "checkpoint.resume"), run.trainer.abstract)
        return go_on(run, found, range(SAVED, STEPS))

    again, told = resumed(one)
    np.testing.assert_array_equal(told, whole)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(end))
    _, told = resumed(run_of(name, MESH))
    np.testing.assert_allclose(told, whole, rtol=2e-5, atol=2e-5)
