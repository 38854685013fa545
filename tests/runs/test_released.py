"""A text model in the official files: imported, sampled from with a prompt, trained on captioned images, exported."""

import json
import pathlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.codecs.test_codecs_tokenizer import trained
from tests.helpers import workdirs
from tests.helpers.configs import flags
from tests.helpers.torch_files import save_torch
from tim_jax import codecs, convert, sample, train
from tim_jax.codecs.loading import LEAVES, shapes_of
from tim_jax.runs.outputs.layouts import read_settings

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODEL = {
    "model.width": "64", "model.depth": "3", "model.heads": "4", "model.bottleneck": "24", "model.encoder_depth": "2",
    "model.projector_width": "32", "model.patch_size": "2", "model.dtype": "float32", "data.height": "8",
    "data.width": "8", "data.channels": "4", "data.features_width": "16", "data.text_width": "24",
    "data.text_tokens": "32", "data.buckets.area": "64", "data.buckets.tokens": "64", "model.remat": "none",
}  # fmt: skip
RATE = 4e-4  # of learning, as the configuration has it


def of_other_sizes(name, kinds, folder, **changes):
    """A folder like that of a published model, with a golden model's configuration but for `changes`."""
    folder.mkdir()
    config = json.loads((GOLDEN / f"{name}.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()  # for now: a folder without is none
    rng, state = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(shapes_of(codecs.describe(folder, kinds))).items():
        array = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        if path[-1] == "kernel":
            array = np.ascontiguousarray(array.transpose(-1, -2, *range(array.ndim - 2)))
        state[".".join((*path[:-1], LEAVES.get(path[-1], path[-1])))] = array
    save_file(state, folder / "model.safetensors")
    return folder


def captioned(folder):
    """Four images with captions, as a manifest has them."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i, color in enumerate(("red", "green", "blue", "grey")):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"image_file": f"{i}.png", "captions": [f"a {color} bicycle"]}))
    (folder / "images.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_released_weights_sample_train_on_and_go_back_to_official_files(published, tmp_path):
    state = load_file(GOLDEN / "t2i_tiny.safetensors")
    save_torch(tmp_path / "t2i_model.bin", state)
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    gemma = of_other_sizes(
        "gemma3_text_tiny", codecs.TEXT_ENCODERS, tmp_path / "gemma", hidden_size=24, vocab_size=320, **layers
    )
    (gemma / "tokenizer.model").write_bytes(trained())
    dino = of_other_sizes("dinov2_tiny", codecs.IMAGE_ENCODERS, tmp_path / "dino", hidden_size=16, num_hidden_layers=1)
    vae, run, on, back = published("autoencoder_kl_tiny"), tmp_path / "run", tmp_path / "on", tmp_path / "b.safetensors"
    parts = {"codecs.autoencoder": vae, "codecs.text_encoder": gemma}

    with workdirs.one_device():
        convert.main(["import", str(tmp_path / "t2i_model.bin"), str(run), *flags(MODEL)])
        drawing = [
            f"--workdir={run}",
            "--prompt=a red bicycle",
            "--size=32x48",
            "--steps=2",
            f"--out={tmp_path / 'out'}",
        ]
        sample.main([*drawing, *flags(parts)])
        (found,) = (tmp_path / "out").glob("*_steps2/*.png")
        with Image.open(found) as picture:
            assert picture.size == (48, 32) and np.asarray(picture).std() > 1
        assert read_settings(found)["prompt"] == "a red bicycle"

        data = {"data.encode": "True", "data.source": "manifest", "data.path": captioned(tmp_path / "images")}
        steps = {
            "training.steps": "2",
            "training.sample_steps": "1",
            "start.checkpoint": run,
            "loader.directory": tmp_path,
        }
        keys = MODEL | parts | data | steps | {"codecs.image_encoder": dino}
        train.main(["--config=released_t2i", f"--workdir={on}", *flags(keys)])
        convert.main(["export", str(on), str(back), "--ema=online"])

    exported = load_file(back)
    assert {name: (x.shape, x.dtype) for name, x in exported.items()} == {
        name: (x.shape, x.dtype) for name, x in state.items()
    }
    # Two steps of AdamW move a parameter by about the learning rate each, and by its decay.
    moved = {name: np.abs(exported[name] - state[name]).max() for name in state}
    assert sum(distance > 0 for distance in moved.values()) > 0.9 * len(moved)
    for name, distance in moved.items():
        assert distance < 2.5 * RATE + 0.02 * RATE * np.abs(state[name]).max(), name
