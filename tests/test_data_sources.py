"""Every source of the table: rows, sizes, identities, fingerprints; paths that climb; mixtures; shards cut short."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
import tensorflow_datasets as tfds
from PIL import Image

from tim_jax import data
from tim_jax.data import shard_files
from tim_jax.data.faults import BadRecord
from tim_jax.data.manifest import declared_size, inside
from tim_jax.data.photos import PHOTOGRAPHS
from tim_jax.data.sizes import read_sizes
from tim_jax.data.tfds_source import prepare

ROWS = 12
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (*RNG.integers(8, 20, 2), 3), dtype=np.uint8) for _ in range(ROWS)]
LABELS = [i // 6 for i in range(ROWS)]  # class folders come in order
CAPTIONS = [(f"picture {i}", f"der Bär und das Bild Nr. {i}") for i in range(ROWS)]
LATENTS = RNG.standard_normal((ROWS, 2, 4, 6, 8)).astype(np.float32)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


class Things(tfds.core.GeneratorBasedBuilder):
    """A data set that this package knows nothing of."""

    VERSION = tfds.core.Version("2.1.0")
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(ROWS):
            yield i, {"image": encoded(IMAGES[i]), "label": LABELS[i], "caption": CAPTIONS[i][0]}


def make_folder(root):
    for i in range(ROWS):
        path = root / "images" / f"class {LABELS[i]}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(IMAGES[i]))
    return {"path": str(root / "images")}


def make_manifest(root, extra=""):
    (root / "sub").mkdir()
    lines = []
    for i in range(ROWS):
        (root / "sub" / f"{i}.png").write_bytes(encoded(IMAGES[i]))
        entry = {"image_file": f"sub/{i}.png", "captions": list(CAPTIONS[i])}
        if i % 2:
            entry["bucket"] = "name-" + "x".join(map(str, IMAGES[i].shape[:2]))
        lines.append(json.dumps(entry, ensure_ascii=bool(i % 3)))
    (root / "rows.jsonl").write_text("\n".join(lines) + extra)
    return {"path": str(root)}


def make_tar(root):
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for i in range(6 * shard, 6 * shard + 6):
                beside = {"json": json.dumps({"captions": CAPTIONS[i], "label": LABELS[i]}).encode()}
                if i % 2:
                    beside = {"txt": CAPTIONS[i][0].encode(), "cls": str(LABELS[i]).encode()}
                for ending, content in ({"png": encoded(IMAGES[i])} | beside).items():
                    about = tarfile.TarInfo(f"a.b/{i:05}.{ending}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return {"path": str(root), "num_classes": 2}


def make_parquet(root):
    for shard in range(2):
        rows = range(6 * shard, 6 * shard + 6)
        images = [{"bytes": encoded(IMAGES[i]), "path": None} for i in rows]
        columns = {"image": images, "label": [LABELS[i] for i in rows], "captions": [CAPTIONS[i] for i in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), root / f"{shard}.parquet", row_group_size=4)
    return {"path": str(root), "num_classes": 2}


def make_latents(root):
    for i in range(ROWS):
        path = root / "latents" / f"n{LABELS[i]}" / f"{i:03}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"latent": LATENTS[i], "label": np.array([LABELS[i]], np.int64)}, path)
    return {"path": str(root / "latents"), "channels": 4}


def make_shards(root):
    rows = ({"image": encoded(IMAGES[i]), "label": LABELS[i], "captions": CAPTIONS[i]} for i in range(ROWS))
    data.write_shards(root / "shards", rows, num_classes=2, rows_per_shard=5)
    return {"path": str(root / "shards")}


def make_tfds(root):
    prepare(Things, str(root / "cache"))
    return {"path": "things"}


MADE = {"folder": make_folder, "manifest": make_manifest, "tar": make_tar, "parquet": make_parquet}
MADE |= {"latents": make_latents, "shards": make_shards, "tfds": make_tfds}
EMBEDDED = ("digits", "photos")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    return str(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module", params=[name for name in data.SOURCES if name not in EMBEDDED])
def made(request, tmp_path_factory):
    """(name, source, a function that opens it again) of made-up data in every layout."""
    root = tmp_path_factory.mktemp(request.param)
    where = MADE[request.param](root)

    def again():
        return data.open_source(request.param, str(root / "cache"), "train", **where)

    return request.param, again(), again


@pytest.fixture(params=list(data.SOURCES))
def any_source(request, embedded, tmp_path):
    """A source for every entry of the table."""
    if request.param in EMBEDDED:
        return data.open_source(request.param, embedded, "held_out")
    where = MADE[request.param](tmp_path)
    return data.open_source(request.param, str(tmp_path / "cache"), "train", **where)


def test_rows_are_what_was_written(made):
    name, source, _ = made
    assert len(source) == ROWS
    for i in range(ROWS):
        row = source[i]
        assert row["index"] == i
        if name == "latents":
            np.testing.assert_array_equal(row["image"], np.moveaxis(LATENTS[i, 0], 0, -1))
            np.testing.assert_array_equal(row["flipped"], np.moveaxis(LATENTS[i, 1], 0, -1))
        else:
            np.testing.assert_array_equal(row["image"], IMAGES[i])
        assert row["label"] == (0 if name == "manifest" else LABELS[i])
        if name in ("manifest", "shards", "parquet"):
            assert row["captions"] == CAPTIONS[i]
        elif name in ("tar", "tfds"):
            assert set(row["captions"]) <= set(CAPTIONS[i])
        else:
            assert "captions" not in row


def test_what_a_source_says_of_its_rows_is_so(any_source):
    source = any_source
    identities = [source.identity(i) for i in range(min(len(source), 50))]
    assert len(set(identities)) == len(identities)
    for i in range(0, len(source), max(1, len(source) // 10)):
        row = source[i]
        height, width, channels = source.image_shape
        assert row["image"].shape == (*source.header(i), channels)
        assert (height, width) in ((None, None), row["image"].shape[:2])
        assert 0 <= row["label"] < max(1, source.num_classes)
        assert ("captions" in row) == source.captions
        assert row["image"].dtype == (np.float32 if "flipped" in row else np.uint8)


def test_sizes_read_once_are_those_of_the_rows(any_source, tmp_path):
    sizes = read_sizes(any_source, tmp_path / "sizes")
    assert len(sizes) == len(any_source) and not sizes.faults
    for i in range(0, len(any_source), max(1, len(any_source) // 10)):
        assert (sizes.height[i], sizes.width[i]) == any_source[i]["image"].shape[:2]


def test_a_source_travels_to_a_worker_without_its_rows(any_source):
    expected = any_source[3]
    packed = pickle.dumps(any_source)
    assert len(packed) < 2000
    np.testing.assert_array_equal(pickle.loads(packed)[3]["image"], expected["image"])


def test_a_source_is_read_by_many_threads_at_once(any_source):
    rows = [i % len(any_source) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for i, row in zip(rows, pool.map(any_source.__getitem__, rows), strict=True):
            assert row["index"] == i
            np.testing.assert_array_equal(row["image"], any_source[i]["image"])


def test_a_source_makes_batches(any_source, tmp_path):
    sizes = read_sizes(any_source, tmp_path / "sizes")
    latents = any_source[0]["image"].dtype != np.uint8
    fitting = data.Fitting(max_cropped=0.9, resize=not latents)
    plan = data.make_plan(any_source, sizes, data.Bucketing(area=12 * 12, rows=4, most=3, fitting=fitting), tmp_path)
    assert plan.images() == len(any_source)
    batches = data.global_batches(any_source, plan, 0, look=data.Look(flip=0.5))
    for step in range(4):
        batch = batches[step]
        assert batch["x"].shape[1:3] == tuple(batch["bucket"]) and batch["x"].dtype == np.float32
        assert len(batch["bad"]) == 0
        assert ("caption" in batch) == any_source.captions


def test_opened_again_it_is_the_same(made):
    _, source, again = made
    assert again().fingerprint() == source.fingerprint()


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("tfds", "shards")])
def test_a_changed_source_has_another_fingerprint(name, tmp_path):
    where = MADE[name](tmp_path)
    before = data.open_source(name, str(tmp_path / "cache"), **where).fingerprint()
    if name == "manifest":
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"image_file": "sub/0.png", "captions": "again"}))
    elif name in ("folder", "latents"):
        path = next((tmp_path / {"folder": "images"}.get(name, name)).glob("*/*.*"))
        path.rename(path.with_name("renamed" + path.suffix))
    else:
        path = sorted(tmp_path.rglob({"tar": "*.tar", "parquet": "*.parquet"}[name]))[0]
        path.write_bytes(path.read_bytes() + b"\0" * 1024)
    assert data.open_source(name, str(tmp_path / "cache"), **where).fingerprint() != before


# What is wrong.


@pytest.mark.parametrize(
    "name, path, message",
    [
        ("folder", "", "data.path is empty"),
        ("folder", "nowhere", "no such file or folder"),
        ("folder", ".", "one folder per class"),
        ("latents", ".", "one folder per class"),
        ("manifest", ".", "one .jsonl file, but holds 0"),
        ("tar", ".", "end in .tar"),
        ("parquet", ".", "end in .parquet"),
        ("shards", ".", "about.json|array_record"),
        ("tfds", "no_such_data", "no_such_data.*TensorFlow Datasets"),
    ],
)
def test_a_wrong_path_is_refused_in_one_line(name, path, message, tmp_path):
    where = str(tmp_path / path) if path and name != "tfds" else path
    with pytest.raises(ValueError, match=message) as error:
        data.open_source(name, str(tmp_path / "cache"), path=where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "..", "sub/../../x", "..\\a", "s3://other/a", "/database/a", ""],
)
def test_a_path_that_climbs_out_of_its_root_is_refused(name):
    with pytest.raises(BadRecord, match="outside root"):
        inside("/data", name)


@pytest.mark.parametrize("name", ["a.png", "sub/../a.png", "./a.png", "/data/a.png", "..a.png", "sub/..a/b.png"])
def test_a_path_inside_its_root_is_kept(name):
    assert not inside("/data", name).startswith(("/", "../"))


@pytest.mark.parametrize("bucket, size", [("512x768", (512, 768)), ("1.5-512x768", (512, 768)), ([3, 4], (3, 4))])
def test_a_declared_bucket_is_a_size(bucket, size):
    assert declared_size(bucket) == size


@pytest.mark.parametrize("bucket", ["512", "0x5", 7, "axb", "5x99999999999", [1, 2, 3]])
def test_a_wrong_bucket_is_a_bad_record(bucket):
    with pytest.raises(BadRecord, match="metadata"):
        declared_size(bucket)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("name", ["tar", "parquet"])
def test_a_shard_that_is_cut_short_is_listed_and_the_others_are_read(name, tmp_path):
    where = MADE[name](tmp_path)
    last = sorted(tmp_path.rglob({"tar": "*.tar", "parquet": "*.parquet"}[name]))[-1]
    cut(last, 0.5)
    source = data.open_source(name, str(tmp_path / "cache"), **where)
    sizes = read_sizes(source, tmp_path / "sizes")
    assert sizes.faults["shard"] == 1 and 6 <= np.count_nonzero(sizes.height) < ROWS
    listed = [json.loads(line) for line in open(sizes.listed)]
    assert all(row["identity"].startswith(last.name) for row in listed)
    for i in np.flatnonzero(sizes.height):
        np.testing.assert_array_equal(source[int(i)]["image"], IMAGES[i])


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda path: cut(path, 0.5), "another size"),
        (lambda path: path.unlink(), "not there"),
        (lambda path: (path.parent / "about.json").unlink(), "about.json"),
        (lambda path: (path.parent / "about.json").write_text("{}"), "about.json"),
    ],
)
def test_shards_that_are_not_what_their_manifest_says_are_refused(damage, told, tmp_path):
    where = make_shards(tmp_path)
    damage(sorted((tmp_path / "shards").glob("*.array_record"))[1])
    with pytest.raises(ValueError, match=f"data.path.*{told}") as error:
        data.open_source("shards", str(tmp_path / "cache"), **where)
    assert "\n" not in str(error.value)


def test_a_damaged_shard_of_the_right_size_makes_bad_records_and_is_found_by_its_checksum(tmp_path):
    where = make_shards(tmp_path)
    path = sorted((tmp_path / "shards").glob("*.array_record"))[1]
    path.write_bytes(bytes(len(path.read_bytes())))
    source = data.open_source("shards", str(tmp_path / "cache"), **where)
    np.testing.assert_array_equal(source[4]["image"], IMAGES[4])
    with pytest.raises(BadRecord, match="shard"):
        source[5]
    with pytest.raises(ValueError, match=f"checksum.*{path.name}"):
        shard_files.verify(tmp_path / "shards")


def test_a_manifest_with_a_broken_line_keeps_the_others(tmp_path):
    source = data.open_source("manifest", str(tmp_path / "cache"), **make_manifest(tmp_path, '\n{"image_file": "su\n'))
    sizes = read_sizes(source, tmp_path)
    assert (len(source), sizes.faults) == (ROWS + 1, {"metadata": 1})


# Text features.


def test_text_features_ride_along_and_the_empty_prompt_is_kept_once(tmp_path):
    """Those of the caption that is drawn, at their true length in bfloat16; padding is as the empty prompt ends."""
    rng = np.random.default_rng(0)
    null = {"text": rng.standard_normal((5, 3)).astype(np.float32), "mask": np.arange(5) < 1}
    rows = [
        {
            "latent": LATENTS[i],
            "captions": ["one", "another"],
            "texts": [rng.integers(-9, 9, (length, 3)).astype(np.float32) for length in (1 + i % 5, 2)],
            "features": rng.standard_normal((2, 3, 4, 7)).astype(np.float32),
        }
        for i in range(ROWS)
    ]
    data.write_shards(tmp_path / "shards", rows, null=null)
    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "shards"))
    assert source[3]["texts"][0].dtype == "bfloat16"
    how = data.Bucketing(table=((6, 8),), rows=6, grid=data.Grid(side=2), fitting=data.Fitting(resize=False))
    plan = data.make_plan(source, read_sizes(source, tmp_path), how, tmp_path)
    batch = data.global_batches(source, plan, 0, look=data.Look(flip=0.5, side=2))[0]
    assert set(batch["caption"]) == {"one", "another"}
    mirrored = []
    for k, i in enumerate(batch["index"]):
        text = rows[i]["texts"][int(batch["caption"][k] == "another")]
        np.testing.assert_array_equal(batch["text"][k], np.concatenate([text, null["text"][[-1] * (5 - len(text))]]))
        np.testing.assert_array_equal(batch["mask"][k], np.arange(5) < len(text))
        mirrored.append(bool((batch["x"][k] == np.moveaxis(LATENTS[i, 1], 0, -1)).all()))
        np.testing.assert_array_equal(batch["features"][k], rows[i]["features"][int(mirrored[-1])].reshape(12, 7))
    assert len(set(mirrored)) == 2 and batch["features_mask"].all()
    for name in ("text", "mask"):
        np.testing.assert_array_equal(batch[f"null_{name}"], null[name][None])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"texts": [np.zeros((2, 3))]}, "metadata"),  # two captions
        ({"texts": [np.zeros((2, 3)), np.full((1, 3), np.nan)]}, "not finite"),
        ({"features": np.zeros((3, 4, 7), np.float32)}, "features"),
    ],
)
def test_features_that_do_not_fit_are_bad_records(change, reason, tmp_path):
    row = {"latent": LATENTS[0], "captions": ["one", "another"], "texts": [np.zeros((2, 3)), np.zeros((1, 3))]}
    data.write_shards(tmp_path / "shards", [row, row | change])
    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "shards"))
    assert source[0]["label"] == 0
    with pytest.raises(BadRecord, match=reason):
        source[1]


# Mixtures.


def test_a_mixture_draws_by_weight_and_each_row_of_a_source_alike(tmp_path):
    roots = [tmp_path / "a", tmp_path / "b"]
    sources = []
    for root in roots:
        root.mkdir()
        sources.append(data.open_source("parquet", str(root), **make_parquet(root)))
    mixture = data.Mixture(tuple(sources), (3.0, 1.0))
    assert len(mixture) == 2 * ROWS
    assert [mixture[i]["label"] for i in range(2 * ROWS)] == LABELS * 2
    assert len({mixture.identity(i) for i in range(2 * ROWS)}) == 2 * ROWS
    how = data.Bucketing(area=144, rows=2, most=2, fitting=data.Fitting(max_cropped=0.9))
    plan = data.make_plan(mixture, read_sizes(mixture, tmp_path), how, tmp_path)
    assert len(plan.buckets) == 2 and plan.images() == 2 * ROWS
    order, seen = data.Order(plan, 0), np.zeros(2 * ROWS, int)
    epochs = 40
    for step in range(round(epochs * order.steps_per_epoch)):
        bucket, first = order.bucket(step)
        seen += np.bincount(order.rows(bucket, first + np.arange(2)), minlength=2 * ROWS)
    # An epoch is 24 rows: 18 of the first source, so 1.5 passes, and 6 of the other, so half a pass.
    assert abs(seen[:ROWS] - 1.5 * epochs).max() <= 2 and abs(seen[ROWS:] - 0.5 * epochs).max() <= 2


@pytest.mark.parametrize("weights, message", [((1.0,), "weight for each"), ((1.0, 0.0), "must be above 0")])
def test_a_wrong_mixture_is_refused(weights, message, tmp_path):
    source = data.open_source("folder", str(tmp_path / "cache"), **make_folder(tmp_path))
    with pytest.raises(ValueError, match=message):
        data.Mixture((source, source), weights)


# The photographs.


def test_photos_are_crops_of_every_class_at_many_aspect_ratios(embedded):
    source = data.open_source("photos", embedded, "held_out")
    rows = [source[i] for i in range(len(source))]
    assert np.bincount([row["label"] for row in rows]).tolist() == [40] * 10 and source.num_classes == 10
    ratios = np.array([row["image"].shape[0] / row["image"].shape[1] for row in rows])
    assert ratios.min() < 0.5 and ratios.max() > 2
    assert np.histogram(np.log(ratios), 6, np.log((0.4, 2.5)))[0].min() > 30
    areas = np.array([row["image"].shape[0] * row["image"].shape[1] for row in rows])
    assert areas.min() > 40**2 and areas.max() < 130**2
    things = [thing for _, thing in PHOTOGRAPHS.values()]
    assert all(things[row["label"]] in caption for row in rows for caption in row["captions"])
    assert all(row["image"].std() > 3 for row in rows)


def test_no_tensorflow_is_imported(embedded):
    code = (
        "import sys; from tim_jax import data; s = data.open_source('photos', sys.argv[1], 'held_out'); s[0];"
        "assert 'tensorflow' not in sys.modules; print(s.fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code, embedded], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == data.open_source("photos", embedded, "held_out").fingerprint()
