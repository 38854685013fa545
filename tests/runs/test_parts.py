"""Every source, and a mixture: what is held out is never trained on, and what is added later moves nothing."""

import dataclasses
import hashlib
import shutil
import tarfile

import jax
import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.sources import CAPTIONS, EMBEDDED, IMAGES, LABELS, LATENTS, MADE, encoded
from tim_jax import data
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.data.settings import open_data
from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.runs import input_pipeline, measuring

SHARE = 0.4
MIXTURE = "mixture"
KEYS = {
    **TINY_NETWORK, "model.patch_size": "2", "data.height": "8", "data.width": "8", "data.batch_size": "2",
    "data.buckets.enlarge": "True", "data.buckets.max_cropped": "0.99", "data.flip": "0",
    "training.sample_every": "0", "evaluation.batch_size": "8", "evaluation.metrics": "('frechet',)",
}  # fmt: skip


def keys_of(name, root, embedded):
    """Keys of a configuration for an entry of the table, its data being made."""
    keys = KEYS | {"loader.directory": str(root / "cache"), "data.held_out_share": str(SHARE)}
    if name in EMBEDDED:
        size = {"digits": ("8", "1"), "photos": ("8", "3"), "emoji": ("16", "3")}[name]
        return keys | {"data.source": name, "data.channels": size[1], "data.held_out_share": "0",
                       "loader.directory": str(embedded), "model.num_classes": "10"}  # fmt: skip
    if name == MIXTURE:
        parts = []
        for source in ("parquet", "tar"):
            (root / source).mkdir()
            parts.append((source, MADE[source](root / source)["path"], 1.0))
        return keys | {"data.mixture": str(tuple(parts)), "model.num_classes": "2", "data.channels": "3"}
    where = MADE[name](root)
    keys |= {"data.source": name, "data.path": where["path"], "data.channels": "3", "model.num_classes": "2"}
    if name == "preferences":  # by whose names another share is held out, of which four images are needed
        keys |= {"data.held_out_share": "0.5"}
    if name == "latents":
        keys |= {"data.channels": "4", "data.height": "6"}
    return keys


def built(keys, **more):
    return build(load_config("base", keys | {key.replace("__", "."): value for key, value in more.items()}),
                 jax.devices()[:1])  # fmt: skip


def contents(source, rows=None):
    """The digest of the pixels of each example, which knows nothing of names or numbers."""
    rows = range(len(source)) if rows is None else rows
    return [hashlib.sha256(np.ascontiguousarray(source[int(i)]["image"]).tobytes()).hexdigest() for i in rows]


@pytest.fixture(scope="module", params=[*data.SOURCES, MIXTURE])
def given(request, tmp_path_factory, embedded):
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, keys_of(request.param, root, embedded)


def test_training_never_sees_what_is_held_out(given):
    """By pixels, over every example of some epochs of batches; both parts are together the whole."""
    name, _, keys = given
    run = built(keys)
    split, held_out, _ = input_pipeline.open_held_out(run)
    assert split == "held_out"
    pipeline = input_pipeline.SourcePipeline(run, *open_data(run.inputs))
    steps = 4 * len(pipeline.source) // 2 if name not in EMBEDDED else 200
    rows = {int(i) for step in range(steps) for i in pipeline.dataset[step]["index"]}
    trained, out = set(contents(pipeline.source, sorted(rows))), set(contents(held_out))
    assert trained and out
    if name == MIXTURE:  # whose sources hold the same images: nobody can know, but it is told
        assert trained & out and measuring.open_measurement(run).duplicates["held_out_in_training"] == len(
            trained & out
        )
    else:
        assert not trained & out
    if name not in EMBEDDED:
        assert len(rows) == len(pipeline.source)
        count = 2 * len(IMAGES) if name == MIXTURE else len(IMAGES)
        assert len(pipeline.source) + len(held_out) == count
    if name != "latents":
        measured = measuring.open_measurement(run)
        assert measured.image_sets[""].count == len(pipeline.source)
        assert measured.image_sets[HELD_OUT].count == len(held_out)


def test_it_is_refused_in_one_line_or_said_where_nothing_is_held_out(given):
    name, _, keys = given
    if name in EMBEDDED:
        with pytest.raises(ValueError, match="data.held_out_share is 0.4; it must be 0") as error:
            input_pipeline.open_pipeline(built(keys, data__held_out_share="0.4"))
    else:
        run = built(keys, data__held_out_share="0")
        assert input_pipeline.open_held_out(run) is None, "evaluation.held_out is auto: nothing is held out"
        run = built(keys, data__held_out_share="0", evaluation__held_out="held_out")
        with pytest.raises(ValueError, match="evaluation.held_out is 'held_out'; it must be one of train") as error:
            input_pipeline.open_held_out(run)
    assert "\n" not in str(error.value)


def more_files(folder, ending, content):
    for i in range(20):
        (folder / f"{'ab'[i % 2]}{i}{ending}").write_bytes(content)


def add_to_folder(root):
    for label in (0, 1):
        more_files(root / "images" / f"class {label}", ".png", encoded(IMAGES[0]))
    (root / "images" / "class 00").mkdir()  # a class in between, which moves labels
    more_files(root / "images" / "class 00", ".png", encoded(IMAGES[1]))


def add_to_manifest(root):
    lines = (root / "rows.jsonl").read_text()
    more = "\n".join(f'{{"image_file": "more/{i}.png", "captions": "one more"}}' for i in range(20))
    (root / "more").mkdir()
    for i in range(20):
        (root / "more" / f"{i}.png").write_bytes(encoded(IMAGES[0]))
    (root / "rows.jsonl").write_text(f"{more}\n{lines}")  # in front


def add_to_tar(root):
    shutil.copy(root / "0.tar", root / "more.tar")
    with tarfile.open(root / "1.tar") as old:
        old.extractall(root / "unpacked", filter="data")
    with tarfile.open(root / "1.tar", "a") as tar:
        for path in sorted(path for path in (root / "unpacked").rglob("*.*") if path.is_file()):
            tar.add(path, arcname=f"more/{path.name}")


def add_to_parquet(root):
    table = pyarrow.parquet.read_table(root / "1.parquet")
    pyarrow.parquet.write_table(pyarrow.concat_tables([table, table]), root / "1.parquet", row_group_size=5)
    pyarrow.parquet.write_table(table, root / "00.parquet")


def add_to_latents(root):
    for label in (0, 1):
        content = safetensors.numpy.save({"latent": LATENTS[0], "label": np.array([label], np.int64)})
        more_files(root / "latents" / f"n{label}", ".safetensors", content)


def add_to_shards(root):
    shutil.rmtree(root / "shards")
    rows = ({"image": encoded(IMAGES[i % 12]), "label": LABELS[i % 12], "captions": CAPTIONS[i % 12]}
            for i in range(30))  # fmt: skip
    data.write_shards(root / "shards", rows, num_classes=2, examples_per_shard=5)


def add_to_preferences(root):
    lines = (root / "pairs.jsonl").read_text()
    for i in range(20):
        (root / f"more {i}.png").write_bytes(encoded(IMAGES[0]))
    more = "".join(
        f'{{"images": ["more {i}.png", "0.png"], "choice": 0, "label": 1, "reward": 1}}\n' for i in range(20)
    )
    (root / "pairs.jsonl").write_text(more + lines)  # in front


ADD = {"folder": add_to_folder, "manifest": add_to_manifest, "tar": add_to_tar, "parquet": add_to_parquet}
ADD |= {"latents": add_to_latents, "shards": add_to_shards, "preferences": add_to_preferences}
FIXED = {*EMBEDDED, "tfds"}  # a data set of one version, to which nothing can be added


@pytest.mark.parametrize("name", [*data.SOURCES, MIXTURE])
def test_what_is_added_moves_nothing(name, tmp_path):
    if name in FIXED:
        return
    keys = keys_of(name, tmp_path, None)

    def parts():
        inputs, found = built(keys).inputs, []
        for split in ("train", "held_out"):
            source = input_pipeline.open_split(inputs, split)
            names = [name for part in getattr(source, "sources", (source,))
                     for name in part.stable_names(0, len(part))]  # fmt: skip
            found.append(dict(zip(names, contents(source), strict=True)))
        return found

    before = parts()
    for each in ("parquet", "tar") if name == MIXTURE else [name]:
        ADD[each](tmp_path / each if name == MIXTURE else tmp_path)
    after = parts()
    assert all(old.items() <= new.items() for old, new in zip(before, after, strict=True))
    assert all(len(new) > len(old) for old, new in zip(before, after, strict=True))
    assert not after[0].keys() & after[1].keys()


LAYOUTS = ("folder", "manifest", "tar", "parquet", "shards")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same images in every layout, and one of them copied elsewhere."""
    root, found = tmp_path_factory.mktemp("layouts"), {}
    for name in LAYOUTS:
        (root / name).mkdir()
        found[name] = name, MADE[name](root / name)["path"]
    shutil.copytree(root / "folder" / "images", root / "elsewhere" / "images")
    found["a copy"] = "folder", str(root / "elsewhere" / "images")
    keys = KEYS | {"data.source": "folder", "data.path": found["folder"][1], "data.channels": "3",
                   "model.num_classes": "2", "data.held_out_share": str(SHARE),
                   "loader.directory": str(root / "cache")}  # fmt: skip
    return built(keys), found


@pytest.mark.parametrize("trained", [*LAYOUTS])
@pytest.mark.parametrize("compared", [*LAYOUTS, "a copy"])
def test_real_images_of_another_source_are_none_that_are_trained_on(trained, compared, layouts):
    """The same images under the same names are on the same side; under other names they are refused."""
    run, found = layouts
    source, path = found[compared]
    settings = dataclasses.replace(run.evaluation, source=source, path=path)
    inputs = dataclasses.replace(run.inputs, source=found[trained][0], path=found[trained][1])
    run = dataclasses.replace(run, evaluation=settings, inputs=inputs)
    seen = set(contents(input_pipeline.open_split(inputs, "train")))
    if source == inputs.source:
        split, held_out, _ = input_pipeline.open_held_out(run)
        assert split == "held_out" and len(held_out) and not seen & set(contents(held_out))
        return
    with pytest.raises(ValueError, match=f"evaluation.source is '{source}'; it must call") as error:
        input_pipeline.open_held_out(run)
    assert "\n" not in str(error.value)
    there = dataclasses.replace(inputs, source=source, path=path)
    assert seen & set(contents(input_pipeline.open_split(there, "held_out"))), "which would be trained on"
