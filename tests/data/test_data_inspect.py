"""Settings of the data, what inspect shows of them, and the measurement of the pipeline."""

import json
import tarfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageOps

from tests.helpers import sources
from tim_jax import data, inspect
from tim_jax.bench import __main__ as command
from tim_jax.bench import data as bench
from tim_jax.data import summary
from tim_jax.data.bad_records import TooManyBadRecords
from tim_jax.data.sections import BucketSettings, DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs, open_data
from tim_jax.system import tiles

SIZES = [(40, 40)] * 6 + [(40, 60)] * 7 + [(60, 40)] * 8 + [(9, 9)]
KEYS = {"source": "folder", "height": 8, "width": 8, "channels": 3, "batch_size": 4}


@pytest.fixture
def folder(tmp_path):
    for i, (h, w) in enumerate(SIZES):
        path = tmp_path / "images" / f"class {i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((h, w, 3), 5 * i, np.uint8)).save(path)
    return tmp_path


def read(folder, buckets, side=4, loader=None, **keys):
    keys = KEYS | {"path": str(folder / "images"), "buckets": BucketSettings(**buckets)} | keys
    settings = LoaderSettings(str(folder / "cache"), **(loader or {}))
    settings.check()
    return Inputs.read(DataSettings(**keys), settings, side)


def test_settings_open_the_source_and_its_plan(folder):
    settings = read(folder, {"table": ((32, 32), (32, 48), (48, 32))})
    source, plan = open_data(settings)
    found = {bucket.shape: sum(bucket.images) for bucket in plan.buckets}
    assert found == {(32, 32): 6, (32, 48): 7, (48, 32): 8}
    assert plan.not_used == {"too small": 1} and len(source) == len(SIZES)


def test_without_buckets_a_source_of_one_size_is_one_bucket(tmp_path):
    keys = {"source": "digits", "height": 8, "width": 8, "channels": 1, "batch_size": 32}
    settings = Inputs.read(DataSettings(**keys), LoaderSettings(str(tmp_path)), side=2)
    source, plan = open_data(settings, "held_out")
    assert plan == data.one_bucket(source, 32)


def equal_sizes(root, height, width):
    """Images of one size in class folders, a tar shard and latents of a quarter of it in class folders."""
    rng = np.random.default_rng(0)
    with tarfile.open(root / "0.tar", "w") as tar:
        for i in range(6):
            path = root / "images" / f"class {i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
            tar.add(path, f"{i}.png")
            path = root / "latents" / f"class {i % 2}" / f"{i}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            latent = rng.standard_normal((2, 4, height // 4, width // 4)).astype(np.float32)
            safetensors.numpy.save_file({"latent": latent, "label": np.array(i % 2, np.float32)}, path)


@pytest.mark.parametrize(
    "source, path, height, width, channels",
    [("folder", "images", 40, 60, 3), ("tar", "0.tar", 40, 60, 3), ("latents", "latents", 10, 15, 4)],
)
def test_images_that_have_one_size_need_no_buckets(tmp_path, source, path, height, width, channels):
    equal_sizes(tmp_path, 40, 60)
    keys = {"source": source, "path": str(tmp_path / path), "height": height, "width": width, "channels": channels}
    found, plan = open_data(read(tmp_path, {}, side=1, **keys))
    (bucket,) = plan.buckets
    assert (bucket.shape, bucket.batch_size, bucket.images) == ((height, width), 4, (6,)) and plan.not_used == {}
    batch = data.global_batches(found, plan, 0)[0]
    assert batch["x"].shape == (4, height, width, channels)


def fitted(image, side):
    """The middle square of an image at that size, by Pillow alone."""
    return ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("name", sorted(sources.MADE.keys() - {"latents"}))
def test_a_square_of_ones_own_is_two_keys_for_every_source_of_images(name, tmp_path):
    """Whose images are all of different sizes, 8 to 19 pixels."""
    keys = sources.MADE[name](tmp_path)
    more = {"num_classes": keys.pop("num_classes", 0)}
    settings = LoaderSettings(str(tmp_path / "cache"))
    given = KEYS | keys | {"source": name, "height": 8, "width": 8, "batch_size": sources.ROWS}
    found, plan = open_data(Inputs.read(DataSettings(**given), settings, side=1, **more))
    (bucket,) = plan.buckets
    assert bucket.shape == (8, 8) and plan.images() == sources.ROWS and plan.not_used == {}
    batch = data.global_batches(found, plan, 0)[0]
    assert batch["x"].shape == (sources.ROWS, 8, 8, 3)
    for x, index in zip(batch["x"], batch["index"], strict=True):
        shown = np.asarray(fitted(sources.IMAGES[index], 8), np.float32)
        np.testing.assert_allclose((x + 1) * 127.5, shown, atol=3)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_a_mixture_keeps_its_batch_size_in_a_square(tmp_path, batch_size):
    equal_sizes(tmp_path, 40, 60)
    mixture = (("folder", str(tmp_path / "images"), 1.0), ("tar", str(tmp_path / "0.tar"), 1.0))
    keys = {"mixture": mixture, "height": 40, "width": 60, "batch_size": batch_size}
    _, plan = open_data(read(tmp_path, {}, side=1, **keys))
    assert [bucket.images for bucket in plan.buckets] == [(6, 6)]
    Image.fromarray(np.zeros((40, 61, 3), np.uint8)).save(tmp_path / "images" / "class 0" / "wider.png")
    _, plan = open_data(read(tmp_path, {}, side=1, **keys))
    assert [(bucket.images, bucket.batch_size) for bucket in plan.buckets] == [((7, 6), batch_size)]


def test_a_square_is_in_the_units_of_its_keys(tmp_path):
    equal_sizes(tmp_path, 40, 60)
    keys = KEYS | {"path": str(tmp_path / "images"), "height": 8, "width": 8, "encode": True}
    settings = Inputs.read(DataSettings(**keys), LoaderSettings(str(tmp_path / "cache")), side=1, factor=4)
    assert [bucket.shape for bucket in open_data(settings)[1].buckets] == [(32, 32)]
    settings = Inputs.read(DataSettings(**keys | {"height": 11}), LoaderSettings(str(tmp_path / "cache")), 1, factor=4)
    with pytest.raises(ValueError, match="data.height, data.width are 11, 8; .* the largest are 10 high and 15 wide"):
        open_data(settings)


@pytest.mark.parametrize("height, width", [(9, 15), (10, 16), (8, 8)])
def test_latents_of_another_size_are_refused_with_the_keys_that_do(tmp_path, height, width):
    equal_sizes(tmp_path, 40, 60)
    keys = {"source": "latents", "path": str(tmp_path / "latents"), "height": height, "width": width, "channels": 4}
    with pytest.raises(ValueError, match="they must be 10, 15 for data.source") as error:
        open_data(read(tmp_path, {}, side=1, **keys))
    named = dict(part.removeprefix("--config.data.").split("=") for part in str(error.value).split() if "--" in part)
    right = {name: int(value) for name, value in named.items()}
    assert [b.shape for b in open_data(read(tmp_path, {}, side=1, **keys | right))[1].buckets] == [(10, 15)]


def test_headers_that_cannot_be_read_are_no_other_size(tmp_path):
    equal_sizes(tmp_path, 40, 60)
    (tmp_path / "images" / "class 0" / "bad.png").write_bytes(b"not an image")
    keys = {"path": str(tmp_path / "images"), "height": 40, "width": 60}
    with pytest.raises(TooManyBadRecords, match="1 of 7 examples"):
        open_data(read(tmp_path, {}, side=1, **keys))
    source, plan = open_data(read(tmp_path, {}, side=1, loader={"max_bad_share": 0.5}, **keys))
    batch = data.global_batches(source, plan, 0)[1]
    assert batch["x"].shape == (4, 40, 60, 3)


def test_a_mixture_of_settings_is_opened(folder):
    mixture = (("folder", str(folder / "images"), 2.0), ("folder", str(folder / "images"), 1.0))
    source, plan = open_data(read(folder, {"table": ((32, 32),)}, mixture=mixture))
    assert isinstance(source, data.Mixture) and source.weights == (2.0, 1.0)
    assert plan.images() == 2 * (len(SIZES) - 1)


def test_latents_are_not_resized(tmp_path):
    rows = [{"latent": np.full((2, 4, 9, 9), i, np.float32), "label": 0} for i in range(8)]
    data.write_shards(tmp_path / "shards", rows, num_classes=1)
    keys = KEYS | {"source": "shards", "path": str(tmp_path / "shards"), "channels": 4}
    keys["buckets"] = BucketSettings(table=((8, 8),))
    source, plan = open_data(Inputs.read(DataSettings(**keys), LoaderSettings(str(tmp_path)), side=2))
    assert not plan.fitting.resize
    batch = data.global_batches(source, plan, 0)[0]
    np.testing.assert_array_equal(batch["x"][:, 3, 3, 0], batch["index"])


@pytest.mark.parametrize(
    "buckets, keys, message",
    [
        ({"table": ((30, 32),)}, {}, "data.buckets.table is ..30, 32.*multiples of 4"),
        ({"area": 4}, {}, "data.buckets.area is 4"),
        ({"table": ((32, 32),), "max_cropped": 1.5}, {}, "data.buckets.max_cropped is 1.5"),
        ({"table": ((32, 32),)}, {"flip": 2.0}, "data.flip is 2.0"),
        ({"table": ((32, 32),)}, {"loader": {"max_bad_share": -1.0}}, "loader.max_bad_share is -1.0"),
        ({"max_cropped": -0.5}, {}, "data.buckets.max_cropped is -0.5"),
        ({}, {"height": 61}, "data.height, data.width are 61, 8; .* the largest are 60 high and 60 wide.*enlarge=True"),
        ({}, {"height": 4, "width": 40}, "data.height, data.width are 4, 40; .*--config.data.buckets.max_cropped=0.9"),
        ({"table": ((32, 32),)}, {"source": "folders"}, "data.source is 'folders'.*nearest is 'folder'"),
        ({}, {"source": "digits"}, "data.channels is 3; it must be 1"),
        ({}, {"source": "digits", "channels": 1, "height": 9}, "data.height, data.width are 9, 8; .*enlarge=True"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(folder, buckets, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        open_data(read(folder, buckets, **keys))
    assert "\n" not in str(error.value)


def test_a_source_with_too_many_bad_headers_is_refused_with_the_list(folder):
    (folder / "images" / "class 0" / "bad.png").write_bytes(b"not an image")
    buckets = {"table": ((32, 32),)}
    with pytest.raises(TooManyBadRecords, match="1 of 23 examples .unreadable 1.*faults.jsonl"):
        open_data(read(folder, buckets))
    _, plan = open_data(read(folder, buckets, loader={"max_bad_share": 0.1}))
    assert plan.not_used == {"too small": 1, "unreadable": 1}


CONFIG = """
from tim_jax.config import loading

def get_config():
    config = loading.load("base").get_config()
    config.data.source = "folder"
    config.data.path = {path!r}
    config.data.channels = 3
    config.data.batch_size = 4
    config.data.buckets.table = ((32, 32), (32, 48), (48, 32))
    config.loader.directory = {cache!r}
    return config
"""


def test_inspect_prints_and_draws_the_plan_and_a_sheet_per_bucket(folder, capsys):
    config = folder / "config.py"
    config.write_text(CONFIG.format(path=str(folder / "images"), cache=str(folder / "cache")))
    inspect.main([f"--config={config}", f"--out={folder / 'out'}"])
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    assert lines[1][:3] == ["32x48", "7", "4"] and "21 of 22 images in 3 buckets" in said and "too small 1" in said
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "bucket-32x32.png",
        "bucket-32x48.png",
        "bucket-48x32.png",
        "plan.png",
    ]
    source, plan = open_data(read(folder, {"table": ((32, 32), (32, 48), (48, 32))}))
    step = summary.first_steps(data.Order(plan, 0))[0]
    values = np.rint((data.global_batches(source, plan, 0)[step]["x"][:, 0, 0, 0] + 1) * 127.5)
    height, width = plan.buckets[0].shape
    sheet = np.asarray(Image.open(folder / "out" / f"bucket-{height}x{width}.png"))
    assert {(int(v),) * 3 for v in values} <= set(map(tuple, sheet[18:].reshape(-1, 3).tolist()))


def drawn(monkeypatch):
    """What `tiles.sheet` is given to draw."""
    found = {}
    monkeypatch.setattr(tiles, "sheet", lambda rows, **labels: found.update(labels, rows=rows))
    return found


BATCH = {"x": np.zeros((3, 8, 8, 3), np.float32), "label": np.array([2, 0, 1])}
CAPTIONS = np.array(["a cat", "кот", "猫 ここ\nand a cat"])


@pytest.mark.parametrize(
    "batch, names, labels",
    [
        (BATCH, ("cat", "жук", "猫"), ["label 2", "cat", "жук"]),
        (BATCH, ("cat", "dog\n", "ant"), ["ant", "cat", "label 1"]),
        (BATCH, ("cat",), []),
        (BATCH, (), []),
        (BATCH | {"caption": CAPTIONS}, ("cat", "dog", "ant"), ["a cat", "кот", "? ? and a cat"]),
    ],
)
def test_contact_sheets_say_what_is_shown(batch, names, labels, monkeypatch):
    found = drawn(monkeypatch)
    summary.contact_sheet(batch, "8x8, step 0", names)
    assert found["tile_labels"] == labels and sum(map(len, found["rows"])) == 3


def test_long_captions_are_drawn_in_full_width_sheets():
    words = summary.contact_sheet(BATCH | {"caption": np.array(["a long caption " * 50] * 3)}, "8x8, step 0")
    plain = summary.contact_sheet(BATCH, "8x8, step 0")
    assert words.width == plain.width and plain.height < words.height < 2 * plain.height


@pytest.mark.parametrize("given, message", [("--batch-multiple=0", "batch-multiple is 0"), ("--confg=x", "--config")])
def test_inspect_refuses_wrong_arguments_with_code_2(given, message, capsys):
    with pytest.raises(SystemExit) as error:
        inspect.main(["--config=digits", given])
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("layout", bench.LAYOUTS)
def test_the_bench_measures_and_writes(layout, tmp_path, monkeypatch, capsys):
    for name, value in {"IMAGES": 20, "STEPS": 2, "ROUNDS": 1, "BATCH": 4, "SIDES": (80, 100), "AREA": 48 * 48}.items():
        monkeypatch.setattr(bench, name, value)
    command.main(["data", "--json", str(tmp_path / "data.json"), "--workers", "1", "--source", layout])
    found = json.loads((tmp_path / "data.json").read_text())
    figures = ("ratio", "rows_per_second", "bare_rows_per_second", "workers")
    assert min(found[name] for name in figures) > 0 and found["workers"] == 1
    assert found["source"] == layout
    assert {name: found[name] for name in figures}.items() <= found["rows"][0].items()
    assert "ratio" in capsys.readouterr().out
