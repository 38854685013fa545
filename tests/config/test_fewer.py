"""With fewer devices a run makes the same global batches, and no device holds more examples at a time."""

import jax
import pytest

from tests.helpers.configs import tiny_config
from tim_jax.config import fewer
from tim_jax.config.build import build
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.transports import TRANSPORTS

OBJECTIVE = OBJECTIVES["tim"](TRANSPORTS["ot_fm"]())


def test_microbatches_are_the_fewest_that_fit_and_divide():
    """Against their definition, by trying."""
    for batch in (12, 16, 48, 60, 64):
        for full in range(1, 9):
            for shards in range(1, 9):
                fit = [
                    n
                    for n in range(1, batch + 1)
                    if batch % (shards * n) == 0 and batch // (shards * n) * full <= batch
                ]
                assert fewer.microbatches(batch, shards, full) == (fit[0] if fit else 0), (batch, shards, full)


@pytest.mark.parametrize(
    "changes, everyone, each, least, found",
    [
        ({"data.batch_size": "48"}, 4, 1, 1, [4, 3, 2, 1]),
        ({"data.batch_size": "48"}, 4, 1, 3, [4, 3]),
        ({"data.batch_size": "64"}, 4, 1, 1, [4, 2, 1]),
        ({"data.batch_size": "64"}, 4, 8, 1, [4, 2, 1]),
        ({"data.batch_size": "48", "optimizer.accumulation": "4"}, 4, 1, 1, [4, 3, 2, 1]),
        ({"data.batch_size": "12", "optimizer.accumulation": "3"}, 4, 1, 1, [4, 2, 1]),
        ({"data.batch_size": "48", "mesh.data": "2"}, 4, 1, 1, [4, 2]),  # mesh.fsdp is the rest
        ({"data.batch_size": "48", "mesh.data": "4", "mesh.fsdp": "1"}, 4, 1, 1, [4]),
        ({"data.batch_size": "48", "mesh.tensor": "2"}, 4, 1, 1, [4, 2]),
        ({"data.batch_size": "48", "mesh.tensor": "2"}, 4, 2, 1, [4, 3, 2, 1]),
    ],
)
def test_with_how_many_processes_a_run_can_go_on(changes, everyone, each, least, found):
    assert fewer.counts(tiny_config(changes=changes), OBJECTIVE, everyone, each, least) == found


@pytest.mark.parametrize("here, planned, given, microbatches", [(4, 4, 0, 1), (3, 4, 0, 2), (2, 4, 0, 2), (1, 4, 0, 4),
                                                                (3, 4, 4, 4), (3, 0, 0, 1), (3, 0, 2, 2)])  # fmt: skip
def test_a_smaller_mesh_accumulates(here, planned, given, microbatches):
    changes = {"data.batch_size": "48", "mesh.accumulation": str(given)}
    run = build(tiny_config(changes=changes), jax.devices()[:here], planned)
    assert run.trainer.step.accumulation == microbatches and run.config.mesh.accumulation == given
    assert run.batch_multiple == here * microbatches
