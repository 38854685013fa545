"""The numbers of one device on every mesh, over many steps and several buckets, for the class and the text network."""

import jax
import numpy as np
import pytest

from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.networks.attention import blockwise
from tim_jax.training import sharding

STEPS = 20
AXES = ("data", "fsdp", "tensor", "sequence")
BLOCKWISE, REMAT = {"model.attention": "blockwise"}, {"model.remat": "full"}
# Sizes of the axes, and what else is not as on the one device. Four heads go over `tensor` and `sequence` where these
# divide them; in the last one keys and values are gathered.
MESHES = {
    (8, 1, 1, 1): {}, (1, 8, 1, 1): {}, (2, 4, 1, 1): {}, (2, 2, 2, 1): {},
    (4, 1, 1, 2): BLOCKWISE, (2, 1, 1, 4): {}, (1, 2, 2, 2): REMAT, (1, 2, 1, 4): BLOCKWISE | REMAT,
    (1, 1, 2, 4): BLOCKWISE,
}  # fmt: skip
# Rows and shape of the batches in turn. Eight devices have 5 and 2 rows each; with four fifths at r = t the split is
# whole (4 and 1) in the first and not in the second. Four devices of `sequence` have 4 and 3 tokens.
BATCHES = [(40, (8, 8)), (16, (4, 12))]
SMALL = {
    "model.width": "32", "model.depth": "2", "model.heads": "4", "model.bottleneck": "16", "model.encoder_depth": "1",
    "model.patch_size": "2", "data.batch_size": "40", "optimizer.warmup_steps": "0",
}  # fmt: skip
KINDS = {
    "class": {},
    "text": {
        "model.condition": "text", "data.text_width": "8", "data.text_tokens": "5", "data.features_width": "12",
        "objective.alignment_weight": "0.5", "model.projector_width": "16", "model.dropout": "0.1",
    },
}  # fmt: skip
COMPARED = ("loss", "error_equal", "error_moving", "grad_norm", "tangent_rms", "alignment")


def run(kind: str, mesh: tuple[int, ...], changes: dict[str, str]):
    """Metrics (STEPS, names) and the last parameters."""
    sizes = {f"mesh.{axis}": str(size) for axis, size in zip(AXES, mesh, strict=True)}
    config = load_config("digits", SMALL | KINDS[kind] | changes | sizes)
    built = build(config, jax.devices()[: np.prod(mesh)])
    batches = [sharding.put_batch(built.mesh, made_up_batch(config, rows, shape)) for rows, shape in BATCHES]
    state, history = built.trainer.create(), []
    for step in range(STEPS):
        state, metrics = built.trainer(state, batches[step % len(batches)])
        history.append([float(metrics[name]) for name in COMPARED])
    return np.array(history), jax.device_get(state.params)


@pytest.fixture(scope="module", params=list(KINDS))
def one_device(request):
    return request.param, run(request.param, (1, 1, 1, 1), {})


# Each axis alone or with others in a few of them; all of them are a matter of many minutes.
NIGHTLY = pytest.mark.nightly
SOME = {"class": [(8, 1, 1, 1), (2, 4, 1, 1), (1, 2, 2, 2)], "text": [(1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4)]}


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_numbers_of_one_device(mesh, one_device, monkeypatch):
    check(mesh, one_device, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("which", [pytest.param(0, marks=NIGHTLY), 1, pytest.param(2, marks=NIGHTLY)])
def test_a_mesh_gives_the_numbers_of_one_device(which, one_device, monkeypatch):
    check(SOME[one_device[0]][which], one_device, monkeypatch)


def check(mesh, one_device, monkeypatch):
    """Compares the steps on a mesh with those on one device."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)  # so that few tokens are several blocks
    kind, (history, params) = one_device
    here, params_here = run(kind, mesh, MESHES[mesh])
    np.testing.assert_allclose(here, history, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), params_here, params)
