"""Prompts to images: each the same whatever is beside it, from files of all forms, by command and by program."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import tim_jax
from tests.helpers import workdirs
from tim_jax import codecs, sample
from tim_jax.config.build import build
from tim_jax.runs import workdir
from tim_jax.runs.encoders import Pixels, open_text_encoder
from tim_jax.runs.generation import Generator, alpha_sigma, load_weights
from tim_jax.runs.outputs.batches import draw
from tim_jax.runs.outputs.layouts import read_settings
from tim_jax.runs.outputs.prompts import read_prompts
from tim_jax.runs.outputs.requests import prompt_requests

CAT, DOG, SEA = "a cat, a photograph", "a dog", "the sea at night"


@pytest.fixture(scope="module")
def folder(text_workdir):
    return text_workdir


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


def images(folder, requests, batch_size, devices=1, steps=3, **changes):
    """[images (count, 16 or so, …)] of requests, in float32."""
    config = workdir.load(folder, {key.replace("__", "."): value for key, value in changes.items()})
    run = build(config, sharding_devices[:devices])
    generator = Generator(run, batch_size, open_text_encoder(run), Pixels())
    weights, _ = load_weights(run, folder)
    found = {one.place: one.images for one in draw(generator, weights, generator.times(steps), requests(run), seed=7)}
    return [found[i] for i in range(len(found))]


sharding_devices = jax.devices()


def asking(*prompts):
    """What is asked of a run, of (prompt, size, count) triples."""
    named = [("", {"prompt": prompt, "size": size, "count": count}) for prompt, size, count in prompts]
    return lambda run: prompt_requests(named, (16, 16), 1, run)


@pytest.mark.slow
def test_an_image_is_the_same_whatever_is_beside_it(folder):
    many = asking((DOG, "16x16", 2), (CAT, "8x24", 1), (CAT, "16x16", 3), (SEA, "8x24", 2), (CAT, "16x16", 3))
    ((alone,),) = images(folder, asking((CAT, "16x16", 1)), 1)
    for batch_size, devices in ((2, 1), (8, 8)):
        dog, wide, cat, sea, again = images(folder, many, batch_size, devices)
        np.testing.assert_allclose(cat[0], alone, atol=1e-4)
        np.testing.assert_allclose(again, cat, atol=1e-4)
        assert cat.shape == (3, 16, 16, 3)
        assert wide.shape == (1, 8, 24, 3) and sea.shape == (2, 8, 24, 3)
    assert np.abs(cat[0] - cat[1]).max() > 0.1, "another noise"
    assert np.abs(cat[0] - dog[0]).max() > 0.01, "another prompt, the same noise"
    assert np.abs(wide[0] - sea[0]).max() > 0.01


@pytest.mark.nightly
def test_image_j_of_a_prompt_starts_from_noise_j_of_the_seed(folder):
    run = build(workdir.load(folder), sharding_devices[:1])
    generator = Generator(run, 3, open_text_encoder(run))
    weights, _ = load_weights(run, folder)
    times = generator.times(3)
    x = alpha_sigma(run, times[0])[1] * generator.noise(7, 3)
    expected = generator.integrate(weights, times, [CAT] * 3, start=x)
    (found,) = draw(generator, weights, times, asking((CAT, "16x16", 3))(run), seed=7)
    np.testing.assert_allclose(found.images, expected, atol=1e-5)


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_files_of_prompts(tmp_path):
    lines = write(tmp_path / "a.txt", f"\ufeff{CAT}\r\n{DOG}\nÜnïcode 🚲")
    assert [record["prompt"] for _, record in read_prompts(str(lines))] == [CAT, DOG, "Ünïcode 🚲"]
    rows = [{"prompt": CAT, "tag": "one", "include": [{"class": "cat"}]}, {"prompt": DOG, "count": 2, "size": "8x8"}]
    found = read_prompts(str(write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)) + "\n")))
    assert found == [("00000", rows[0]), ("00001", rows[1])]
    values = {"x1": {"category": "animals", "prompt": CAT}, "x2": DOG}
    found = read_prompts(str(write(tmp_path / "c.json", json.dumps(values))))
    assert found == [("x1", values["x1"]), ("x2", {"prompt": DOG})]
    (tmp_path / "d").mkdir()
    for name, text in (("2.txt", f"{DOG}\n"), ("1.txt", CAT), (".hidden.txt", ""), ("readme.md", "no prompt")):
        write(tmp_path / "d" / name, text)
    assert read_prompts(str(tmp_path / "d")) == [("1", {"prompt": CAT}), ("2", {"prompt": DOG})]


@pytest.mark.slow
def test_the_command_writes_pictures_with_their_settings_and_the_program_gives_the_same(folder, tmp_path):
    rows = [{"prompt": CAT, "size": "16x16", "count": 2, "tag": "one"}, {"prompt": DOG}]
    prompts = write(tmp_path / "some prompts.jsonl", "\n".join(map(json.dumps, rows)))
    arguments = [f"--workdir={folder}", f"--prompts={prompts}", "--steps=1,2", "--seed=5", "--size=8x24"]
    sample.main([*arguments, "--guidance=2.0", "--config.sampling.guidance_low=0.25", f"--out={tmp_path / 'out'}"])
    (settings,) = (tmp_path / "out").glob("*.json")
    name = settings.stem
    assert name.startswith("some-prompts_") and name.endswith("step0_sizes_flow_map_uniform_seed5_guidance2")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    pictures = {f"{name}_steps{n}/{file}.png" for n in (1, 2) for file in ("00000_00", "00000_01", "00001")}
    assert written == pictures | {f"{name}.json", f"{name}.png"}

    tim = tim_jax.load(folder, sampling={"guidance_low": 0.25, "guidance": 1.5})
    cats = tim(CAT, steps=2, size=(16, 16), seed=5, guidance=2.0, count=2)
    (dog,) = tim([DOG], steps=2, size=(8, 24), seed=5, guidance=2.0)
    for file, image in zip(("00000_00", "00000_01", "00001"), [*cats, dog], strict=True):
        path = tmp_path / "out" / f"{name}_steps2" / f"{file}.png"
        with Image.open(path) as picture:
            np.testing.assert_allclose(np.asarray(picture, int), np.asarray(image, int), atol=1)
    assert np.abs(np.asarray(cats[0], int) - np.asarray(cats[1], int)).max() > 10
    assert dog.size == (24, 8) and dog.mode == "RGB"

    told = read_settings(tmp_path / "out" / f"{name}_steps2" / "00000_01.png")
    expected = {"prompt": CAT, "seed": 5, "number": 1, "steps": 2, "size": [16, 16], "training_step": 0}
    expected |= {
        "further": {"tag": "one"},
        "guidance": 2.0,
        "guidance_low": 0.25,
        "guidance_high": 1.0,
        "ema": "slow",
    }
    assert told == told | expected | {"sampler": "flow_map", "grid": "uniform"}
    together = read_settings(tmp_path / "out" / f"{name}.png")
    assert together["prompts"] == [CAT, DOG] and together["steps"] == [1, 2] and together["seed"] == 5


@pytest.mark.nightly
def test_prompts_beside_one_another_are_kept(folder, tmp_path):
    for prompt in (CAT, DOG):
        sample.main([f"--workdir={folder}", f"--prompt={prompt}", "--steps=1", f"--out={tmp_path}"])
    found = sorted(path.name.split("_")[0] for path in tmp_path.glob("*.json"))
    assert found == ["a-cat-a-photograph", "a-dog"]


def test_images_in_place_of_noise_with_prompts(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), np.uint8)
    names = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(path)
    prompts = write(tmp_path / "two.txt", f"{CAT}\n{DOG}")
    arguments = [f"--workdir={folder}", f"--from={names[0]},{names[1]}", f"--prompts={prompts}", "--steps=2"]
    sample.main([*arguments, "--start=0.0001", f"--out={tmp_path / 'out'}"])
    (found,) = (tmp_path / "out").glob("*.npz")
    arrays = np.load(found)
    assert arrays["prompts"].tolist() == [CAT, DOG]
    np.testing.assert_allclose(arrays["steps2"], pixels / 127.5 - 1, atol=0.05)
    told = read_settings(tmp_path / "out" / f"{found.stem}_steps2" / "00001.png")
    assert told["prompt"] == DOG and told["start"] == 0.0001 and told["from"] == f"{names[0]},{names[1]}"


LONG = "word " * 40
# Arguments besides --workdir, "{}" being the folder of files below; what is said.
WRONG = {
    "nothing": ([], ["--prompt", "conditioned on text"]),
    "both": (["--prompt=a", "--prompts={}/good.txt"], ["--prompt", "one of them"]),
    "labels": (["--labels=3"], ["--labels", "text", "--prompt"]),
    "count": (["--count=3", "--prompt=a"], ["--count", "text"]),
    "per prompt": (["--per-prompt=0", "--prompt=a"], ["--per-prompt", "0", "1"]),
    "empty": (["--prompt="], ["prompt 1 of 1 is empty"]),
    "blank": (["--prompts={}/blank.txt"], ["prompt 2 of 3 is empty"]),
    "long": (["--prompts={}/long.txt"], ["prompt 2 of 2 has 201 tokens, more than 72", "'word word"]),
    "bytes": (["--prompts={}/bytes.txt"], ["bytes.txt", "prompt 2 is no text: not UTF-8 at byte 3 of 4"]),
    "argument of bytes": (["--prompt=a \udcff"], ["prompt 1 of 1 is no valid text"]),
    "surrogate": (["--prompts={}/surrogate.jsonl"], ["prompt 2 of 2 is no valid text"]),
    "number": (["--prompts={}/number.jsonl"], ["number.jsonl", "prompt 2 is 5, which is no text"]),
    "no object": (["--prompts={}/list.jsonl"], ["prompt 1 is [1]; it must be an object with a 'prompt'"]),
    "no JSON": (["--prompts={}/broken.jsonl"], ["broken.jsonl", "prompt 2 is no JSON"]),
    "no JSON at all": (["--prompts={}/broken.json"], ["broken.json", "no JSON"]),
    "a list": (["--prompts={}/list.json"], ["list.json", "must be an object, with a name for each"]),
    "deep": (["--prompts={}/deep.jsonl"], ["prompt 1 is no JSON that can be read"]),
    "none": (["--prompts={}/none.txt"], ["none.txt", "holds no prompts"]),
    "gone": (["--prompts={}/gone.txt"], ["gone.txt", "cannot be read"]),
    "another kind": (["--prompts={}/good.csv"], ["good.csv", ".jsonl"]),
    "size": (["--prompt=a", "--size=16x18"], ["--size is '16x18'", "multiples of the patch size, 4"]),
    "no size": (["--prompt=a", "--size=big"], ["--size is 'big'", "height x width"]),
    "size of one": (["--prompts={}/size.jsonl"], ["prompt 2: size is '9x8'", "patch size, 4"]),
    "no size of one": (["--prompts={}/sizes.jsonl"], ["prompt 1: size is [8, 8]", "height x width"]),
    "count of one": (["--prompts={}/count.jsonl"], ["prompt 1: count is True"]),
    "seed": (["--prompt=a", "--seed=4294967296"], ["--seed", "2^32"]),
    "no encoder": (["--prompt=a", "--config.codecs.text_encoder="], ["codecs.text_encoder is ''"]),
    "encoder": (["--prompt=a", "--config.codecs.text_encoder={}"], ["model.safetensors"]),
    "two sizes": (["--prompts={}/good.jsonl", "--interpolate=3"], ["--prompts", "--interpolate"]),
    "layout": (["--prompt=a", "--layout=geneva"], ["--layout", "geneval"]),
}
FILES = {
    "good.txt": "a\nb", "good.csv": "a", "blank.txt": "a\n \nb\n", "long.txt": f"a\n{LONG}", "none.txt": "",
    "bytes.txt": b"a\nab\xff\xfe\n", "surrogate.jsonl": '{"prompt": "a"}\n{"prompt": "a \\ud83d"}',
    "number.jsonl": '{"prompt": "a"}\n{"prompt": 5}', "list.jsonl": "[1]", "broken.jsonl": '{"prompt": "a"}\n{"prompt"',
    "broken.json": "{", "list.json": "[]", "deep.jsonl": "[" * 100_000,
    "size.jsonl": '{"prompt": "a"}\n{"prompt": "b", "size": "9x8"}', "sizes.jsonl": '{"prompt": "a", "size": [8, 8]}',
    "count.jsonl": '{"prompt": "a", "count": true}',
    "good.jsonl": '{"prompt": "a"}\n{"prompt": "b", "size": "8x8"}',
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_one_line_and_nothing_is_written(name, folder, tmp_path, capsys):
    for file, text in FILES.items():
        write(tmp_path / file, text)
    arguments, said = WRONG[name]
    before = workdirs.contents(folder) | workdirs.contents(tmp_path)
    arguments = [f"--workdir={folder}", f"--out={tmp_path / 'out'}", *(one.format(tmp_path) for one in arguments)]
    error = workdirs.told(sample.main, arguments, capsys)
    assert all(word in error for word in said), error
    assert workdirs.contents(folder) | workdirs.contents(tmp_path) == before


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    changes = workdirs.TINY | {"data.height": "8", "data.width": "8", "data.channels": "4", "model.patch_size": "2"}
    return workdirs.workdir(tmp_path_factory.mktemp("latents") / "run", "digits", **changes)


@pytest.mark.nightly
def test_latents_are_decoded_where_an_autoencoder_is_named(latents, published, tmp_path, capsys):
    vae = published("autoencoder_kl_tiny")
    arguments = [f"--workdir={latents}", "--labels=3,1", "--steps=2", f"--out={tmp_path / 'plain'}"]
    sample.main(arguments)
    (plain,) = (tmp_path / "plain").glob("*.npz")
    assert "8x8" in plain.name and not list((tmp_path / "plain").rglob("*.png"))
    sample.main([*arguments, f"--out={tmp_path / 'seen'}", f"--config.codecs.autoencoder={vae}"])
    (seen,) = (tmp_path / "seen").glob("*.npz")
    assert "32x32" in seen.name
    np.testing.assert_allclose(np.load(seen)["steps2"], np.load(plain)["steps2"], atol=1e-5)
    module, params = codecs.load(vae, codecs.AUTOENCODERS)
    apply = jax.jit(lambda x, method: module.apply({"params": params}, x, method=method), static_argnums=1)
    decoded = np.asarray(apply(np.load(plain)["steps2"], "decode"))
    for i, (image, label) in enumerate(zip(decoded, (3, 1), strict=True)):
        file = tmp_path / "seen" / f"{seen.stem}_steps2" / f"{i:05}.png"
        with Image.open(file) as picture:
            np.testing.assert_allclose(np.asarray(picture) / 127.5 - 1, image.clip(-1, 1), atol=0.5 / 127 + 1e-4)
        told = read_settings(file)
        assert (told["label"], told["number"], told["size"]) == (label, i, [32, 32])

    tim = tim_jax.load(latents, codecs={"autoencoder": str(vae)})
    with Image.open(tmp_path / "seen" / f"{seen.stem}_steps2" / "00001.png") as picture:
        np.testing.assert_allclose(np.asarray(tim([3, 1], steps=2)[1], int), np.asarray(picture, int), atol=1)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)).save(tmp_path / "a.png")
    decoding = f"--config.codecs.autoencoder={vae}"
    sample.main([f"--workdir={latents}", "--labels=3", "--steps=4", "--start=0.0001", f"--from={tmp_path / 'a.png'}",
                 f"--out={tmp_path / 'from'}", decoding])  # fmt: skip
    (found,) = (tmp_path / "from").glob("*.npz")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[None] / 127.5 - 1
    rows = apply(pixels.astype(np.float32), "encode")
    np.testing.assert_allclose(np.load(found)["steps4"], rows, atol=0.05)
    capsys.readouterr()
    cut = shutil.copytree(vae, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((vae / "model.safetensors").read_bytes()[:-100])
    for change, said in (
        ([f"--config.codecs.autoencoder={cut}"], ["model.safetensors: is truncated"]),
        (["--size=32x36", decoding], ["--size is '32x36'", "multiples of 8: 4 pixels", "patch size, 2"]),
        ([f"--from={tmp_path / 'a.png'}", "--labels=3"], ["--from", "4 channels", "not images"]),
        (["--layout=dpg", decoding], ["--layout is 'dpg'", "prompts"]),
        (["--prompt=a"], ["--prompt", "labels"]),
        (["--labels=10", decoding], ["--labels has 10", "0 … 9"]),
    ):
        error = workdirs.told(sample.main, [f"--workdir={latents}", *change], capsys)
        assert all(word in error for word in said), error


def test_what_a_program_asks_wrongly_is_one_line(folder, latents, tmp_path):
    tim = tim_jax.load(folder / "checkpoints" / "0")
    for call, said in (
        (lambda: tim(""), "prompt 1 of 1 is empty"),
        (lambda: tim([CAT, 3]), "prompt 2 of 2 is 3, which is no text"),
        (lambda: tim([]), "at least one prompt"),
        (lambda: tim(CAT, steps=0), "steps is 0"),
        (lambda: tim(CAT, count=1.5), "count is 1.5"),
        (lambda: tim(CAT, seed=-1), "seed is -1"),
        (lambda: tim(CAT, size=(16, 17)), "size is '16x17'; height and width must be positive multiples"),
        (lambda: tim(CAT, size=(16,)), "size is '16'; it must be height x width"),
        (lambda: tim(CAT, guidance=-1.0), "guidance is -1.0; it must be at least 0"),
        (lambda: tim_jax.load(tmp_path), "it must be a workdir with a checkpoint"),
        (
            lambda: tim_jax.load(folder, codecs={"autoencode": "x"}),
            "codecs={'autoencode': …}: no such key; did you mean",
        ),
        (lambda: tim_jax.load(folder, codecs={"text_encoder": ""}), "codecs={'text_encoder': ''}; it must"),
        (lambda: tim_jax.load(latents), "codecs={'autoencoder': ''}; it must"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert said in str(error.value) and "\n" not in str(error.value)


def test_the_package_is_light_until_it_is_used():
    program = "import tim_jax, sys; tim_jax.load; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
