"""Pairs of a winner and a loser: what a line means, what is refused, and that both are treated alike."""

import json

import numpy as np
import pytest

from tests.helpers.sources import IMAGES, ROWS, encoded, make_folder, make_preferences
from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.preferences import TIES

SHAPE = (8, 8)


def opened(root, **where):
    return data.open_source("preferences", str(root / "cache"), **where)


def plan_of(source, root, batch_size=4, **fitting):
    how = data.Bucketing(table=(SHAPE,), batch_size=batch_size, fitting=data.Fitting(max_cropped=0.9, **fitting))
    return data.make_plan(source, data.read_sizes(source, root / "cache"), how, root / "cache")


def write(root, *lines):
    """A file of lines, those that are no text being JSON; its path as a source takes it."""
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(encoded(IMAGES["ab".index(name[0])]))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "pairs.jsonl").write_text(text)
    return {"path": str(root / "pairs.jsonl")}


def test_winners_losers_and_rewards_of_batches(tmp_path):
    """The losers here are the winners upside down."""
    source = opened(tmp_path, **make_preferences(tmp_path))
    assert source.preference == ("loser", "reward") and source.left_out == {TIES: 1} and len(source) == ROWS
    batch = data.global_batches(source, plan_of(source, tmp_path), 3)[0]
    assert batch["loser"].dtype == np.float32 and batch["loser"].shape == batch["x"].shape == (4, *SHAPE, 3)
    np.testing.assert_allclose(batch["loser"][:, ::-1], batch["x"], atol=0.02)  # as resizing rounds
    np.testing.assert_array_equal(batch["reward"], (batch["index"] / ROWS).astype(np.float32))


def test_an_image_that_loses_to_itself_is_cropped_and_mirrored_as_it_is_as_a_winner(tmp_path):
    make_preferences(tmp_path)
    pairs = [{"images": [f"{i}.png", f"{i}.png"], "choice": 0} for i in range(ROWS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    source = opened(tmp_path, path=str(tmp_path / "pairs.jsonl"))
    plan = plan_of(source, tmp_path)
    varied = data.global_batches(source, plan, 3, augmentation=data.Augmentation(flip=0.5, random_crop=True))
    plain = data.global_batches(source, plan, 3)
    for step in range(4):
        np.testing.assert_array_equal(varied[step]["x"], varied[step]["loser"])
        assert np.abs(varied[step]["x"] - plain[step]["x"]).max() > 0.1


def test_pairs_come_in_the_order_that_any_source_has(tmp_path):
    source, other = (
        opened(tmp_path, **make_preferences(tmp_path)),
        data.open_source("folder", str(tmp_path / "cache"), **make_folder(tmp_path)),
    )
    first, second = (data.global_batches(each, plan_of(each, tmp_path), 7) for each in (source, other))
    for step in (0, 5, 1):
        np.testing.assert_array_equal(first[step]["index"], second[step]["index"])
        np.testing.assert_array_equal(first[step]["x"], second[step]["x"])


def test_a_prompt_in_place_of_a_label(tmp_path):
    pair = {"images": ["a.png", "b.png"], "choice": 1, "prompt": "a fox"}
    source = opened(tmp_path, **write(tmp_path, pair, "", pair | {"prompt": "two foxes"}))
    assert source.captions and source.num_classes == 0 and source.preference == ("loser",)
    assert [source[i]["captions"] for i in range(2)] == [("a fox",), ("two foxes",)]
    assert [source.identity(i) for i in range(2)] == ["pairs.jsonl:1", "pairs.jsonl:3"]
    np.testing.assert_array_equal(source[0]["image"], IMAGES[1])
    np.testing.assert_array_equal(np.asarray(source.read(0)["loser"]), IMAGES[0])
    assert not opened(tmp_path, path=str(tmp_path / "pairs.jsonl"), captions=False).captions


PAIR = {"images": ["a.png", "b.png"], "choice": 0, "label": 1}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "must be JSON"),
        ("[1]", "must have the names of two files as 'images', and has None"),
        (PAIR | {"images": ["a.png"]}, "must have the names of two files as 'images', and has ['a.png']"),
        (PAIR | {"images": ["a.png", ""]}, "must have the names of two files"),
        (PAIR | {"images": ["a.png", "../b.png"]}, "must name images in its own folder, and has '../b.png'"),
        (PAIR | {"images": ["a.png", "/etc/passwd"]}, "must name images in its own folder, and has '/etc/passwd'"),
        (PAIR | {"choice": 2}, "must have 0, 1 or, for a tie, null as 'choice', and has 2"),
        (PAIR | {"choice": True}, "null as 'choice', and has True"),
        ({"images": ["a.png", "b.png"]}, "null as 'choice', and has 'missing'"),
        (PAIR | {"label": 1.5}, "must have a whole number as 'label', and has 1.5"),
        (PAIR | {"label": -1}, "must have a whole number as 'label', and has -1"),
        (PAIR | {"reward": "good"}, "must have a finite number as 'reward', and has 'good'"),
        ('{"images": ["a.png", "b.png"], "choice": 0, "reward": NaN}', "must have a finite number as 'reward'"),
        (PAIR | {"prompt": " "}, "must have a text, and has ' '"),
        (PAIR | {"reward": 0.5}, "must have of label, caption, reward what the lines before it have, label, and has"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_refused_with_its_number(line, message, tmp_path):
    where = write(tmp_path, PAIR, "", line)
    with pytest.raises(ValueError) as error:
        opened(tmp_path, num_classes=3, **where)
    assert str(error.value).startswith(f"data.path is '{where['path']}'; line 3 of pairs.jsonl ")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*")), "nothing is left of a table that was begun"


def test_a_file_of_ties_and_a_folder_of_several_files_are_refused(tmp_path):
    where = write(tmp_path, PAIR | {"choice": None})
    with pytest.raises(ValueError, match="pairs.jsonl must have at least one line with a choice"):
        opened(tmp_path, **where)
    (tmp_path / "more.jsonl").touch()
    with pytest.raises(ValueError, match="it must hold one JSONL file, but holds more.jsonl, pairs.jsonl"):
        opened(tmp_path, path=str(tmp_path))


def test_an_image_that_is_wrong_is_a_bad_record_and_so_is_a_loser_that_does_not_fit(tmp_path):
    where = make_preferences(tmp_path)
    (tmp_path / "3_lost.png").unlink()
    (tmp_path / "5_lost.png").write_bytes(
        encoded(IMAGES[5][:4])
    )  # its winner goes into a bucket that it is too small for
    source = opened(tmp_path, **where)
    with pytest.raises(BadRecord, match="^missing"):
        source[3]
    batches = data.global_batches(source, plan_of(source, tmp_path), 0)
    bad = {tuple(line[1:3]) for step in range(9) for line in batches[step]["bad"]}
    assert bad == {("pairs.jsonl:4", "missing"), ("pairs.jsonl:7", "size")}, "line 6 is a tie"
    labels = opened(tmp_path, path=where["path"], num_classes=1).labels(np.arange(ROWS))
    np.testing.assert_array_equal(labels, np.where(np.arange(ROWS) < 6, 0, -1))


def test_pairs_and_single_images_do_not_mix(tmp_path):
    pairs = opened(tmp_path, **make_preferences(tmp_path))
    single = data.open_source("folder", str(tmp_path / "cache"), **make_folder(tmp_path))
    with pytest.raises(
        ValueError, match=r"captions False, with a loser, with a reward\).* all or none captions, losers"
    ):
        data.Mixture((pairs, single), (1.0, 1.0))
    mixed = data.Mixture((pairs, pairs), (1.0, 1.0))
    assert mixed.preference == pairs.preference and mixed[13]["reward"] == 1 / ROWS
