"""The copy of a network that is meant in a file with several, under whatever prefix."""

import numpy as np
import pytest

from tests.helpers.torch_files import WRITERS, Call, Global, tensor
from tim_jax.codecs import copies, tensors

OWN = {"final_layer.linear.weight": 1.0, "blocks.0.x": 2.0}


def prefixed(prefix, factor=1.0):
    return {prefix + name: factor * value for name, value in OWN.items()}


# Prefixes of the copies in a file, the copy that is asked for, the index of the one that is taken.
CHOICES = {
    "bare": ([""], "", 0),
    "wrapped": (["module._orig_mod."], "", 0),
    "ema first": (["model.", "ema."], "", 1),
    "trained": (["ema.", "model."], "online", 1),
    "first of two emas": (["model.net.", "model_ema1.net.", "model_ema2.net."], "", 1),
    "by name": (["model.net.", "model_ema1.net.", "model_ema2.net."], "model_ema2", 2),
    "of lightning": (["state_dict.denoiser.", "state_dict.ema_denoiser."], "", 1),
    "one in another": (["", "ema."], "online", 0),
}


@pytest.mark.parametrize("case", CHOICES)
def test_one_copy_is_chosen(case):
    found, copy, index = CHOICES[case]
    names = [*[name for prefix in found for name in prefixed(prefix)], "optimizer.state.0.exp_avg"][
        : None if found[0] else -1
    ]
    assert copies.choose(names, copy) == {found[index] + name: name for name in OWN}
    assert copies.further(names) == (["optimizer.state.0.exp_avg"] if found[0] else [])


def test_a_copy_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--ema is 'slow'; it must be one of model, ema, which the file has"):
        copies.choose([*prefixed("model."), *prefixed("ema.")], "slow")
    assert copies.choose(["a.b"]) == {"a.b": "a.b"} and copies.further(["a.b"]) == []


@pytest.mark.parametrize("write", WRITERS)
def test_dictionaries_in_a_checkpoint_of_training_are_read(write, tmp_path):
    """Beside numbers, strings, an optimizer's state and the options of the command, which are not."""
    values = {name: np.full((2, 3), value, np.float32) for name, value in OWN.items()}
    storages, content = {}, {"epoch": 3, "args": Call(Global("argparse", "Namespace"))}
    for key, factor in (("model", 1), ("ema", 10)):
        content[key] = {}
        for name, value in values.items():
            number = str(len(storages))
            storages[number] = (factor * value).tobytes()
            content[key][f"module.{name}"] = tensor(number, value)
    content["opt"] = {"state": {0: {"step": 2}}, "name": "adam"}
    write(tmp_path / "checkpoint.pt", content, storages)
    found = tensors.read(tmp_path / "checkpoint.pt", copies.choose)
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], 10 * value)
    with pytest.raises(ValueError, match=r"checkpoint.pt: .*--ema is 'slow'"):
        tensors.read(tmp_path / "checkpoint.pt", lambda names: copies.choose(names, "slow"))
