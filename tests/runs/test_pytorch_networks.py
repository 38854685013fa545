"""Networks in PyTorch against the answers of their published implementations."""

import importlib
import pathlib

import numpy as np
import pytest
import torch

from tim_jax.networks import NETWORKS
from tim_jax.runs import to_torch

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
SINGLE = {
    "width": 64,
    "heads": 4,
    "depth": 2,
    "num_classes": 10,
    "interval": "modulation",
    "clock": "t",
    "negated": False,
}
DIT = SINGLE | {"learn_sigma": False, "positions": "sincos", "positions_side": 0, "patch_size": 2, "channels": 4}
DDT = SINGLE | {"decoder_depth": 1, "decoder_width": 0, "decoder_heads": 0, "patch_size": 2, "channels": 4}
DITDH = DDT | {"patch_size": 1, "channels": 24, "positions": "sincos", "positions_side": 0}
JIT = {"patch_bottleneck": 16, "context_start": 1, "class_tokens": 4, "patch_size": 4, "channels": 3}
# By file: the network's name, and its arguments.
NETS = {
    "net_sit": ("sit", DIT | {"learn_sigma": True}),
    "net_dit": ("dit", DIT | {"learn_sigma": True}),
    "net_repa_sit": ("sit", DIT),
    "net_lightningdit": ("lightningdit", DIT | {"patch_size": 1, "qk_norm": False, "shift": True}),
    "net_lightningdit_qknorm_noshift": ("lightningdit", DIT | {"qk_norm": True, "shift": False}),
    "net_jit": ("jit", DIT | JIT | {"qk_norm": True, "shift": True}),
    "net_ddt": ("ddt", DDT),
    "net_rae_ditdh": ("ditdh", DITDH | {"decoder_width": 96, "qk_norm": False}),
    "net_rae_ditdh_qknorm": ("ditdh", DITDH | {"qk_norm": True}),
}


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_those_of_the_published_network(name):
    network, arguments = NETS[name]
    template = to_torch.NETWORKS[network]
    assert set(arguments) <= set(template.arguments)
    folder = "tim_jax.runs.pytorch"
    net = getattr(importlib.import_module(f"{folder}.{template.modules[-1]}"), template.name)(**arguments).double()
    state = importlib.import_module(f"{folder}.weights").read_safetensors(GOLDEN / f"{name}.safetensors")
    missing = net.load_state_dict(state, strict=False).missing_keys
    assert all(key.startswith("delta_embedder.") for key in missing)
    answers = {key: torch.from_numpy(array) for key, array in np.load(GOLDEN / f"{name}.npz").items()}
    for x, output in (("x", "output"), ("x_rect", "output_rect")):
        if x in answers:
            count = len(answers[x])
            t, label, expected = answers["t"][:count], answers["labels"][:count], answers[output]
            with torch.no_grad():
                found = net(answers[x], t, t, label)
            np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_one_in_pytorch(name):
    """Whose arguments are fields here."""
    fields = set(NETWORKS[name].__dataclass_fields__)
    assert set(to_torch.NETWORKS[name].arguments) <= fields
