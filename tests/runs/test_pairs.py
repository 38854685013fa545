"""python -m tim_jax.pairs: rows are what the Generator gives, come whole out of kills, and are what training sees."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import workdirs
from tests.helpers.shard_commands import contents, ends, in_two, killed, start
from tim_jax import data, pairs, train
from tim_jax.config.batches import batch_spec, made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.data import shard_files
from tim_jax.runs import conditions, input_pipeline, measuring, shard_job, workdir
from tim_jax.runs.generation import Generator, load_weights, open_generator
from tim_jax.system import int64
from tim_jax.training import checksums
from tim_jax.training.sharding import on_mesh
from tim_jax.training.step import make_examples, train_step
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Output, Query

ROWS, STEPS, SEED = 22, 3, 5
TINY = {name: value for name, value in workdirs.TINY.items() if not name.startswith("data.")}
OF_PAIRS = {
    "data.source": "shards",
    "data.paired_noise": "True",
    "data.condition_dropout": "0.0",
    "evaluation.source": "digits",
}


ENCODED = {"data.encode": "True", "model.condition": "text", "codecs.text_encoder": "stand-in"}
ENCODED |= {"data.text_width": "96", "data.text_tokens": "72"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return workdirs.workdir(tmp_path_factory.mktemp("teacher") / "run", "digits", **TINY)


def flags(teacher, out, rows=ROWS, per_shard=6, **changes):
    more = [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]
    of = [f"--workdir={teacher}", f"--out={out}", f"--examples={rows}", f"--examples-per-shard={per_shard}"]
    return [*of, f"--steps={STEPS}", f"--seed={SEED}", *more]


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "shards"
    pairs.main(flags(teacher, folder, sampling__guidance=1.5))
    return folder


def source_of(folder, channels=1):
    return data.open_source("shards", "unused", path=str(folder), channels=channels)


def student(folder, devices=1, **changes):
    keys = TINY | OF_PAIRS | {"data.path": str(folder)} | changes
    return build(load_config("digits_flow_matching", keys), jax.devices()[:devices])


def test_rows_are_what_the_generator_gives(teacher, made):
    run = build(workdir.load(epath.Path(teacher), {"sampling.guidance": "1.5"}))
    generator = Generator(run, 8)
    weights, _ = load_weights(run, epath.Path(teacher))
    labels = np.arange(ROWS) % 10
    noise = generator.noise(SEED, ROWS)
    samples = generator.integrate(weights, generator.times(STEPS), labels, seed=SEED, start=noise)
    np.testing.assert_allclose(generator(weights, labels, steps=STEPS, seed=SEED), samples, atol=1e-5)
    source = source_of(made)
    assert len(source) == ROWS and source.paired_noise and source.num_classes == 10 and source.image_shape == (8, 8, 1)
    rows = [source[i] for i in range(ROWS)]
    assert [row["label"] for row in rows] == labels.tolist()
    np.testing.assert_array_equal([row["noise"] for row in rows], noise)
    np.testing.assert_array_equal([row["image"] for row in rows], samples)
    assert rows[0]["image"].dtype == rows[0]["noise"].dtype == np.float32 and np.abs(samples - noise).max() > 0.1
    pairs.main([f"--verify={made}"])


def test_guidance_of_the_command_line_counts(teacher, made, tmp_path):
    pairs.main(flags(teacher, tmp_path / "shards", rows=4))
    for i in range(4):
        plain, guided = source_of(tmp_path / "shards")[i], source_of(made)[i]
        np.testing.assert_array_equal(plain["noise"], guided["noise"])
        assert np.abs(plain["image"] - guided["image"]).max() > 1e-3


def test_what_is_missing_or_damaged_is_made_again_bit_for_bit(teacher, made, tmp_path, capsys):
    folder = tmp_path / "shards"
    shutil.copytree(made, folder)
    before = contents(folder)
    again = flags(teacher, folder, sampling__guidance=1.5)
    pairs.main(again)
    assert "nothing is left to do" in capsys.readouterr().out
    for name in ("about.json", "rows-00003.json"):
        (folder / name).unlink()
    damaged = folder / "rows-00002.array_record"
    damaged.write_bytes(b"\1" + damaged.read_bytes()[1:])
    untouched = (folder / "rows-00000.array_record").stat().st_mtime_ns
    pairs.main(again)
    assert contents(folder) == before
    assert (folder / "rows-00000.array_record").stat().st_mtime_ns == untouched


def test_pairs_that_an_earlier_version_began_are_gone_on_with(teacher, made, tmp_path, capsys):
    """It knew the checkpoint by the digest of its manifests, and had fewer keys."""
    folder = tmp_path / "pairs"
    shutil.copytree(made, folder)
    path = folder / shard_files.SETTINGS
    settings = json.loads(path.read_text())
    settings["weights"]["checkpoint"] = checksums.former_fingerprint(epath.Path(teacher) / "checkpoints" / "0")
    assert settings["run"].pop("data.held_out_share") == 0
    path.write_text(json.dumps(settings))
    pairs.main(flags(teacher, folder, sampling__guidance=1.5))
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, told",
    [
        ({"rows": 23}, "rows 22, and now it is 23"),
        ({"per_shard": 7}, "rows_per_shard 6"),
        ({"sampling__guidance": 2.0}, "sampling.guidance 1.5"),
        ({"sampling__sampler": "heun"}, "sampling.sampler 'flow_map'"),
        ({"sampling__ema": "online"}, "sampling.ema 'slow'"),
    ],
)
def test_going_on_with_other_settings_is_refused(change, told, teacher, made, capsys):
    before = contents(made)
    error = workdirs.told(pairs.main, flags(teacher, made, **{"sampling__guidance": 1.5} | change), capsys)
    assert "was begun with" in error and told in error
    assert contents(made) == before


def test_going_on_with_other_weights_is_refused(made, tmp_path, capsys):
    other = workdirs.workdir(tmp_path / "run", "digits", **TINY | {"model.width": "32"})
    error = workdirs.told(pairs.main, flags(other, made, sampling__guidance=1.5), capsys)
    assert "was begun with run.model.width 16, and now it is 32" in error


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--examples=0"], "--examples is 0; it must be at least 1"),
        (["--steps=0"], "--steps is 0; it must be at least 1"),
        (["--seed=-1"], "--seed is -1; it must be at least 0"),
        (["--examples-per-shard=0"], "--examples-per-shard is 0; it must be at least 1"),
        (["--workdir="], "--workdir: missing"),
        (["--workdir=/nowhere"], "--workdir=/nowhere: holds no run"),
        (["--out="], "--out: missing"),
        (["--out=gs://bucket/pairs"], "gs://bucket/pairs"),
        (["--colour=3"], "--colour=3: no such argument"),
        (["--config.sampling.stochasticity=0.5"], "must draw no noise on the way"),
        (["--config.sampling.sampler=consistency"], "are 'consistency', 0.0; they must draw no noise"),
        (["--config.sampling.sampler=hein"], "sampling.sampler is 'hein'"),
        (["--config.sampling.grid=optimal"], "sampling.grid is 'optimal'"),
        (["--config.sampling.ema=fast"], "sampling.ema is 'fast'"),
        (["--config.model.depth=7"], "model.depth is 7"),
        (["--config.mesh.tensor=3"], "mesh.tensor"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_nothing_is_written(arguments, told, teacher, tmp_path, capsys):
    before = workdirs.contents(teacher)
    given = [flag for flag in flags(teacher, tmp_path / "out") if flag.split("=")[0] not in str(arguments)]
    assert told in workdirs.told(pairs.main, [*given, *arguments], capsys)
    assert not list(tmp_path.iterdir()) and workdirs.contents(teacher) == before


def test_a_folder_of_something_else_and_a_full_disk_are_told(teacher, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds thesis.txt; give a new" in workdirs.told(pairs.main, flags(teacher, tmp_path), capsys)
    monkeypatch.setattr(shard_job, "free", lambda folder: 1000)
    assert "for all shards of --examples=" in workdirs.told(pairs.main, flags(teacher, tmp_path / "out"), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_estimate_is_close(teacher, tmp_path):
    out = tmp_path / "out"
    pairs.main(flags(teacher, out, rows=600, per_shard=300))
    records = [json.loads((out / f"rows-0000{i}.json").read_text()) for i in range(2)]
    there = sum(record["bytes"] for record in records)
    least = 600 * 2 * 64 * 4
    assert least < there < least + 600 * shard_files.EXAMPLE_OVERHEAD + 2 * shard_files.SHARD_OVERHEAD


def test_samples_that_are_not_finite_are_left_out_and_too_many_end_it(teacher, tmp_path, monkeypatch, capsys):
    batches = Generator.batches

    def broken(*given, **more):
        for rows in batches(*given, **more):
            rows = np.array(rows)
            rows[:1] = np.nan
            yield rows

    monkeypatch.setattr(Generator, "batches", broken)
    pairs.main(flags(teacher, tmp_path / "some"))
    assert "not used: not finite 4" in capsys.readouterr().out
    assert len(source_of(tmp_path / "some")) == ROWS - 4
    with pytest.raises(SystemExit) as stop:
        pairs.main(flags(teacher, tmp_path / "few", loader__max_bad_share=0.001))
    assert stop.value.code == 2 and "which are 2 of 1000 examples (not finite 2)" in capsys.readouterr().err


# Training.


def batch_of(run):
    account = data.Account(run.inputs.directory)
    return next(dataclasses.replace(input_pipeline.open_pipeline(run), account=account).batches(0))


@pytest.mark.nightly
def test_training_sees_the_noise_that_is_stored(made):
    """x_t of a real step lies between a row's sample and its own noise; batches are the same on any mesh."""
    run, two = (student(made, devices, **{"data.batch_size": "16"}) for devices in (1, 2))
    source, (batch, index) = source_of(made), batch_of(run)
    np.testing.assert_array_equal(batch["noise"], batch_of(two)[0]["noise"])
    rows = [source[i] for i in int64.from_halves(np.asarray(index)).tolist()]
    assert len({row["label"] for row in rows}) > 3
    np.testing.assert_array_equal(batch["noise"], [row["noise"] for row in rows])
    np.testing.assert_array_equal(batch["x"], [row["image"] for row in rows])

    state, step = run.trainer.create(), run.trainer.step
    params = jax.tree.map(lambda leaf: leaf + 0.01, state.params)
    with on_mesh(run.mesh):
        _, _, found = jax.jit(functools.partial(train_step, step))(
            state.replace(params=params), batch, run.trainer.seed_array
        )
        t = found["t"][:, None, None, None]
        x_t = (1 - t) * batch["x"] + t * batch["noise"]
        query = Query(x_t, found["t"], found["t"], {"label": batch["label"]})
        (out,) = jax.jit(run.net(params["online"]))((query,))
    error = jnp.mean((out.F - (batch["noise"] - batch["x"])) ** 2, (1, 2, 3))
    np.testing.assert_allclose(found["error"], error, rtol=1e-5)


def test_other_draws_are_what_they_are_without_stored_noise(made):
    settings = dataclasses.replace(student(made).trainer.step, condition_dropout=0.5, dropout=True)
    batch = made_up_batch(student(made).config, 64)
    assert batch["noise"].shape == batch["x"].shape and np.abs(batch["noise"] - batch["x"]).min() > 0
    with_noise = make_examples(settings, batch, jax.random.key(3))
    without = make_examples(settings, {name: batch[name] for name in ("x", "label")}, jax.random.key(3))
    np.testing.assert_array_equal(with_noise.noise, batch["noise"])
    assert np.abs(without.noise - batch["noise"]).max() > 0.1
    for a, b in zip(jax.tree.leaves(with_noise._replace(noise=None)), jax.tree.leaves(without._replace(noise=None))):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["flow_matching", "rectified_flow"])
def test_pairs_of_an_exact_flow_are_straight(name, tmp_path):
    """Of N(0, s²), x̂ = s ε, whose paths do not cross: ε − x̂ follows from x_t, and the loss of that velocity is 0. With
    independent noise it is not."""
    transport, std, rng = TRANSPORTS["ot_fm"](), 0.4, np.random.default_rng(0)
    noise = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    ones = jnp.ones(len(noise))
    samples = np.asarray(Gaussian(transport, std=std).flow_map(jnp.asarray(noise), ones, 0 * ones))
    np.testing.assert_allclose(samples, std * noise, rtol=1e-5)
    rows = [{"pair": np.stack(pair), "label": i % 10} for i, pair in enumerate(zip(samples, noise))]
    data.write_shards(tmp_path / "shards", rows, num_classes=10)
    run = student(tmp_path / "shards", **{"objective.name": name, "data.batch_size": "64"})
    batch, _ = batch_of(run)

    def net(queries):
        return tuple(Output((1 - std) / ((1 - q.t) * std + q.t)[:, None, None, None] * q.x_t) for q in queries)

    def error(batch):
        rows = make_examples(run.trainer.step, batch, jax.random.key(0))
        nets = dict.fromkeys(("online", "float32", "slow"), net)
        return OBJECTIVES[name](transport)(nets, rows, jnp.int32(0), jax.random.key(1))[1]["error"]

    assert error(batch).max() < 1e-10
    assert error({key: batch[key] for key in ("x", "label")}).mean() > 0.1


@pytest.mark.parametrize(
    "change, told",
    [
        (
            {"data.source": "digits", "data.path": ""},
            "digits: its examples have no 'noise', which data.paired_noise needs",
        ),
        (
            {"data.condition_dropout": "0.1"},
            "data.condition_dropout is 0.1; it must be 0.0 where data.paired_noise is True",
        ),
        (ENCODED, "data.encode is True; it must be False where data.paired_noise is True"),
        ({"data.flip": "0.5"}, "data.flip is 0.5; it must be 0.0 where data.paired_noise is True"),
        ({"data.flip": "0.5", "data.paired_noise": "False"}, "data.flip is 0.5; it must be 0, as"),
        ({"data.buckets.area": "64"}, "data.buckets.area is 64; it must be 0 where data.paired_noise is True"),
        ({"data.buckets.table": "((8, 8),)"}, "data.buckets.table is ((8, 8),); it must be ()"),
        ({"data.path": "/nowhere"}, "data.path is '/nowhere'"),
        ({"data.height": "16", "data.width": "16"}, "data.height, data.width are 16, 16; they must be 8, 8"),
        (
            {"evaluation.source": "", "evaluation.periodic.every": "1"},
            "evaluation.source is ''; it must be a source of real images",
        ),
        ({"evaluation.path": "here"}, "evaluation.path is 'here'; it must be '', since it has no effect"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_one_line_and_nothing_is_written(change, told, made, tmp_path, capsys):
    keys = TINY | OF_PAIRS | {"data.path": str(made)} | change
    given = [f"--config.{name}={value}" for name, value in keys.items()]
    with workdirs.one_device():
        error = workdirs.told(train.main, ["--config=digits", f"--workdir={tmp_path / 'run'}", *given], capsys)
    assert told in error and not list(tmp_path.iterdir())


def test_samples_can_be_trained_on_without_their_noise(made):
    run = student(made, **{"data.paired_noise": "False", "data.condition_dropout": "0.1", "data.batch_size": "16"})
    batch, _ = batch_of(run)
    assert batch.keys() == {"x", "label"}


def test_the_configuration_is_measured_against_the_digits_as_its_teacher(made):
    run = build(load_config("configs/distillation/reflow.py", {"data.path": str(made)}), jax.devices()[:1])
    teacher = build(load_config("digits_teacher", {}), jax.devices()[:1])
    assert run.config.data.paired_noise and run.config.start.checkpoint == "runs/digits_teacher"
    plans = [measuring.open_measurement(of) for of in (run, teacher)]
    assert plans[0].fingerprint == plans[1].fingerprint and plans[0].fingerprint["data"].startswith("digits")
    for part in ("", "_held_out"):
        images = [plan.image_sets[part].read(np.arange(5))[0] for plan in plans]
        np.testing.assert_array_equal(*images)


# Texts.


@pytest.mark.slow
def test_pairs_of_a_text_run_bring_captions_and_features(text_workdir, tmp_path):
    teacher = text_workdir
    pairs.main(flags(teacher, tmp_path / "shards", rows=10, per_shard=5))
    run = build(workdir.load(epath.Path(teacher)))
    generator = open_generator(run, 8)
    weights, _ = load_weights(run, epath.Path(teacher))
    prompts = conditions.data_captions(input_pipeline.open_source_and_plan(run)[0], 10)
    samples = generator(weights, prompts, steps=STEPS, seed=SEED)
    source = source_of(tmp_path / "shards", channels=3)
    features = generator.texts(prompts[:8])
    for i in range(10):
        row = source[i]
        assert row["captions"] == (prompts[i],) and row["image"].shape == (16, 16, 3)
        np.testing.assert_allclose(row["image"], samples[i], atol=1e-5)
        if i < 8:
            text = np.asarray(features["text"][i])[: len(row["texts"][0])]
            assert len(text) == features["mask"][i].sum()
            np.testing.assert_allclose(row["texts"][0].astype(np.float32), text, rtol=2**-7, atol=1e-5)

    more = {"data.encode": "False", "data.buckets.area": "0", "data.buckets.tokens": "0", "data.flip": "0.0"}
    more |= {"data.buckets.max_buckets": "64"}
    keys = workdirs.TEXT | OF_PAIRS | more | {"data.path": str(tmp_path / "shards"), "data.batch_size": "8"}
    run = build(load_config("photos_t2i", keys), jax.devices()[:1])
    batch, _ = batch_of(run)
    assert batch["noise"].shape == (8, 16, 16, 3) and batch["null_text"].shape == (1, 72, 96)
    assert batch.keys() == batch_spec(run.config, 8, (16, 16)).keys()
    assert sorted(conditions.sample_conditions(run, 10)) == sorted(prompts), "all of its captions, once each"


# Real processes.


def two_by_two(teacher, out):
    """The command, with two rows in every shard."""
    return ["tim_jax.pairs", *flags(teacher, out, rows=40, per_shard=2)]


@pytest.fixture(scope="module")
def undisturbed(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    ends(start(two_by_two(teacher, folder)))
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.nightly)])
def test_kills_give_the_pairs_of_an_undisturbed_run(kills, teacher, undisturbed, tmp_path):
    folder = tmp_path / "shards"
    shards, _ = killed(two_by_two(teacher, folder), folder, kills)
    assert shards == sorted(set(shards)) and 0 < shards[0] and shards[-1] < 20, shards
    ends(start(two_by_two(teacher, folder)))
    assert contents(folder) == contents(undisturbed)


@pytest.mark.nightly
def test_two_processes_make_the_pairs_of_one(teacher, undisturbed, tmp_path):
    said = in_two(two_by_two(teacher, tmp_path / "shards"))
    assert "--config.data.paired_noise=True" in said[0] and "--config.data.paired_noise=True" not in said[1]
    assert contents(tmp_path / "shards") == contents(undisturbed)
