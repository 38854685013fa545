"""Runs that restore images: what is restored, the same whoever asks, pictures and figures, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.helpers.workdirs import TINY, one_device, told, workdir
from tim_jax import diagnose, evaluate, grid, pairs, prefer, sample, search
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import restoration
from tim_jax.runs import workdir as saved
from tim_jax.runs.conditions import sample_conditions
from tim_jax.runs.generation import open_generator
from tim_jax.runs.input_pipeline import open_held_out
from tim_jax.runs.interface import load
from tim_jax.runs.measuring import protocol_of
from tim_jax.runs.reference_data import labelled_reader

DIGITS = pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "digits"
SMALL = TINY | {"data.height": "8", "data.width": "8", "objective.name": "flow_matching", "data.batch_size": "16"}
STEERED = "sampling.steering.operator"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    changes = SMALL | {"objective.coupling.task": "inpainting", "objective.coupling.missing": "0.4"}
    return workdir(tmp_path_factory.mktemp("runs") / "inpainting", "base", **changes)


@pytest.fixture
def run():
    with one_device():
        yield build(load_config("base", SMALL | {"objective.coupling.task": "inpainting"}))


def test_known_pixels_stay_and_images_do_not_depend_on_their_batch(run):
    params = run.trainer.create().params["online"]
    generator = open_generator(run, 6)
    truths, labels = generator.truths(np.arange(6))
    times = generator.times(3)
    images = generator.integrate(params, times, labels, seed=4)
    given = restoration.inputs(run, generator.truths, 4, np.arange(6))
    known = given == truths
    assert 0.5 < known.mean() < 1
    np.testing.assert_allclose(
        images[4:], generator.integrate(params, times, labels[4:], seed=4, numbers=[4, 5]), atol=1e-5
    )
    # An untrained network predicts 0: the state keeps the noise end, whose known pixels are the data's.
    np.testing.assert_allclose(np.where(known, images - truths, 0), 0, atol=1e-5)
    assert np.abs(images - truths).max() > 0.5


@pytest.mark.parametrize(
    "key, task, labels",
    [("objective.coupling.task", "inpainting", "data"), (STEERED, "super_resolution:2", "balanced")],
)
def test_restorations_have_the_labels_of_what_they_restore_and_their_protocol_says_so(key, task, labels, caplog):
    changes = SMALL | {key: task, "evaluation.labels": labels}
    with one_device():
        run = build(load_config("digits" if key == STEERED else "base", changes))
    found = protocol_of(run, 40, [0])
    assert (
        found.labels == "truths"
        and "40 samples rounded to 8 bits, labels or captions of the images that they" in found.line
    )
    assert not any(words in found.line for words in ("every label alike", "as often as in the data"))
    _, true = restoration.open_truths(run)(np.arange(40))
    assert not np.array_equal(true, np.arange(40) % 10), "not every label in turn"
    np.testing.assert_array_equal(sample_conditions(run, 40), true)
    warned = "evaluation.labels is 'balanced', which is for samples: restorations have the labels of what they restore"
    assert (warned in caplog.text) == (labels == "balanced")


def test_labels_that_are_asked_for_of_restorations_are_refused(tmp_path, capsys):
    words = ["--operator=super_resolution:2", "--config.evaluation.labels=balanced", f"--out={tmp_path / 'out'}"]
    for further in ([], ["--steering=flowchef,dps"]):
        line = told(evaluate.main, [f"--workdir={DIGITS}", *words, *further], capsys)
        assert line == (
            "error: evaluation.labels is 'balanced'; it must be left out where sampling.steering.operator is "
            "'super_resolution:2', as restorations have the labels of what they restore"
        )
    assert not list(tmp_path.iterdir())


def test_restorations_of_a_run_for_prompts_have_the_captions_of_what_they_restore(text_workdir):
    with one_device():
        run = build(saved.load(text_workdir, {STEERED: "greyscale"}))
    _, source, fit = open_held_out(run)
    numbers = np.arange(len(source))
    stored, (images, _) = labelled_reader(run, source, fit)(numbers)[0], restoration.open_truths(run)(numbers)
    found = sample_conditions(run, len(source) + 2)
    assert found[-2:] == found[:2]
    order = [int(np.flatnonzero((stored == image).all((1, 2, 3)))[0]) for image in images]
    assert sorted(order) == numbers.tolist() and order != numbers.tolist(), "each once, not as they are stored"
    assert all(text in source.annotations(i)["captions"] for text, i in zip(found, order))


@pytest.mark.slow
def test_a_command_restores_the_held_out_part_or_a_folder(folder, tmp_path, capsys):
    sample.main([f"--workdir={folder}", "--steps=1,2", "--count=5", f"--out={tmp_path / 'out'}"])
    said = capsys.readouterr().out
    assert said.count("PSNR") == 3 and "_restored.png" in said
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.fromarray(np.full((12, 8), 80 * i, np.uint8)).save(images / f"{i}, a digit.png")
    sample.main([f"--workdir={folder}", "--steps=2", f"--images={images}", f"--out={tmp_path / 'own'}"])
    (found,) = (tmp_path / "own").glob("*_restored.png")
    assert Image.open(found).height > 3 * 12
    assert len(json.loads(next((tmp_path / "own").glob("*.json")).read_text())["labels"]) == 3


def test_python_restores_pictures_of_any_size(folder):
    with one_device():
        tim = load(folder)
        pictures = [Image.fromarray(np.full((12, 16), 200, np.uint8))] * 2
        restored = tim.restore(pictures, steps=2)
        assert [image.size for image in restored] == [(16, 12)] * 2
        with pytest.raises(ValueError, match="call .restore"):
            tim([3])
        with pytest.raises(ValueError, match="one for each of 2 images"):
            tim.restore(pictures, labels=[3])


@pytest.mark.parametrize(
    "command, arguments",
    [
        (sample, ["--from=x.png", "--labels=3"]),
        (sample, ["--interpolate=3"]),
        (sample, ["--labels=3"]),
        (sample, ["--images=nowhere.png"]),
        (sample, ["--prompt=a digit"]),
        (sample, ["--per-prompt=2"]),
        (sample, ["--images=nowhere.png", "--count=3"]),
        (grid, ["--steps=2"]),
        (diagnose, []),
        (pairs, ["--examples=8", "--steps=2", "--out=x"]),
    ],
)
def test_what_cannot_be_done_with_such_a_run_is_refused_in_a_line(folder, command, arguments, capsys, tmp_path):
    arguments = [argument.replace("--out=x", f"--out={tmp_path / 'x'}") for argument in arguments]
    line = told(command.main, [f"--workdir={folder}", *arguments], capsys)
    assert any(word in line for word in ("objective.coupling", "--images")), line


@pytest.mark.parametrize(
    "command, arguments",
    [
        (grid, ["--steps=2"]),
        (grid, ["--steps=2", "--kind=learned"]),
        (pairs, ["--examples=8", "--steps=2", "--out=x"]),
        (prefer, ["--reward=brightness", "--out=x"]),
        (search, ["--reward=brightness", "--out=x"]),
    ],
)
def test_what_cannot_be_done_with_restorations_by_steering_is_refused_too(command, arguments, tmp_path, capsys):
    arguments = [argument.replace("--out=x", f"--out={tmp_path / 'x'}") for argument in arguments]
    words = [f"--workdir={DIGITS}", *arguments, f"--config.{STEERED}=box_inpainting:0.5"]
    with one_device():
        line = told(command.main, words, capsys)
    assert "sampling.steering.operator is 'box_inpainting:0.5'; it must be '', or a reward, for" in line
    assert not list(tmp_path.iterdir())


def test_no_plan_is_learned_by_samples_that_are_steered(capsys):
    with one_device():
        words = [f"--workdir={DIGITS}", "--steps=2", "--kind=learned", f"--config.{STEERED}=brightness"]
        line = told(grid.main, words, capsys)
    assert "sampling.steering.operator is 'brightness'; it must be '' for a plan to be learned" in line


@pytest.mark.slow
def test_an_evaluation_has_the_psnr_beside_the_frechet_distance(folder, tmp_path, capsys):
    evaluate.main([f"--workdir={folder}", "--steps=1,2", "--seeds=1", "--count=40", f"--out={tmp_path}"])
    table = json.loads((tmp_path / "any_step.json").read_text())
    assert all(0 < row["psnr"] < 60 and row["frechet"] > 0 for row in table["rows"])
    assert "PSNR" in (tmp_path / "any_step.md").read_text()
    assert "degraded images themselves" in capsys.readouterr().out
