"""Files of a workdir that are not as they were written: one line that names the file, whoever reads it."""

import types

import pytest
from etils import epath

from tests.helpers.tally import OTHER, REFUSED
from tim_jax.ablation import budget, runs
from tim_jax.config.build import build
from tim_jax.data import shard_files
from tim_jax.runs import conditions, shard_job, workdir
from tim_jax.runs.outputs.requests import read_size
from tim_jax.runs.outputs.settings import SampleSettings
from tim_jax.training import formats

DAMAGES = {
    "nothing": b"",
    "cut off": b'{"model": {"dep',
    "nested without end": b'{"a":' * 100_000,
    "another kind": b'"text"',
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(1000),
    "a number of many digits": b"9" * 10_000,
}
READERS = {
    "config.json": workdir.recorded,
    "classes.json": workdir.class_names,
    runs.FILE: runs.read,
    workdir.PLAN: budget.read,
    conditions.FILE: conditions.read_counts,
    shard_files.SETTINGS: lambda folder: shard_job.compare(folder, {}),
    shard_files.ABOUT: shard_files.read_about,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_in_one_line(name, damage, tmp_path, tally):
    (tmp_path / name).write_bytes(DAMAGES[damage])
    with pytest.raises(ValueError) as error:
        READERS[name](epath.Path(tmp_path))
    said = str(error.value)
    clean = name in said and "\n" not in said and len(said) < 600
    tally("files of a workdir", REFUSED if clean else OTHER)
    assert clean, said


@pytest.mark.parametrize(
    "values", [b'{"model": 5}', b'{"model": [1]}', b'{"data": null}', b'{"optimizer": {"b1": {}}}']
)
def test_a_configuration_with_other_things_in_it_is_named(values, tmp_path):
    (tmp_path / "config.json").write_bytes(values)
    with pytest.raises(ValueError) as error:
        build(workdir.load(epath.Path(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_start_of_a_later_version_is_refused(tmp_path):
    (tmp_path / "starts.jsonl").write_text('{"format": 99, "config": {}}\n')
    with pytest.raises(formats.UnknownFormat, match="format 99; this version reads formats up to"):
        workdir.to_go_on(str(tmp_path), {})


@pytest.mark.parametrize("size", ["100000000x8", "8x100000000", "1" * 5000 + "x8", "-8x8", "8", "x", "8x8x8", "8.5x8"])
def test_a_size_that_no_image_can_have_is_refused(size):
    run = types.SimpleNamespace(config=types.SimpleNamespace(model=types.SimpleNamespace(patch_size=4)))
    with pytest.raises(ValueError, match="--size is .*must be"):
        read_size("--size is", size, run)


def test_guidance_is_given_once():
    with pytest.raises(ValueError, match="^--config.sampling.guidance is given; it must be left out with --guidance"):
        SampleSettings(workdir="x", steps=[1], guidance=2.0).check({"sampling.guidance": "3"})
