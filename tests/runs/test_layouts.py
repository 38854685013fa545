"""Files of images as the programs that score them read them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import tim_jax
from tests.helpers import workdirs
from tim_jax import sample
from tim_jax.runs.outputs.layouts import read_settings, tiles

PROMPTS = ["a photo of a bench", "a photo of two cows", "a red bicycle"]


@pytest.fixture(scope="module")
def folder(text_workdir):
    return text_workdir


@pytest.fixture(scope="module")
def expected(folder):
    """(prompts, 4, 16, 16, 3): what the program draws."""
    with workdirs.one_device():
        drawn = tim_jax.load(folder)(PROMPTS, steps=1, count=4)
    return np.stack([np.asarray(image, int) for image in drawn]).reshape(len(PROMPTS), 4, 16, 16, 3)


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


def draw(folder, tmp_path, layout, prompts, *arguments):
    out = tmp_path / "out"
    where = [f"--workdir={folder}", f"--prompts={prompts}", f"--layout={layout}", f"--out={out}"]
    sample.main([*where, "--steps=1", *arguments])
    return out


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def test_pictures_are_laid_row_by_row():
    numbered = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(3, 2).repeat(3, 3)
    whole = tiles(numbered, 2)
    assert whole.shape == (6, 6, 3)
    assert whole[::2, ::3, 0].tolist() == [[0, 1], [2, 3], [4, 255]]


@pytest.mark.slow
def test_geneval(folder, expected, tmp_path):
    rows = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": text} for text in PROMPTS]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = draw(folder, tmp_path, "geneval", tmp_path / "metadata.jsonl")
    folders = [path for path in out.iterdir() if path.is_dir() and path.name.isdigit()]
    assert sorted(path.name for path in folders) == ["00000", "00001", "00002"] and len(list(out.iterdir())) == 3
    for path in folders:
        i = int(path.name)
        with (path / "metadata.jsonl").open() as file:
            assert json.load(file) == rows[i]
        found = sorted(file.name for file in (path / "samples").iterdir() if re.match(r"\d+\.png", file.name))
        assert found == [f"{j:05}.png" for j in range(4)] == sorted(f.name for f in (path / "samples").iterdir())
        for j, name in enumerate(found):
            np.testing.assert_allclose(pixels(path / "samples" / name), expected[i, j], atol=1)
            told = read_settings(path / "samples" / name)
            assert (told["prompt"], told["number"], told["steps"]) == (PROMPTS[i], j, 1)
        np.testing.assert_allclose(pixels(path / "grid.png"), tiles(expected[i], 2), atol=1)
        assert read_settings(path / "grid.png")["number"] == [0, 1, 2, 3]


@pytest.mark.nightly
def test_dpg(folder, expected, tmp_path):
    (tmp_path / "prompts").mkdir()
    for i, prompt in enumerate(PROMPTS):
        (tmp_path / "prompts" / f"whoops{i}.txt").write_text(f"{prompt}\n")
    out = draw(folder, tmp_path, "dpg", tmp_path / "prompts")
    assert sorted(path.name.split(".")[0] for path in out.iterdir()) == ["whoops0", "whoops1", "whoops2"]
    for i in range(3):
        with Image.open(out / f"whoops{i}.png") as image:
            side = 16
            places = [(0, 0), (side, 0), (0, side), (side, side)]
            crops = [np.asarray(image.crop((x, y, x + side, y + side)), int) for x, y in places]
            assert image.size == (2 * side, 2 * side)
        np.testing.assert_allclose(crops, expected[i], atol=1)
    # Beside the run, a layout has a folder of its own.
    where = [f"--workdir={folder}", f"--prompts={tmp_path / 'prompts'}", "--layout=dpg"]
    sample.main([*where, "--steps=1", "--per-prompt=1"])
    (single,) = (folder / "sampled").iterdir()
    assert single.name.endswith("_dpg") and len(list(single.iterdir())) == 3
    np.testing.assert_allclose(pixels(single / "whoops1.png"), expected[1, 0], atol=1)


def test_mjhq(folder, expected, tmp_path):
    kinds = ("animals", "logo", "animals")
    values = {f"x{i}": {"category": kinds[i], "prompt": prompt} for i, prompt in enumerate(PROMPTS)}
    (tmp_path / "meta_data.json").write_text(json.dumps(values))
    out = draw(folder, tmp_path, "mjhq", tmp_path / "meta_data.json")
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {"animals/x0.png", "logo/x1.png", "animals/x2.png"}
    for i, kind in enumerate(kinds):
        np.testing.assert_allclose(pixels(out / kind / f"x{i}.png"), expected[i, 0], atol=1)


# Layout, content of the file of prompts (JSON lines where it is a list), arguments, what is said.
WRONG = {
    "steps": ("dpg", {"a": "a"}, ["--steps=1,2"], ["--layout is 'dpg'", "one step count, not 1, 2"]),
    "three": ("dpg", {"a": "a"}, ["--per-prompt=3"], ["prompt 1 asks for 3 images, and must for 4 or 1"]),
    "two": ("mjhq", {"a": {"category": "b", "prompt": "a"}}, ["--per-prompt=2"], ["2 images, and must for 1"]),
    "no squares": ("dpg", {"a": "a"}, ["--size=8x16"], ["squares", "prompt 1 are 8x16"]),
    "two sizes": ("dpg", {"a": "a", "b": {"prompt": "b", "size": "8x8"}}, [], ["prompt 2 are 8x8, the first 16x16"]),
    "no tag": ("geneval", [{"prompt": "a", "tag": "b"}, {"prompt": "a"}], [], ["'tag'", "prompt 2 has none"]),
    "no category": ("mjhq", {"a": "a"}, [], ["'category'", "prompt 1 has none"]),
    "up": ("dpg", {"a": "a", "../b": "b"}, [], ["prompt 2 has the name '../b'", "no name of a file"]),
    "category up": ("mjhq", {"a": {"category": "..", "prompt": "a"}}, [], ["category '..'", "no name of a file"]),
    "below": ("dpg", {"a/b": "a"}, [], ["name 'a/b'"]),
    "backslash": ("dpg", {"a\\b": "a"}, [], ["name 'a\\\\b'"]),
    "absolute": ("mjhq", {"a": {"category": "/etc", "prompt": "a"}}, [], ["category '/etc'"]),
    "hidden": ("dpg", {".a": "a"}, [], ["name '.a'"]),
    "no name": ("dpg", {"": "a"}, [], ["name ''"]),
    "null": ("dpg", {"a\0": "a"}, [], ["name 'a\\x00'"]),
    "surrogate": ("dpg", {"a\ud83d": "a"}, [], ["name 'a\\ud83d'"]),
    "endless": ("dpg", {"a" * 300: "a"}, [], ["no name of a file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_place_in_a_layout_is_one_line(name, folder, tmp_path, capsys):
    layout, prompts, arguments, said = WRONG[name]
    file = tmp_path / ("p.jsonl" if isinstance(prompts, list) else "p.json")
    file.write_text("\n".join(map(json.dumps, prompts)) if isinstance(prompts, list) else json.dumps(prompts))
    before = workdirs.contents(folder)
    where = [f"--workdir={folder}", f"--prompts={file}", f"--layout={layout}", f"--out={tmp_path / 'out'}"]
    error = workdirs.told(sample.main, [*where, "--steps=1", *arguments], capsys)
    assert all(word in error for word in said), error
    assert workdirs.contents(folder) == before and not (tmp_path / "out").exists()
