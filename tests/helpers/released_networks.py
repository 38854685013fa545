"""Small files of the networks that others released, and what a workdir of one is made with."""

import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.helpers.configs import flags
from tests.helpers.torch_files import tensor, write_archive

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = {
    "model.width": "64", "model.depth": "2", "model.heads": "4", "model.encoder_depth": "1", "model.num_classes": "10",
    "model.dtype": "float32", "model.remat": "none", "data.height": "8", "data.width": "8", "data.batch_size": "8",
}  # fmt: skip
# Released networks by name: the golden file of one like it, and the keys that differ from TINY.
NETWORKS = {
    "sit_xl_2": ("net_sit", {}),
    "repa_sit_xl_2": ("net_repa_sit", {"model.projector_width": "32", "data.features_width": "24"}),
    "dit_xl_2_256": ("net_dit", {}),
    "lightningdit_xl_1": ("net_lightningdit", {"data.channels": "4"}),
    "jit_b_16": (
        "net_jit",
        {
            "data.height": "16",
            "data.width": "16",
            "model.patch_size": "4",
            "model.patch_bottleneck": "16",
            "model.class_tokens": "4",
            "model.context_start": "1",
        },
    ),
    "ddt_xl_2": ("net_ddt", {"model.decoder_depth": "1"}),
    "rae_ditdh_xl": (
        "net_rae_ditdh",
        {
            "data.height": "4",
            "data.width": "4",
            "data.channels": "24",
            "model.decoder_depth": "1",
            "model.decoder_width": "96",
            "model.decoder_heads": "4",
        },
    ),
}


def weights(name):
    """The arrays of the golden file of a released network."""
    return load_file(GOLDEN / f"{NETWORKS[name][0]}.safetensors")


def keys(name, more=()):
    """The flags of a small network like a released one."""
    return [f"--as={name}", *flags(TINY | NETWORKS[name][1] | dict(more))]


def save_plain(path, state, prefix=""):
    """One copy, all of whose names have a prefix."""
    save_file({prefix + name: array for name, array in state.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_checkpoint(path, state, prefix=""):
    """What training saves: the online weights, which are others, the EMA, and what else there is."""
    content, storages = {"epoch": 80, "optimizer": {"state": {}, "name": "adamw"}}, {}
    for copy, change in (("model", lambda array: array + np.float32(1)), ("ema", lambda array: array)):
        content[copy] = {}
        for name, array in state.items():
            number, values = str(len(storages)), np.ascontiguousarray(change(array))
            content[copy][prefix + name], storages[number] = tensor(number, values), values.tobytes()
    write_archive(path.with_suffix(".pt"), content, storages)
    return path.with_suffix(".pt")


WRITERS = (save_plain, save_checkpoint)
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "denoiser.net.")


def write(folder, name, seed=0, change=lambda state: None):
    """A file of a released network's golden weights, of one of the kinds that others write, and its arrays."""
    rng, state = np.random.default_rng((seed, sorted(NETWORKS).index(name))), weights(name)
    change(state)
    writer, prefix = WRITERS[rng.integers(len(WRITERS))], PREFIXES[rng.integers(len(PREFIXES))]
    return writer(folder / name, state, prefix), state
