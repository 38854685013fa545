"""Every network trains from scratch with objectives of each kind, and samples in one step and in several."""

import json

import numpy as np
import pytest

from tests.helpers.configs import flags
from tests.helpers.workdirs import one_device
from tests.networks.test_all_networks import NAMES
from tim_jax import load, train

SMALL = {
    "model.size": "XS", "model.width": "16", "model.depth": "2", "model.heads": "2", "model.encoder_depth": "1",
    "model.patch_size": "4",
    "data.batch_size": "8", "training.steps": "2", "training.log_every": "1", "training.sample_every": "0",
    "optimizer.warmup_steps": "0", "sampling.ema": "online",
}  # fmt: skip
# Further keys of small networks.
OWN = {"jit": {"model.patch_bottleneck": "8", "model.class_tokens": "4", "model.context_start": "1"}}
# By jax.jvp; by jumps of its own; with a head for the velocity, and guidance as an input.
OBJECTIVES = ("tim", "mean_flow", "shortcut", "improved_mean_flow")
# Every network with one objective and one network with every objective are slow, and the other pairs nightly.
PAIRS = [
    pytest.param(name, objective, marks=pytest.mark.slow if "tim" in (name, objective) else pytest.mark.nightly)
    for name in NAMES
    for objective in OBJECTIVES
]


@pytest.mark.parametrize("name, objective", PAIRS)
def test_a_network_trains_from_scratch_and_samples(name, objective, tmp_path):
    changes = SMALL | OWN.get(name, {}) | {"model.network": name, "objective.name": objective}
    with one_device():
        train.main(["--config=base", f"--workdir={tmp_path}", *flags(changes)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all() and losses[0] > 0
    with one_device():
        model = load(tmp_path)
        assert [image.size for steps in (1, 3) for image in model([1, 2], steps=steps)] == [(8, 8)] * 4
