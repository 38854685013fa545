"""Searches of a run: they choose among its own samples, say what they found, and refuse what they cannot take."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

import tim_jax
from tests.helpers.classifiers import classifier_file
from tests.helpers.workdirs import one_device, told
from tim_jax import sample, search
from tim_jax.networks.classifier import suited
from tim_jax.runs.judging import open_judge
from tim_jax.runs.searching import SearchSettings, read_search

RUN = pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "digits"
SEED, LABELS = 2**32 - 1, [3, 5]  # the next candidate's seed is 0


@pytest.fixture(scope="module")
def tim():
    with one_device():
        return tim_jax.load(RUN, sampling={"stochasticity": 1.0})


def levels(images):
    return np.stack([np.asarray(image, np.int32)[..., 0] for image in images])


def brightness(images):
    return levels(images).mean(axis=(1, 2)) / 127.5 - 1


@pytest.fixture(scope="module")
def candidates(tim):
    return [tim(LABELS, steps=4, seed=seed) for seed in (SEED, 0)]


def test_the_best_of_two_are_those_of_two_seeds(tim, candidates):
    both = np.stack([brightness(images) for images in candidates])
    found = tim(LABELS, steps=4, seed=SEED, search="best_of:2", reward="brightness")
    best = both.argmax(axis=0)
    expected = [levels(candidates[seed])[i] for i, seed in enumerate(best)]
    np.testing.assert_array_equal(levels(found), expected)
    assert [one["candidate"] for one in found.found] == best.tolist()
    np.testing.assert_allclose([one["reward"] for one in found.found], both.max(axis=0), atol=1e-6)
    np.testing.assert_allclose([one["first_reward"] for one in found.found], both[0], atol=1e-6)


def test_the_best_of_two_is_the_one_that_is_more_like_the_target(tim, candidates, tmp_path):
    path, target = classifier_file(tmp_path), candidates[0][1]
    params = unflatten_dict(safetensors.numpy.load_file(path), sep="/")

    x = np.concatenate([levels(images) for images in candidates])[..., None].astype(np.float32) / 127.5 - 1
    features = np.asarray(jax.jit(lambda x: suited(10, 8).apply({"params": params}, x).features)(x), np.float64)
    cosines = (features @ features[1]).reshape(2, 2)
    found = tim(LABELS, steps=4, seed=SEED, search="best_of:2", reward="image_similarity", classifier=str(path),
                target=target)  # fmt: skip
    assert [one["candidate"] for one in found.found] == cosines.argmax(axis=0).tolist()
    np.testing.assert_allclose([one["reward"] for one in found.found], cosines.max(axis=0), atol=1e-3)
    assert found.found[1]["reward"] > 0.999, "it is the target"
    with pytest.raises(ValueError, match="^reward is 'image_similarity'; it must have one image"):
        tim(LABELS, steps=4, search="best_of:2", reward="image_similarity", classifier=str(path))


def test_budget_forcing_with_one_evaluation_each_is_the_sampler(tim, candidates):
    found = tim(LABELS, steps=4, seed=SEED, search="budget_forcing:1", reward="brightness")
    assert np.abs(levels(found) - levels(candidates[0])).max() <= 1
    more = tim(LABELS, steps=4, seed=SEED, search="budget_forcing:4", reward="brightness")
    assert np.mean([one["reward"] for one in more.found]) > np.mean([one["reward"] for one in found.found])


def test_starts_are_kept_where_they_are_better(tim, candidates):
    found = tim(LABELS, steps=4, seed=SEED, search="starts:3", reward="brightness")
    np.testing.assert_allclose([one["first_reward"] for one in found.found], brightness(candidates[0]), atol=1e-6)
    assert all(one["reward"] >= one["first_reward"] for one in found.found)
    np.testing.assert_allclose([one["reward"] for one in found.found], brightness(found), atol=1e-6)


def test_a_reward_and_a_search_go_together(tim):
    assert tim(LABELS, steps=4).found == []
    for given in ({"search": "best_of:2"}, {"reward": "brightness"}):
        with pytest.raises(ValueError, match="^search is .* there must be both or neither"):
            tim(LABELS, **given)
    for given in ({"classifier": "x"}, {"target": np.zeros((1, 8, 8, 1))}):
        with pytest.raises(ValueError, match="^classifier and target are of the reward of a search"):
            tim(LABELS, **given)
    with pytest.raises(ValueError, match="^target is given; it must be left out with --reward=brightness"):
        tim(LABELS, search="best_of:2", reward="brightness", target=np.zeros((1, 8, 8, 1)))
    with pytest.raises(
        ValueError, match="^reward is 'beauty'; it must be one of brightness, classifier, similarity, image"
    ):
        tim(LABELS, search="best_of:2", reward="beauty")
    with pytest.raises(ValueError, match="^--classifier is 'x'; it must be a file of a classifier"):
        open_judge(tim.run, "classifier", "x")


@pytest.mark.parametrize("text", ["best_of", "best:8", "best_of:0", "best_of:-1", "starts:1.5", "starts:100000", ":2"])
def test_what_is_no_search(text):
    with pytest.raises(ValueError, match=f"^--search is {text!r}; it must be one of best_of, starts, budget_forcing"):
        read_search(text)


def test_a_search_as_it_is_typed():
    assert read_search("starts:8", 0.25) == SearchSettings("starts", 8, 0.25)
    assert str(read_search("best_of:8")) == "best_of:8"
    for given in (("best_of:8", 0.5), ("starts:8", 0.0), ("starts:8", 1.5)):
        with pytest.raises(ValueError, match="^--radius is"):
            read_search(*given)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--search=best_of:2"], "--search is best_of:2; it needs --reward"),
        (["--reward=brightness"], "--reward is brightness; it needs --search"),
        (["--search=best_of:2", "--reward=beauty"], "--reward is 'beauty'"),
        (["--search=best_of:2", "--reward=classifier"], "objective.reward.classifier is ''"),
        (["--search=best_of:2", "--reward=brightness", "--classifier=x"], "--classifier is 'x'"),
        (["--search=best_of:2", "--reward=image_similarity"], "'image_similarity'; it must have one image"),
        (["--search=best_of:2", "--reward=brightness", "--target=x"], "--target is x; it needs --operator"),
        (["--search=best_of:2", "--reward=brightness", "--interpolate=3"], "--search is best_of:2"),
        (["--search=budget_forcing:2", "--reward=brightness", "--steps=4"], "sampling.sampler is 'flow_map'"),
    ],
)
def test_one_line_says_what_is_wrong(arguments, named, tmp_path, capsys):
    with one_device():
        assert named in told(sample.main, [f"--workdir={RUN}", f"--out={tmp_path}", *arguments], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_settings_of_an_output_say_it(tmp_path, capsys):
    with one_device():
        sample.main([f"--workdir={RUN}", f"--out={tmp_path}", "--steps=1,2", "--count=3", "--search=best_of:3",
                     "--reward=brightness"])  # fmt: skip
    (path,) = tmp_path.glob("*.json")
    assert "best_of3_brightness" in path.name
    about = json.loads(path.read_text())
    assert about["search"] == "best_of:3" and about["reward"] == "brightness"
    said = capsys.readouterr().out
    for steps in ("1", "2"):
        found = about["found"][steps]
        assert len(found["reward"]) == 3 and set(found["candidate"]) <= {0, 1, 2}
        assert f"{steps} steps: mean brightness {np.mean(found['reward']):.4g}" in said


@pytest.mark.slow
def test_the_command_compares_searches(tmp_path, capsys):
    with one_device():
        search.main([f"--workdir={RUN}", f"--out={tmp_path}", "--reward=brightness", "--budgets=1,3", "--steps=4",
                     "--count=4", "--config.sampling.stochasticity=1.0"])  # fmt: skip
    found = json.loads((tmp_path / "search.json").read_text())
    assert list(found["methods"]) == ["best_of", "starts", "budget_forcing"]
    firsts = [rows[0]["reward"] for rows in found["methods"].values()]
    np.testing.assert_allclose(firsts, firsts[0], atol=1e-2)  # one sample each, by budget forcing in another program
    for rows in found["methods"].values():
        assert [row["evaluations"] for row in rows] == [4, 12] and rows[1]["reward"] > rows[0]["reward"]
    assert (tmp_path / "search.md").read_text() in capsys.readouterr().out and (tmp_path / "search.png").exists()
