"""Teachers that do not fit a run: one line, and nothing touched."""

import shutil

import pytest
from etils import epath

from tests.helpers.teachers import (  # noqa: F401 (fixtures)
    STUDENT,
    TEACHER,
    a_data_folder,
    a_small_teacher,
    a_teacher,
    changed,
    copied,
    make_run,
    refused,
    toys,
    train,
)
from tests.helpers.workdirs import workdir
from tim_jax.ablation import job
from tim_jax.ablation.settings import Ablation
from tim_jax.config.batches import batch_spec
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs.teachers import with_teachers
from tim_jax.training import sharding


def spoilt(source, to):
    """A copy of a workdir whose checkpoint lost its checksums."""
    shutil.copytree(source, to)
    (to / "checkpoints" / "0" / "manifest-0-of-1.sha256").unlink()
    return to


@pytest.mark.parametrize(
    "recorded, changes, named",
    [
        (
            {},
            dict(teacher__checkpoint=""),
            ["teacher.checkpoint is ''", "'taught' learns from a teacher", "checkpoints"],
        ),
        ({}, dict(teacher__checkpoint="nowhere"), ["teacher.checkpoint is 'nowhere'", "a workdir with a checkpoint"]),
        ({}, dict(teacher__ema="fast"), ["teacher.ema is 'fast'", "online, slow"]),
        ({}, dict(teacher__dtype="float8"), ["teacher.dtype is 'float8'", "float32, bfloat16"]),
        (
            dict(objective__name="difference_transition_matching"),
            {},
            ["teacher.checkpoint is ", "it must predict a velocity"],
        ),
        (
            dict(transport__name="vp"),
            dict(transport__shared_below=0.1),
            ["transport.name, 'ot_fm', since transport.shared_below is above 0 here, and has 'vp'"],
        ),
        (
            {},
            dict(transport__shared_below=0.1),
            ["transport.shared_below, 0.1, since transport.shared_below is above 0 here, and has 0.0"],
        ),
        (
            dict(transport__shared_below=0.1, transport__shared_intervals=4),
            dict(transport__shared_below=0.1),
            ["transport.shared_intervals, 5, since transport.shared_below is above 0 here, and has 4"],
        ),
        (
            dict(transport__name="vp"),
            dict(objective__name="velocity_refiner"),
            ["transport.name, 'ot_fm', since a refiner goes with its teacher, and has 'vp'"],
        ),
        (dict(objective__name="velocity_refiner"), {}, ["teacher.checkpoint is ", "it must be a model of data"]),
        (
            dict(transport__augmented_dimensions=64),
            {},
            ["teacher.checkpoint is ", "transport.augmented_dimensions, 0, and has 64"],
        ),
        (
            dict(data__latent_scale=0.5),
            dict(data__latent_scale=0.18215),
            ["teacher.checkpoint is ", "data.latent_scale, 0.18215, and has 0.5"],
        ),
        (dict(transport__gamma=0.5), {}, ["teacher.checkpoint is ", "transport.gamma, 0.0, and has 0.5"]),
        (
            dict(transport__name="vp", transport__gamma=0.5),
            dict(transport__gamma=0.5, objective__name="tim", objective__velocity="teacher"),
            ["transport.name, 'ot_fm', since transport.gamma is above 0, and has 'vp'"],
        ),
        (dict(data__height=16), {}, ["teacher.checkpoint is ", "data.height, 8, and has 16"]),
        (dict(data__width=16), {}, ["teacher.checkpoint is ", "data.width, 8, and has 16"]),
        (dict(data__channels=4), {}, ["teacher.checkpoint is ", "data.channels, 1, and has 4"]),
        (dict(model__condition="text"), {}, ["teacher.checkpoint is ", "model.condition, 'class', and has 'text'"]),
        (dict(model__num_classes=12), {}, ["teacher.checkpoint is ", "model.num_classes, 10, and has 12"]),
        (dict(times__share_equal=0.0), {}, ["times.share_equal is 0", "r = t"]),
        (
            dict(data__condition_dropout=0.0),
            {},
            ["condition_dropout is 0", "condition_dropout is above 0 here", "null"],
        ),
        (
            dict(data__condition_dropout=0.0),
            dict(teacher__guidance=2.0, data__condition_dropout=0.0),
            ["condition_dropout is 0", "teacher.guidance is not 1", "null"],
        ),
        (dict(objective__name="gone"), {}, ["objective.name is 'gone'"]),
        (dict(model__width=16), {}, ["k_norm/bias is (2, 8)", "by its own configuration"]),
        (None, {}, ["checksums are missing", "checkpoints/0"]),
        (
            {},
            dict(objective__name="flow_matching"),
            ["teacher.checkpoint is ", "no effect", "'flow_matching'", "learns from no teacher"],
        ),
        (
            {},
            dict(objective__name="flow_matching", teacher__checkpoint="", teacher__guidance=2.0),
            ["teacher.guidance is 2.0", "no effect", "learns from no teacher"],
        ),
        ({}, dict(teacher__guidance_low=0.2), ["teacher.guidance_low is 0.2", "teacher.guidance is 1"]),
        ({}, dict(teacher__weak_checkpoint="there"), ["teacher.weak_checkpoint is 'there'", "teacher.guidance is 1"]),
        (
            {},
            dict(teacher__guidance=2.0, teacher__weak_ema="online"),
            ["teacher.weak_ema is 'online'", "teacher.weak_checkpoint is ''"],
        ),
        ({}, dict(objective__name="taught_away"), ["teacher.weak_checkpoint is ''", "learns from a teacher"]),
        (
            {},
            dict(objective__name="taught_away", teacher__guidance=2.0, teacher__weak_checkpoint="nowhere"),
            ["teacher.weak_checkpoint is 'nowhere'", "a workdir with a checkpoint"],
        ),
        ({}, dict(objective__name="in_fours", data__batch_size=6), ["data.batch_size is 6", "4 examples of a group"]),
    ],
)
def test_what_does_not_fit_is_one_line_and_touches_nothing(recorded, changes, named, teacher, tmp_path, data, capsys):
    folder = tmp_path / "teacher"
    made = spoilt(teacher, folder) if recorded is None else copied(teacher, folder, **recorded)
    given = {"teacher__checkpoint": made} | changes
    for arguments in ([], ["--check"]):
        error = refused(tmp_path / "run", data, capsys, *arguments, **given)
        for word in named:
            assert word in error, error
    assert not (tmp_path / "run").exists()


def test_an_average_has_a_name_of_its_own():
    config = load_config("digits_flow_matching", changed({}))
    config.ema.teacher = 0.5
    with pytest.raises(ValueError, match="^ema.teacher is 0.5; it must have another name"):
        build(config)


def test_a_text_teacher_must_read_the_same_text(tmp_path):
    text = {"model.condition": "text", "data.text_width": "8", "data.text_tokens": "5"}
    folder = workdir(tmp_path / "text", "digits_flow_matching", **TEACHER | text)
    changes = {key.replace(".", "__"): value for key, value in text.items()} | dict(teacher__checkpoint=folder)
    run = with_teachers(make_run(**changes))
    rows = batch_spec(run.config, 16, (8, 8))
    run.trainer.trace(sharding.abstract_batch(run.mesh, rows))
    for key, value in (
        ("data.text_width", "6"),
        ("codecs.text_states", "second_to_last"),
        ("codecs.text_escapes", "True"),
        ("model.use_text_mask", "False"),
    ):
        with pytest.raises(ValueError, match=f"it must have this run's {key}, "):
            with_teachers(make_run(**changes | {key.replace(".", "__"): value}))


def ablation_of(data, **changes):
    """One whose reference asks nothing, and whose other variant has these changes."""
    flags = STUDENT | {"objective.name": "flow_matching", "loader.directory": str(data)}
    changed = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return Ablation(load_config("digits_flow_matching", flags), {"plain": {}, "other": changed}, sampler_steps=(1,))


def validate(ablation, folder):
    job.validate(ablation, folder, ablation.members())


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(objective__name="taught"), "teacher.checkpoint is ''"),
        (dict(start__checkpoint="nowhere"), "start.checkpoint is 'nowhere'"),
        (dict(data__source="shards", data__path="nowhere"), ".*nowhere"),
    ],
)
def test_an_ablation_names_the_variant_that_lacks_what_it_learns_from(changes, said, data, tmp_path):
    with pytest.raises(ValueError, match=f"^variant 'other': {said}"):
        validate(ablation_of(data, **changes), epath.Path(tmp_path))


@pytest.mark.slow
def test_an_ablation_does_not_mix_students_of_different_teachers(teacher, data, tmp_path):
    other = copied(teacher, tmp_path / "other", training__steps=7)
    train(tmp_path / "runs" / "other" / "seed_1", data, teacher__checkpoint=teacher)
    folder, changes = epath.Path(tmp_path / "runs"), dict(objective__name="taught")
    validate(ablation_of(data, teacher__checkpoint=teacher, **changes), folder)
    with pytest.raises(
        ValueError, match="^variant 'other': teacher.checkpoint is .*other.* but .*seed_1.* learnt from"
    ):
        validate(ablation_of(data, teacher__checkpoint=other, **changes), folder)
