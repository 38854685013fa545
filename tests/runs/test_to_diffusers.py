"""A DiT as a folder of diffusers: its names and shapes; what it refuses, and the file of PyTorch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import workdirs
from tim_jax import convert
from tim_jax.runs import conversion

DIT = workdirs.TINY | {
    "model.network": "dit", "model.bottleneck": "0", "model.learn_sigma": "True", "model.depth": "2",
    "transport.name": "ddpm", "objective.name": "flow_matching",
}  # fmt: skip
# diffusers 0.35.2: the parameters of DiTTransformer2DModel, those of a block with * for its number, and their shapes
# for width D, patches of p × p, C channels, and k classes.
SHAPES = {
    "pos_embed.proj.weight": "D C p p",
    "pos_embed.proj.bias": "D",
    "transformer_blocks.*.norm1.emb.timestep_embedder.linear_1.weight": "D 256",
    "transformer_blocks.*.norm1.emb.timestep_embedder.linear_1.bias": "D",
    "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2.weight": "D D",
    "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2.bias": "D",
    "transformer_blocks.*.norm1.emb.class_embedder.embedding_table.weight": "k+1 D",
    "transformer_blocks.*.norm1.linear.weight": "6*D D",
    "transformer_blocks.*.norm1.linear.bias": "6*D",
    "transformer_blocks.*.attn1.to_q.weight": "D D",
    "transformer_blocks.*.attn1.to_q.bias": "D",
    "transformer_blocks.*.attn1.to_k.weight": "D D",
    "transformer_blocks.*.attn1.to_k.bias": "D",
    "transformer_blocks.*.attn1.to_v.weight": "D D",
    "transformer_blocks.*.attn1.to_v.bias": "D",
    "transformer_blocks.*.attn1.to_out.0.weight": "D D",
    "transformer_blocks.*.attn1.to_out.0.bias": "D",
    "transformer_blocks.*.ff.net.0.proj.weight": "4*D D",
    "transformer_blocks.*.ff.net.0.proj.bias": "4*D",
    "transformer_blocks.*.ff.net.2.weight": "D 4*D",
    "transformer_blocks.*.ff.net.2.bias": "D",
    "proj_out_1.weight": "2*D D",
    "proj_out_1.bias": "2*D",
    "proj_out_2.weight": "p*p*2*C D",
    "proj_out_2.bias": "p*p*2*C",
}


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(changes): a workdir of a DiT."""
    return lambda **changes: workdirs.workdir(tmp_path_factory.mktemp("dit") / "run", "digits", **DIT | changes)


def untrained(folder):
    """A copy of exported weights of the workdir, whose embedder of the interval is as at first."""
    found = conversion.read_export(str(folder), "", "float32")
    return found._replace(state={key: value for key, value in found.state.items() if "delta_embedder" not in key})


def test_names_and_shapes_are_those_of_diffusers(made, tmp_path, monkeypatch):
    run = made()
    exported = untrained(run)
    monkeypatch.setattr(conversion, "read_export", lambda *_: exported)
    out = tmp_path / "out"
    convert.main(["export", str(run), str(out), "--to=diffusers"])
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    config = json.loads((out / "transformer" / "config.json").read_text())
    heads = config["num_attention_heads"]
    sizes = {"D": heads * config["attention_head_dim"], "C": 1, "p": config["patch_size"], "k": 10}
    shapes = {
        name.replace("*", str(block)): tuple(eval(size, sizes) for size in shape.split())
        for name, shape in SHAPES.items()
        for block in range(config["num_layers"])
    }
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {name: array.shape for name, array in weights.items()} == shapes
    parts = [weights[f"transformer_blocks.1.attn1.to_{part}.weight"] for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), exported.state["blocks.1.attn.qkv.weight"])
    assert (config["out_channels"], config["sample_size"]) == (2, 16)
    card = (out / "README.md").read_text()
    for said in ("DiTPipeline.from_pretrained('out', vae=vae)", "downscale_freq_shift = 0", "which here is 10"):
        assert said in card
    assert "tim_jax.load" not in card


REFUSED = [
    ({"transport.name": "ot_fm"}, "transport.name is 'ot_fm'; it must be 'ddpm'"),
    ({"model.negated": "True"}, "model.negated is True; it must be False with --to=diffusers"),
    ({}, "whose network has no delta_embedder"),
]


@pytest.mark.parametrize("changes, message", REFUSED)
def test_what_diffusers_does_not_have_is_one_line_and_nothing_is_written(made, tmp_path, changes, message, capsys):
    line = ["export", str(made(**changes)), str(tmp_path / "out"), "--to=diffusers"]
    assert message in workdirs.told(convert.main, line, capsys)
    assert not list(tmp_path.iterdir())


REFUSED_BY_TORCH = [
    ([], "sampling.sampler is 'unipc_2'; it must be one of flow_map, euler, heun, consistency with --to=torch"),
    (["--config.sampling.sampler=euler", "--config.model.depth=3"], "--config.model.depth: export changes no"),
    (["--config.sampling.sampler=flow_map", "--config.sampling.stochasticity=0.5"], "sampling.stochasticity is 0.5"),
]


@pytest.mark.parametrize("flags, message", REFUSED_BY_TORCH)
def test_what_the_file_of_pytorch_does_not_have_is_one_line(made, tmp_path, flags, message, capsys):
    run = made(**{"sampling.sampler": "unipc_2"})
    line = ["export", str(run), str(tmp_path / "out"), "--to=torch", *flags]
    with pytest.raises(SystemExit) as stop:
        convert.main(line)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and not list(tmp_path.iterdir())


def test_a_file_alone_is_no_folder(tmp_path, capsys):
    line = ["export", str(tmp_path), str(tmp_path / "out.safetensors"), "--to=torch"]
    assert "--to is 'torch'; it writes a folder" in workdirs.told(convert.main, line, capsys)
