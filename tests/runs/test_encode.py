"""python -m tim_jax.encode: shards hold what online encoding gives, and come whole out of kills and of processes."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.shard_commands import contents, ends, in_two, killed, signalled, start
from tim_jax import codecs, data
from tim_jax import encode as command
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.data import shard_files
from tim_jax.data.fit import Augmentation, draws, fit
from tim_jax.runs import input_pipeline, shard_job
from tim_jax.runs.encoding import estimate
from tim_jax.runs.encoding.job import Encoding
from tim_jax.runs.encoding.settings import module_identity
from tim_jax.runs.encoding.work import local_run, open_work
from tim_jax.system import lock

ROWS, SIZES = 23, ((32, 32), (32, 48), (48, 32), (40, 70))
TINY = {
    "data.source": "manifest", "data.height": "8", "data.width": "8", "data.channels": "4", "data.flip": "0.5",
    "data.batch_size": "4", "data.buckets.area": "144", "data.buckets.tokens": "0", "data.buckets.max_buckets": "2",
    **TINY_NETWORK,
    "model.patch_size": "2", "optimizer.warmup_steps": "0", "optimizer.decay_steps": "40",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of four sizes with one to three captions each."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    lines = []
    for i in range(ROWS):
        h, w = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).resize((w, h)).save(folder / f"{i}.png")
        captions = [f"picture {i}", f"the picture of number {i}, {'very ' * (i % 5)}noisy", "noise"][: 1 + i % 3]
        lines.append(json.dumps({"image_file": f"{i}.png", "captions": captions}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def keys(images, published, tmp_path_factory):
    """Configuration keys: latents, text and features of those images."""
    return TINY | {
        "data.path": str(images), "loader.directory": str(tmp_path_factory.mktemp("cache")),
        "codecs.autoencoder": str(published("autoencoder_kl_tiny")), "data.features_width": "32",
        "codecs.image_encoder": str(published("dinov2_tiny")),
    }  # fmt: skip


def flags(keys):
    return ["--config=photos_t2i", *(f"--config.{name}={value}" for name, value in keys.items())]


def encode(keys, out, *more, rows=6):
    command.main([*flags(keys), f"--out={out}", f"--examples-per-shard={rows}", *more])


@pytest.fixture(scope="module")
def encoded(keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "shards"
    encode(keys, folder)
    return folder


def online(keys):
    return build(load_config("photos_t2i", keys), jax.devices()[:1])


def from_shards(keys, folder):
    change = {"data.source": "shards", "data.path": str(folder), "data.encode": "False", "codecs.latents": "mean"}
    return online(keys | change)


def batches_of(run, count):
    account = data.Account(run.inputs.directory)
    stream = dataclasses.replace(input_pipeline.open_pipeline(run), account=account).batches(0)
    return [next(stream)[0] for _ in range(count)]


def same_batches(keys, folder, count=6):
    """The batches of both roads: the same rows in the same order, mirrored alike, with the same caption."""
    pairs = list(zip(batches_of(online(keys), count), batches_of(from_shards(keys, folder), count), strict=True))
    for now, then in pairs:
        assert now.keys() == then.keys()
        for name in now:
            rounding = {"rtol": 2**-8, "atol": 1e-5} if name == "text" else {"rtol": 1e-5, "atol": 2e-5}
            np.testing.assert_allclose(now[name], then[name], err_msg=name, **rounding)
    return pairs


@pytest.mark.slow
def test_training_gets_what_online_encoding_would_give(keys, encoded):
    pairs = same_batches(keys, encoded)
    assert len({batch["x"].shape for batch, _ in pairs}) == 2
    lengths = {int(length) for batch, _ in pairs for length in batch["mask"].sum(1)}
    assert len(lengths) > 3 and max(lengths) < 72, "captions are padded, also where the features of padding count"
    now, then = pairs[0]
    run = from_shards(keys, encoded)
    losses = [run.trainer(run.trainer.create(), batch)[1]["loss"] for batch in (now, then)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_shards_hold_consecutive_rows_and_the_manifest_says_what_they_are(encoded, images):
    about = json.loads((encoded / "about.json").read_text())
    assert about["rows"] == ROWS and [shard["rows"] for shard in about["shards"]] == [6, 6, 6, 5]
    for shard in about["shards"] + about["beside"]:
        path = encoded / shard["name"]
        assert path.stat().st_size == shard["bytes"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
    source = data.open_source("shards", "unused", path=str(encoded))
    captions = [json.loads(line)["captions"] for line in (images / "rows.jsonl").read_text().splitlines()]
    for i in range(ROWS):
        row = source[i]
        assert list(row["captions"]) == captions[i]
        assert [len(text) for text in row["texts"]] == [1 + len(text) for text in captions[i]], "bytes and a beginning"
        assert row["image"].shape == row["flipped"].shape == (*source.header(i), 4)
    command.main([f"--verify={encoded}"])


@pytest.fixture
def of_pixels(keys):
    """Keys for rows that stay images, with text."""
    images = {name: value for name, value in keys.items() if "codecs" not in name and "features" not in name}
    images |= {"data.height": "32", "data.width": "32", "data.channels": "3", "data.buckets.area": "1600"}
    return images | {"model.patch_size": "8"}


def test_images_without_an_autoencoder_are_kept_bit_for_bit(of_pixels, tmp_path):
    encode(of_pixels, tmp_path / "shards")
    for now, then in same_batches(of_pixels, tmp_path / "shards", 4):
        np.testing.assert_array_equal(now["x"], then["x"])


@pytest.mark.nightly
def test_moments_are_sampled_by_seed_step_and_row(keys, tmp_path, images):
    sampled = keys | {"codecs.latents": "sample"}
    encode(sampled, tmp_path / "shards")
    source = data.open_source("shards", "unused", path=str(tmp_path / "shards"))
    row = source[0]
    module, params = codecs.load(keys["codecs.autoencoder"], codecs.AUTOENCODERS)
    image = data.normalise(np.asarray(Image.open(images / "0.png")))
    pair = np.stack([image, image[:, ::-1]])
    mean, logvar = module.apply({"params": params}, pair, method="moments")
    scale = module.config.scaling_factor
    np.testing.assert_allclose([row["image"], row["flipped"]], scale * mean, atol=1e-5)
    np.testing.assert_allclose(row["deviations"], scale * np.exp(0.5 * logvar), rtol=1e-4)

    def samples(seed, step, flip):
        augmentation = Augmentation(flip=flip, side=2)
        drawn = draws(seed, step, np.arange(1000))
        return np.stack(
            [fit(row, (8, 8), data.Fitting(), augmentation, draw, source.null_text)["image"] for draw in drawn]
        )

    for k, flip in enumerate((0.0, 1.0)):
        found = samples(0, 5, flip)
        z = (found - (row["flipped"] if k else row["image"])) / row["deviations"][k]
        assert abs(z.mean()) < 4 / z.size**0.5 and abs(z.var() - 1) < 4 * (2 / z.size) ** 0.5
        np.testing.assert_array_equal(found, samples(0, 5, flip))
        assert (found != samples(0, 6, flip)).mean() > 0.99 and (found != samples(1, 5, flip)).mean() > 0.99
    batch = batches_of(from_shards(sampled, tmp_path / "shards"), 1)[0]
    again = batches_of(from_shards(sampled, tmp_path / "shards"), 1)[0]
    np.testing.assert_array_equal(batch["x"], again["x"])


def test_what_is_missing_or_damaged_is_made_again_bit_for_bit(keys, encoded, tmp_path, capsys):
    folder = tmp_path / "shards"
    shutil.copytree(encoded, folder)
    before = contents(folder)
    encode(keys, folder)
    assert "nothing is left to do" in capsys.readouterr().out
    for name in ("about.json", "rows-00001.json", "rows-00003.array_record"):
        (folder / name).unlink()
    damaged = folder / "rows-00002.array_record"
    damaged.write_bytes(b"\1" + damaged.read_bytes()[1:])
    untouched = (folder / "rows-00000.array_record").stat().st_mtime_ns
    encode(keys, folder)
    assert contents(folder) == before
    assert (folder / "rows-00000.array_record").stat().st_mtime_ns == untouched


def test_the_estimate_is_close_and_a_disk_without_room_is_told_before(keys, tmp_path, capsys, monkeypatch):
    run = local_run(load_config("photos_t2i", keys))
    work = open_work(run, 6)
    size = Encoding(run, work).size_in_bytes()
    latents = features = 0
    for bucket in work.plan.buckets:
        latents += sum(bucket.images) * 2 * 4 * (bucket.height // 4) * (bucket.width // 4) * 4
        features += sum(bucket.images) * 2 * 32 * (bucket.height // 8) * (bucket.width // 8) * 4
    rest = size - latents - features - work.shards * estimate.SHARD_OVERHEAD - ROWS * estimate.EXAMPLE_OVERHEAD
    text = sum(sum(1 + len(t) for t in work.source[i]["captions"]) for i in range(ROWS)) * 96 * 2
    assert text <= rest < 1.02 * text
    monkeypatch.setattr(shard_job, "free", lambda folder: size // 2)
    assert "the disk lacks about" in fails(
        [*flags(keys), f"--out={tmp_path / 'shards'}", "--examples-per-shard=6"], capsys
    )
    assert not (tmp_path / "shards").exists()


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_classes_of_one_size_train_without_buckets(keys, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(9):
        path = tmp_path / "images" / f"class {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 32 + i, 3), np.uint8)).save(path)
    few = {name: value for name, value in keys.items() if name.startswith(("model.", "loader.", "codecs.auto"))}
    few |= {"data.height": "8", "data.width": "8", "data.batch_size": "4", "model.num_classes": "3"}
    few |= {"data.features_width": "0", "objective.alignment_weight": "0.0"}
    source = {"data.encode": "True", "data.source": "folder", "data.path": str(tmp_path / "images")}
    of_class = [f"--config.{key}={value}" for key, value in (few | source).items()]
    more = ["--config.data.buckets.table=((8, 8),)", f"--out={tmp_path / 'shards'}"]
    command.main(["--config=imagenet256_b", *of_class, *more])
    shards = {"data.source": "shards", "data.path": str(tmp_path / "shards")}
    run = build(load_config("imagenet256_b", few | shards), jax.devices()[:1])
    found = input_pipeline.open_pipeline(run)
    assert found.source.image_shape == (8, 8, 4)
    assert found.source.class_names == ("class 0", "class 1", "class 2")
    assert [found.source[i]["label"] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_buckets_are_those_of_training_whatever_devices_encode(keys):
    run = local_run(load_config("photos_t2i", keys | {"mesh.sequence": "2", "mesh.fsdp": "4"}))
    assert run.mesh.devices.size == jax.local_device_count() and run.inputs.bucketing.grid.batch_multiple == 1
    assert run.inputs.bucketing.grid.tokens_multiple == 2


WRONG = {
    "data.encode False": ({"data.encode": "False"}, "data.encode is False; it must be True"),
    "random crops": ({"data.random_crop": "True"}, "data.random_crop is True; it must be False: shards hold"),
    "a mixture": ({"data.mixture": "(('photos', '', 1),)"}, "it must be (): encode each"),
    "patch": ({"model.patch_size": "3"}, "model.patch_size is 3; it must divide data.height, 8"),
    "tile": ({"codecs.tile": "20"}, "codecs.tile is 20; it must be a multiple of 16"),
    "channels": ({"data.channels": "8"}, "data.channels is 8; it must be 4, as the latents of"),
    "scale": ({"data.latent_scale": "0.5"}, "data.latent_scale is 0.5; it must be "),
    "no folder": ({"codecs.autoencoder": "/nowhere"}, "/nowhere: is neither a folder nor a file"),
    "no rows": ({"data.path": "/nowhere"}, "data.path is '/nowhere'; it must be a file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_one_line_and_nothing_is_written(name, keys, tmp_path, capsys):
    changes, told = WRONG[name]
    assert told in fails([*flags(keys | changes), f"--out={tmp_path / 'shards'}"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_text_needs_captions(keys, images, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    shutil.copytree(images, tmp_path / "images" / "class")
    changes = {"data.source": "folder", "data.path": str(tmp_path / "images")}
    assert "the examples of images have no captions" in fails(
        [*flags(keys | changes), f"--out={tmp_path / 'out'}"], capsys
    )
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_one_line(keys, encoded, tmp_path, capsys):
    assert "--out: missing" in fails(flags(keys), capsys)
    assert "--config: missing" in fails([f"--out={tmp_path}"], capsys)
    assert "--examples-per-shard is 0" in fails([*flags(keys), f"--out={tmp_path}", "--examples-per-shard=0"], capsys)
    assert "gs://bucket/rows" in fails([*flags(keys), "--out=gs://bucket/rows"], capsys)
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds thesis.txt; give a new folder" in fails([*flags(keys), f"--out={tmp_path}"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    latents = {"data.source": "shards", "data.path": str(encoded)}
    told = fails([*flags(keys | latents | {"codecs.autoencoder": ""}), f"--out={tmp_path / 'again'}"], capsys)
    assert "data.encode is True; it must be False, as the examples of shards are latents already" in told


@pytest.mark.parametrize(
    "change, told",
    [
        ({"codecs.text_states": "second_to_last"}, "text.states 'last'"),
        ({"data.text_tokens": "40"}, "text.tokens 72"),
        ({"data.buckets.max_buckets": "1"}, "buckets."),
        ({"codecs.dtype": "bfloat16"}, "codecs.dtype 'float32'"),
    ],
)
def test_going_on_with_other_settings_is_refused(change, told, keys, encoded, capsys):
    before = contents(encoded)
    line = fails([*flags(keys | change), f"--out={encoded}", "--examples-per-shard=6"], capsys)
    assert "was begun with" in line and told in line
    assert contents(encoded) == before


def test_other_weights_and_other_rows_are_told_apart(keys, encoded, tmp_path, capsys):
    vae = pathlib.Path(shutil.copytree(keys["codecs.autoencoder"], tmp_path / "vae"))
    before = module_identity(str(vae))
    content = bytearray((vae / "model.safetensors").read_bytes())
    content[500_000] ^= 1
    (vae / "model.safetensors").write_bytes(content)
    assert module_identity(str(vae))["path"] == before["path"] and module_identity(str(vae)) != before
    line = fails(
        [*flags(keys | {"codecs.autoencoder": str(vae)}), f"--out={encoded}", "--examples-per-shard=6"], capsys
    )
    assert "codecs.autoencoder.fingerprint" in line
    assert "rows_per_shard 6" in fails([*flags(keys), f"--out={encoded}", "--examples-per-shard=7"], capsys)


def test_unfinished_and_changed_folders_are_not_trained_on(keys, encoded, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(encoded, folder)
    (folder / "rows-00001.array_record").write_bytes(b"short")
    with pytest.raises(ValueError, match="data.path is .*rows-00001.array_record"):
        input_pipeline.open_pipeline(from_shards(keys, folder))
    (folder / "about.json").unlink()
    with pytest.raises(ValueError, match="data.path is .*not finished: start .* again") as error:
        input_pipeline.open_pipeline(from_shards(keys, folder))
    assert "\n" not in str(error.value)


def test_bad_rows_are_left_out_counted_and_listed(of_pixels, images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "images")
    for i in (4, 9):  # the header is whole
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:200])
    bad = of_pixels | {"data.path": str(folder)}
    encode(bad, tmp_path / "shards")
    assert "not used: truncated 2" in capsys.readouterr().out
    about = json.loads((tmp_path / "shards" / "about.json").read_text())
    assert about["rows"] == ROWS - 2 and about["bad"] == {"truncated": 2}
    listed = [json.loads(line) for line in (tmp_path / "shards" / "bad_records.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in listed] == [(4, "truncated"), (9, "truncated")]
    source = data.open_source("shards", "unused", path=str(tmp_path / "shards"))
    assert source[4]["captions"][0] == "picture 5"
    few = [*flags(bad | {"loader.max_bad_share": "0.001"}), f"--out={tmp_path / 'few'}", "--examples-per-shard=6"]
    assert "bad records, which are 2 of 1000 examples (truncated 2)" in fails(few, capsys)
    with pytest.raises(ValueError, match="not finished"):
        data.open_source("shards", "unused", path=str(tmp_path / "few"))


# Real processes.


def one_by_one(keys, out):
    """The command, with a row in every shard."""
    return ["tim_jax.encode", *flags(keys), f"--out={out}", "--examples-per-shard=1"]


@pytest.fixture(scope="module")
def undisturbed(keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    ends(start(one_by_one(keys, folder)))
    return folder


@pytest.mark.parametrize(
    "kills, while_starting, seed",
    [pytest.param(2, (), 1, marks=pytest.mark.slow), pytest.param(10, (0, 5), 0, marks=pytest.mark.nightly)],
)
def test_kills_give_the_shards_of_an_undisturbed_run(kills, while_starting, seed, keys, undisturbed, tmp_path):
    folder = tmp_path / "shards"
    shards, halves = killed(one_by_one(keys, folder), folder, kills, while_starting, seed)
    for kill in while_starting:  # nothing has been made since the kill before
        assert shards[kill] == (shards[kill - 1] if kill else 0), shards
    assert shards == sorted(shards) and shards[-1] < ROWS and halves, (shards, halves)
    assert len(set(shards)) == kills - sum(kill > 0 for kill in while_starting), shards
    print(f"shards after each kill: {shards}; {halves} kills left half a file")
    ends(start(one_by_one(keys, folder)))
    assert contents(folder) == contents(undisturbed)


@pytest.mark.nightly
def test_a_stop_leaves_whole_shards_and_the_same_command_goes_on(keys, undisturbed, tmp_path):
    folder = tmp_path / "shards"
    process = signalled("SIGTERM", 3, 0, 3, one_by_one(keys, folder))
    assert "stopped by SIGTERM; no work is lost" in ends(process, 75)
    assert not (folder / "about.json").exists()
    said = ends(start(one_by_one(keys, folder)))
    assert f"{ROWS} examples in {ROWS} shards" in said
    assert contents(folder) == contents(undisturbed)


@pytest.mark.nightly
def test_two_processes_make_the_shards_of_one(keys, undisturbed, tmp_path):
    said = in_two(one_by_one(keys, tmp_path / "shards"))
    assert "train with --config.data.source=shards" in said[0] and "train with" not in said[1]
    assert contents(tmp_path / "shards") == contents(undisturbed)


@pytest.mark.nightly
def test_another_number_of_devices_gives_the_same_numbers(keys, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda first=jax.local_devices()[:1]: first)
    encode(keys, tmp_path / "shards")
    one, eight = (data.open_source("shards", "unused", path=str(f)) for f in (tmp_path / "shards", encoded))
    for i in range(ROWS):
        np.testing.assert_allclose(one[i]["image"], eight[i]["image"], atol=1e-5)


def test_a_second_encoder_in_the_same_folder_is_refused(keys, tmp_path, capsys):
    folder = tmp_path / "shards"
    with lock.locked(pathlib.Path(folder), option="--out"):
        assert "--out=" in fails([*flags(keys), f"--out={folder}", "--examples-per-shard=6"], capsys)
    assert not shard_files.shard_path(folder, 0).exists()
