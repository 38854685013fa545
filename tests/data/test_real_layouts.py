"""Data as it is found, from the folder to samples and figures, on the command line."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageCms, ImageOps

from tests.helpers import profiles
from tests.helpers.configs import TINY_NETWORK, flags, inputs_of
from tests.helpers.workdirs import one_device
from tim_jax import evaluate, sample, train
from tim_jax.config.command_line import load_config
from tim_jax.data.settings import open_data

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
P3 = profiles.rgb_profile(profiles.DISPLAY_P3, profiles.srgb_curve())
SMALL = {
    **TINY_NETWORK, "model.patch_size": "4", "data.height": "16", "data.width": "16", "data.buckets.area": "256",
    "data.buckets.tokens": "0", "data.buckets.max_buckets": "2", "data.batch_size": "4", "optimizer.warmup_steps": "0",
    "training.steps": "3", "training.log_every": "1", "training.sample_every": "0", "training.sample_steps": "(1,)",
}  # fmt: skip


def picture(height, width):
    """A smooth picture, which lossy formats keep."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(a * y / height + b * x / width + c) for a, b, c in RNG.uniform(-3, 3, (3, 3))]
    return Image.fromarray(np.uint8(127.5 + 127 * np.stack(waves, -1)))


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}) | options)
    return buffer.getvalue()


def through(folder, keys, capsys):
    """Trains, samples and evaluates on the command line; what training says, its steps, and the table of figures."""
    keys = SMALL | {"loader.directory": folder / "cache"} | keys
    workdir = f"--workdir={folder / 'run'}"
    with one_device():
        train.main(["--config=photos", workdir, *flags(keys)])
        said = capsys.readouterr().out
        sample.main([workdir, "--steps=1", "--count=4"])
        evaluate.main([workdir, "--steps=1", "--count=8", "--seeds=1", "--nearest=0"])
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3] and all(np.isfinite(line["loss"]) for line in steps)
    assert list((folder / "run" / "sampled").rglob("*.png"))
    return said, steps, capsys.readouterr().out


def opened(folder, keys, split=None):
    """The source and the plan of a run with these keys."""
    keys = SMALL | {"loader.directory": folder / "cache"} | keys
    return open_data(inputs_of(load_config("photos", {key: str(value) for key, value in keys.items()})), split)


def test_a_folder_as_a_telephone_and_a_mac_leave_it(tmp_path, capsys):
    root, shown = tmp_path / "pictures", {}
    for name, turn in (("cats", 6), ("dogs", 1)):
        (root / name).mkdir(parents=True)
        (root / "__MACOSX" / name).mkdir(parents=True)
        (root / name / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (root / name / "IMG_0099.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
        for i in range(12):
            exif = Image.Exif()
            exif[0x0112] = turn
            image = picture(*((40 + 2 * i, 60 + 3 * i) if i % 3 else (48, 48)))
            content = encoded(image, exif=exif, icc_profile=P3)
            file = f"IMG_{i:04}.{('JPG', 'jpeg', 'jfif')[i % 3]}"
            (root / name / file).write_bytes(content)
            (root / name / f"._{file}").write_bytes(b"\0\5\x16\7" + bytes(80))
            (root / "__MACOSX" / name / f"._{file}").write_bytes(b"\0\5\x16\7" + bytes(80))
            shown[f"{name}/{file}"] = content
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    keys = {"data.source": "folder", "data.path": root, "data.held_out_share": 0.3, "model.num_classes": 2}
    said, _, figures = through(tmp_path, keys, capsys)
    assert "labels: 0 cats, 1 dogs" in said and ".heic files 2, hidden files 27, hidden folders 1" in said
    assert "in 2 buckets" in said and "Fréchet, held out" in figures
    parts = [opened(tmp_path, keys, split) for split in ("train", "held_out")]
    identities = [source.identity(i) for source, _ in parts for i in range(len(source))]
    assert sorted(identities) == sorted(shown)
    for source, plan in parts:
        assert plan.images() + sum(plan.not_used.values()) == len(source)
        for i in range(len(source)):
            name = source.identity(i)
            stored = ImageOps.exif_transpose(Image.open(io.BytesIO(shown[name])))
            display, srgb = ImageCms.ImageCmsProfile(io.BytesIO(P3)), ImageCms.createProfile("sRGB")
            np.testing.assert_array_equal(source[i]["image"], ImageCms.profileToProfile(stored, display, srgb))
            assert source[i]["label"] == ["cats", "dogs"].index(name[:4])


def write_parquet(path, rows):
    """Rows (image, label) as a hub writes them."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "fly"], "_type": "ClassLabel"}}
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": image, "path": f"{i}.jpg"} for i, (image, _) in enumerate(rows)]
    schema = pyarrow.schema([("image", struct), ("label", pyarrow.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    columns = {"image": pyarrow.array(images, struct), "label": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path, row_group_size=5)


@pytest.mark.nightly
def test_parquet_of_a_hub_with_train_and_test(tmp_path, capsys):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = [(encoded(picture(40, 40 + i % 2 * 20)), i % 3) for i in range(40)]
    for name, part in (("train-00000-of-00002", rows[:16]), ("train-00001-of-00002", rows[16:30]),
                       ("test-00000-of-00001", rows[30:])):  # fmt: skip
        write_parquet(tmp_path / "hub" / "data" / f"{name}.parquet", part)
    keys = {"data.source": "parquet", "data.path": tmp_path / "hub", "model.num_classes": 3}
    keys |= {"data.buckets.max_buckets": 1}
    said, _, figures = through(tmp_path, keys, capsys)
    assert "30 of 30 images" in said and "labels: 0 ant, 1 bee, 2 fly" in said and "Fréchet, held out" in figures
    for split, part in (("train", rows[:30]), ("test", rows[30:])):
        source, _ = opened(tmp_path, keys, split)
        assert [(source.raw(i).encoded, source[i]["label"]) for i in range(len(source))] == part


def test_tars_with_missing_and_doubled_members(tmp_path, capsys):
    images = [encoded(picture(40, 40 + i % 2 * 20)) for i in range(24)]
    members = {f"{i:06}": {"jpg": images[i], "cls": str(i % 3).encode(), "txt": b"a picture"} for i in range(24)}
    del members["000003"]["jpg"], members["000007"]["cls"]
    del members["000010"]["txt"], members["000015"]["txt"]  # which a run by class does not need
    listed = [(f"{stem}.{ending}", content) for stem, files in members.items() for ending, content in files.items()]
    listed.insert(listed.index(("000020.jpg", images[20])), ("000020.jpg", images[0]))  # the later one counts
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard:05}.tar", "w") as tar:
            for name, content in listed:
                if int(name[:6]) // 12 == shard:
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    keys = {"data.source": "tar", "data.path": tmp_path / "shards", "model.num_classes": 3}
    keys |= {"loader.max_bad_share": 0.1, "data.buckets.max_buckets": 1}
    said, _, figures = through(tmp_path, keys, capsys)
    assert "22 of 24 images" in said and "not used: missing 1, label 1" in said
    assert "left out: earlier files of a name 1" in said and "Fréchet, held out" not in figures
    source, _ = opened(tmp_path, keys)
    good = [i for i in range(24) if i not in (3, 7)]
    assert [source.raw(i).encoded for i in good] == [images[i] for i in good]
    assert [source[i]["label"] for i in good] == [i % 3 for i in good]


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with labels, in two parts."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["ant", "bee", "fly"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 24), "test": self._generate_examples(24, 34)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"image": encoded(picture(40, 40 + i % 2 * 20)), "label": i % 3}


def test_a_data_set_that_tensorflow_datasets_prepared(tmp_path, capsys, monkeypatch):
    made = tfds.builder("pictures", data_dir=tmp_path / "kept", file_format="array_record")
    made.download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "kept"))
    keys = {"data.source": "tfds", "data.path": "pictures", "model.num_classes": 3}
    keys |= {"data.buckets.max_buckets": 1}
    capsys.readouterr()
    said, _, figures = through(tmp_path, keys, capsys)
    assert "24 of 24 images" in said and "labels: 0 ant, 1 bee, 2 fly" in said and "Fréchet, held out" in figures
    source, _ = opened(tmp_path, keys, "test")
    read = made.as_data_source("test")
    assert len(source) == 10
    for i in range(10):
        np.testing.assert_array_equal(source[i]["image"], read[i]["image"])
        assert source[i]["label"] == read[i]["label"]
