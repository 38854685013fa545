"""Labels by name and by number: what is taken, what is refused, what files and pictures then say."""

import json

import numpy as np
import pytest

from tests.helpers import workdirs
from tim_jax import sample as sampling
from tim_jax.runs import labels
from tim_jax.runs.interface import load
from tim_jax.runs.outputs.layouts import read_settings

ANIMALS = ("cat", "dog", "golden_retriever", "tench, Tinca tinca", "crane, bird", "crane, machine")
NUMBERED = ("1", "10", "2")  # folders of these names, in their order

TAKEN = [
    ("dog,cat", ANIMALS, [1, 0]),
    ("0,dog, 2", ANIMALS, [0, 1, 2]),
    ("Golden Retriever,GOLDEN-RETRIEVER", ANIMALS, [2, 2]),
    ('tench,"tench, Tinca tinca",Tinca Tinca', ANIMALS, [3, 3, 3]),
    ("bird", ANIMALS, [4]),
    ("1,2,10", NUMBERED, [0, 2, 1]),  # names come first
    ("#1,#2,0", NUMBERED, [1, 2, 0]),
    ("3,5", (), [3, 5]),
    ("5", tuple("0123456789"), [5]),
]
REFUSED = [
    ("dgo", ANIMALS, "'dgo', which is no class of this run; did you mean 'dog'"),
    ("zebra", ANIMALS, "there are 'cat', 'dog', 'golden_retriever', …"),
    ("crane", ANIMALS, "several classes are called: 'crane, bird', 'crane, machine'"),
    ("9", ANIMALS, "9; labels of this run lie in 0 … 5"),
    ("#9", ANIMALS, "9; labels of this run lie in 0 … 5"),
    ("-1", ANIMALS, "-1; labels of this run lie in 0 … 5"),
    ("-1", NUMBERED, "-1; labels of this run lie in 0 … 5"),  # no other way to write the name "1"
    ("cat\rdog", ANIMALS, "'cat\\rdog'; it must be one line of names or numbers"),
    ("cat,,dog", ANIMALS, "'', which is no class"),
    ("three", (), "'three'; classes of this run have no names, and labels are whole numbers in 0 … 5"),
    ("1.5", (), "'1.5'; classes of this run have no names"),
]


@pytest.mark.parametrize("text, names, expected", TAKEN)
def test_labels_are_names_or_numbers(text, names, expected):
    assert labels.read_labels(text, names, max(10, len(names))) == expected


def test_names_are_read_from_lists_as_people_have_them(tmp_path):
    expected = ("tench, Tinca tinca", "goldfish")
    for name, content in (
        ("names.txt", "tench, Tinca tinca\ngoldfish\n"),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n"),
        ("names.json", json.dumps(expected)),
    ):
        (tmp_path / name).write_text(content)
        assert labels.read_names(str(tmp_path / name), 2) == expected
    for content, message in (("a\na\n", "each once"), ("a\nb\nc\n", "at most 2 names"), ("", "on each line")):
        (tmp_path / "names.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            labels.read_names(str(tmp_path / "names.txt"), 2)
    (tmp_path / "wordnet.txt").write_text("n01440764\nn01443537\n")
    assert labels.read_names(str(tmp_path / "wordnet.txt"), 2) == ("n01440764", "n01443537")


@pytest.mark.parametrize("text, names, message", REFUSED)
def test_what_is_no_label_is_told_in_one_line(text, names, message):
    with pytest.raises(ValueError) as error:
        labels.read_labels(text, names, 6)
    assert str(error.value).startswith(("--labels has ", "--labels is ")) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_samples_by_name_are_those_by_number_and_say_the_name(tmp_path, capsys):
    run = workdirs.workdir(tmp_path / "run", "digits", **workdirs.TINY | {"model.num_classes": "3"})
    (run / "classes.json").write_text(json.dumps(["ant", "bee", "cat"]))
    with workdirs.one_device():
        for out, given in (("names", "cat,ant,BEE"), ("numbers", "2,0,1")):
            sampling.main([f"--workdir={run}", "--steps=1", f"--labels={given}", f"--out={tmp_path / out}"])
        capsys.readouterr()
        told = workdirs.told(sampling.main, [f"--workdir={run}", "--steps=1", "--labels=cta"], capsys)
        assert "did you mean 'cat'" in told
        tim = load(run)
        named, numbered = (tim(chosen, steps=1) for chosen in (["cat", 0, "bee"], [2, 0, 1]))
        with pytest.raises(ValueError, match="did you mean 'bee'"):
            tim("be")
    assert tim.classes == ("ant", "bee", "cat")
    pixels = [np.asarray(image) for image in named]
    np.testing.assert_array_equal(pixels, [np.asarray(image) for image in numbered])
    files = {out: sorted((tmp_path / out).rglob("*.png")) for out in ("names", "numbers")}
    assert len(files["names"]) == 5
    for one, other in zip(*files.values(), strict=True):
        assert one.read_bytes() == other.read_bytes()
    singles = [file for file in files["names"] if file.parent.name.endswith("_steps1")]
    assert [read_settings(file)["class"] for file in singles] == ["cat", "ant", "bee"]
    (about,) = (tmp_path / "names").glob("*.json")
    assert json.loads(about.read_text())["classes"] == ["cat", "ant", "bee"]
    assert json.loads(about.read_text())["labels"] == [2, 0, 1]
