"""The seed is an argument of compiled programs: another one compiles nothing and draws other numbers."""

import jax
import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK
from tim_jax.bench.compile import HIT, MISS, cache_in
from tim_jax.config.batches import batch_spec, made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.training import sharding

SMALL = {
    **TINY_NETWORK,
    "model.patch_size": "4", "data.batch_size": "8", "optimizer.warmup_steps": "0",
}  # fmt: skip
SEED = 1234567


def make_run(seed):
    return build(load_config("digits", SMALL | {"seed": str(seed)}), jax.devices()[:1])


def start(seed):
    """The first parameters, the loss of the first step and its program, of a run that is built anew."""
    run = make_run(seed)
    program = run.trainer.trace(sharding.abstract_batch(run.mesh, batch_spec(run.config, 8, (8, 8)))).lower().as_text()
    state = run.trainer.create()
    params = jax.device_get(state.params["online"])
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 8))
    return params, float(run.trainer(state, batch)[1]["loss"]), program


@pytest.mark.slow
def test_another_seed_compiles_nothing(tmp_path):
    with cache_in(str(tmp_path)) as events:
        first, loss, program = start(0)
        assert events[MISS] > 1
        events.clear()
        other, other_loss, other_program = start(SEED)
        assert events[MISS] == 0 and events[HIT] >= 2, "the programs of the first state and of the step are read"
    assert program == other_program and str(SEED) not in program
    assert loss != other_loss
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


@pytest.mark.parametrize(
    "seed, right", [(-1, "lie in 0 … 4294967295"), (2**32, "be a whole number .* at most 32 bits")]
)
def test_a_seed_is_a_number_of_32_bits(seed, right):
    with pytest.raises(ValueError, match=f"^seed is {seed}; it must {right}$"):
        make_run(seed)
    assert int(make_run(2**32 - 1).trainer.seed_array) == 2**32 - 1
