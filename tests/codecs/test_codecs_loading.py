"""Reading published folders: what is accepted, and how what is not is told."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tim_jax import codecs
from tim_jax.codecs import gemma

KINDS = codecs.AUTOENCODERS | codecs.TEXT_ENCODERS | codecs.IMAGE_ENCODERS


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def edit(folder, change):
    """Changes the weights of a folder; `change` takes them as a dict and changes it."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def configure(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_shards_and_a_single_file_give_the_same(published):
    folder = published("gemma3_text_tiny")
    _, whole = codecs.load(folder / "model.safetensors", KINDS)
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(codecs.load(folder, KINDS)[1], whole)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors: is not there, although the index"):
        codecs.load(folder, KINDS)


def test_half_precision_files_are_read_exactly(published):
    folder = published("gemma3_text_tiny")
    edit(folder, lambda state: state.update({name: array.astype(np.float16) for name, array in state.items()}))
    there = load_file(folder / "model.safetensors")
    _, params = codecs.load(folder, KINDS)
    same(params["embed_tokens"]["embedding"], there["embed_tokens.weight"].astype(np.float32))
    same(params["layers.0.mlp"]["up_proj"]["kernel"], there["layers.0.mlp.up_proj.weight"].astype(np.float32).T)


# Folder: (part of a name there, part in files of other versions) pairs, and a parameter that is not used.
OTHER_NAMES = {
    "autoencoder_kl_tiny": (
        [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")],
        None,
    ),
    "autoencoder_dc_tiny": ([], "decoder.up_blocks.0.1.norm.num_batches_tracked"),
    "net_rae_decoder": (
        [
            ("attention.attention.query.", "attention.to_q."),
            ("attention.attention.key.", "attention.to_k."),
            ("attention.attention.value.", "attention.to_v."),
            ("attention.output.dense.", "attention.to_out.0."),
        ],
        "_latents_mean",
    ),
    "gemma3_text_tiny": ([("embed_tokens.", "model.embed_tokens."), ("layers.", "model.layers.")], "lm_head.weight"),
    "dinov2_tiny": (
        [
            ("attention.q_proj.", "attention.attention.query."),
            ("attention.k_proj.", "attention.attention.key."),
            ("attention.v_proj.", "attention.attention.value."),
            ("attention.o_proj.", "attention.output.dense."),
        ],
        None,
    ),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_files_of_other_versions_give_the_same(published, name):
    folder = published(name)
    _, wanted = codecs.load(folder, KINDS)
    pairs, unused = OTHER_NAMES[name]

    def change(state):
        for key in list(state):
            new = key
            for here, there in pairs:
                new = new.replace(here, there)
            state[new] = state.pop(key)
        if unused:
            state[unused] = np.zeros(3, np.int64)

    edit(folder, change)
    assert any(there in key for key in load_file(folder / "model.safetensors") for _, there in pairs) == bool(pairs)
    same(codecs.load(folder, KINDS)[1], wanted)


def test_a_config_may_be_in_older_words(published):
    folder = published("gemma3_text_tiny")
    module, _ = codecs.load(folder, KINDS)
    older = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window_pattern": 6}
    configure(folder, rope_parameters=..., layer_types=..., _sliding_window_pattern=..., **older)
    assert codecs.load(folder, KINDS)[0] == module
    assert module.config.layer_types == (gemma.LOCAL,) * 5 + (gemma.GLOBAL, gemma.LOCAL)
    configure(folder, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert codecs.load(folder, KINDS)[0].config.rope_factor == 8


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def only_bin(folder):
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")


# Fault: (folder, what is done to it, what is said).
FAULTS = {
    "nothing": ("dinov2_tiny", shutil.rmtree, "is neither a folder nor a file"),
    "missing": (
        "dinov2_tiny",
        lambda f: edit(f, lambda s: s.pop("layernorm.bias")),
        r"model\.safetensors: does not fit its config.json: missing: layernorm\.bias$",
    ),
    "unknown": (
        "dinov2_tiny",
        lambda f: edit(f, lambda s: s.update({f"extra.{i}": np.zeros(1) for i in range(9)})),
        r"unknown: extra\.0, extra\.1, extra\.2, extra\.3 and 5 more$",
    ),
    "misshapen": (
        "autoencoder_kl_tiny",
        lambda f: edit(f, lambda s: s.update({"quant_conv.weight": np.zeros((8, 4, 1, 1), np.float32)})),
        r"misshapen: quant_conv\.weight \(8, 4, 1, 1\) instead of \(8, 8, 1, 1\)$",
    ),
    "whole numbers": (
        "dinov2_tiny",
        lambda f: edit(f, lambda s: s.update({"layernorm.bias": np.zeros(32, np.int8)})),
        "not floating point: layernorm.bias I8$",
    ),
    "twice": (
        "gemma3_text_tiny",
        lambda f: edit(f, lambda s: s.update({"model.norm.weight": s["norm.weight"]})),
        "is there twice, under two names",
    ),
    "truncated": ("autoencoder_dc_tiny", cut, r"model\.safetensors: is truncated or no safetensors file"),
    "mislabelled": (
        "autoencoder_dc_tiny",
        lambda f: (f / "model.safetensors").write_text("<html>Sign in to see this file</html>"),
        r"model\.safetensors: is truncated or no safetensors file",
    ),
    "another form": ("gemma3_text_tiny", only_bin, r"has no model\.safetensors or .*\.bin"),
    "no config": ("dinov2_tiny", lambda f: (f / "config.json").unlink(), r"config\.json: is not there"),
    "config is no JSON": ("dinov2_tiny", lambda f: (f / "config.json").write_text("{"), r"config\.json: is not JSON"),
    "another family": (
        "gemma3_text_tiny",
        lambda f: configure(f, model_type="gemma2"),
        "is that of 'gemma2'; known here are AutoencoderKL, AutoencoderDC, AutoencoderRAE, gemma3_text",
    ),
    "another network": (
        "autoencoder_kl_tiny",
        lambda f: configure(f, _class_name="AutoencoderDC"),
        "out_channels = 3 is not known",
    ),
    "unsupported": (
        "gemma3_text_tiny",
        lambda f: configure(f, attn_logit_softcapping=50.0),
        r"attn_logit_softcapping is 50\.0; supported is None alone",
    ),
    "unsupported entry": (
        "autoencoder_dc_tiny",
        lambda f: configure(f, decoder_norm_types=["rms_norm", "layer_norm", "rms_norm"]),
        "decoder_norm_types is .*; supported is 'rms_norm' or 'batch_norm' alone",
    ),
    "unsupported rope": (
        "gemma3_text_tiny",
        lambda f: configure(f, rope_parameters=..., rope_scaling={"rope_type": "yarn", "factor": 2}),
        "a rope_type is 'yarn'; supported is default or linear there",
    ),
    "giant": ("dinov2_tiny", lambda f: configure(f, use_swiglu_ffn=True), "use_swiglu_ffn is True; supported is False"),
    "unknown setting": (
        "dinov2_tiny",
        lambda f: configure(f, window=7),
        "window = 7 is not known; take it out if it changes no number",
    ),
    "no setting": ("dinov2_tiny", lambda f: configure(f, hidden_size=...), "config.json: has no hidden_size$"),
    "another type": (
        "dinov2_tiny",
        lambda f: configure(f, hidden_size="32"),
        "hidden_size is '32'; it must be int$",
    ),
    "stages": (
        "autoencoder_dc_tiny",
        lambda f: configure(f, encoder_layers_per_block=[1, 1]),
        r"encoder_layers_per_block is \(1, 1\); it must have an entry for each of 3 stages",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(published, fault):
    name, damage, message = FAULTS[fault]
    folder = published(name)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        codecs.load(folder, KINDS)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
