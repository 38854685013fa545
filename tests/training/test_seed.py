"""The seed is an argument of compiled programs: another one compiles nothing and draws other numbers."""

import jax
import numpy as np
import pytest

from tim_jax.bench.compile import HIT, MISS, cache_in
from tim_jax.config.build import build, made_up_batch
from tim_jax.config.command_line import load_config
from tim_jax.training import sharding

SMALL = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "model.patch_size": "4", "data.batch_size": "8", "optimizer.warmup_steps": "0", "mesh.data": "2",
}  # fmt: skip
SEED = 1234567


def make_run(seed):
    return build(load_config("digits", SMALL | {"seed": str(seed)}), jax.devices()[:2])


def start(seed):
    """The first parameters and the loss of the first step, of a run that is built anew."""
    run = make_run(seed)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 8))
    state = run.trainer.create()
    params = jax.device_get(state.params["online"])
    return params, float(run.trainer(state, batch)[1]["loss"])


def test_another_seed_compiles_nothing(tmp_path):
    with cache_in(str(tmp_path)) as events:
        first, loss = start(0)
        compiled = events[MISS]
        assert compiled > 1
        events.clear()
        other, other_loss = start(SEED)
        assert events[MISS] == 0 and events[HIT] >= 2, "the programs of the first state and of the step are read"
        again, loss_again = start(0)
    assert loss == loss_again != other_loss
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


def test_the_program_of_a_step_does_not_hold_the_seed():
    def text(seed):
        run = make_run(seed)
        batch = sharding.abstract_batch(run.mesh, {"x": ((8, 8, 8, 1), np.float32), "label": ((8,), np.int32)})
        return run.trainer.trace(batch).lower().as_text()

    found = text(SEED)
    assert str(SEED) not in found and found == text(SEED + 1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_a_number_of_32_bits(seed):
    with pytest.raises(ValueError, match=f"^seed is {seed}; it must lie in 0 … 4294967295$"):
        make_run(seed)
    assert int(make_run(2**32 - 1).trainer.seed_array) == 2**32 - 1
