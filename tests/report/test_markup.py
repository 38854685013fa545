"""HTML of a report: texts are escaped, JSON cannot leave its element, and the policy names what may run."""

import base64
import hashlib
import json
import math
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.helpers import pages
from tim_jax.report import curves, markup
from tim_jax.report.markup import Section, tag
from tim_jax.report.reading import Folder

NASTY = "</script><script>alert(\"1\")</script><img src=x onerror=alert(1)> & 'quoted' <!-- \u2028"


@hypothesis.given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_text_is_text_and_any_attribute_its_value(text):
    root = pages._Reader()
    root.feed(tag("p", text, title=text, hidden=False, class_=None))
    (paragraph,) = root.root.children
    assert "".join(paragraph.children) == text and paragraph.attributes == {"title": text}


@hypothesis.given(st.text(), st.floats())
def test_json_is_what_it_was_and_stays_in_its_element(words, value):
    text = markup.as_json([words, (value,), {NASTY: NASTY}])
    assert json.loads(text) == [words, [value if math.isfinite(value) else None], {NASTY: NASTY}]
    assert not set("<>&\u2028\u2029") & set(text)


def test_a_page_of_nasty_texts_holds_them_as_texts():
    parts = [tag("p", NASTY), markup.facts({NASTY: NASTY}), markup.missing(NASTY, NASTY)]
    parts += [markup.table([NASTY], [[NASTY]], NASTY), markup.component("choice", {NASTY: NASTY})]
    body = markup.join(parts)
    text = markup.page(NASTY, NASTY, NASTY, tag("p", NASTY), [Section("one", NASTY, body)], NASTY)
    root = pages.read(text)
    assert root.all("img") == [] and len(root.all("script")) == 2
    assert root.one("h1").text == " ".join(NASTY.split()) and pages.data(root) == {NASTY: NASTY}


def test_the_policy_forbids_all_but_the_scripts_and_styles_of_the_page_itself():
    root = pages.read(markup.page("a", "b", "c", tag("p"), [], "d"))
    policy = root.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, rule in (("script", "script-src"), ("style", "style-src")):
        digest = hashlib.sha256("".join(root.one(name).children).encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert "unsafe" not in policy


def test_assets_name_nothing_elsewhere():
    for path in pathlib.Path(markup.ASSETS).iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which nobody looks up
        for word in (
            "http:",
            "https:",
            "//cdn",
            "@import",
            "url(",
            "fetch(",
            "XMLHttp",
            "eval(",
            "innerHTML",
            "WebSocket",
        ):
            assert word not in text, (path.name, word)


values = st.lists(st.none() | st.floats(-1e3, 1e3, width=32), min_size=1, max_size=3000)


@hypothesis.given(values, st.integers(8, 300))
def test_a_thinned_curve_keeps_its_ends_and_every_extreme(values, most):
    steps = list(range(10, 10 + 3 * len(values), 3))
    x, y = curves.thinned((steps, values), most)
    assert len(x) == len(y) <= most and sorted(set(x)) == x
    assert all(values[steps.index(step)] == value for step, value in zip(x, y, strict=True))
    assert (x[0], x[-1]) == (steps[0], steps[-1])
    seen = [value for value in values if value is not None]
    kept = [value for value in y if value is not None]
    assert not seen or (min(kept), max(kept)) == (min(seen), max(seen))
    assert (None in y) == (None in values)


def test_a_short_peak_in_a_long_curve_stays_where_it_is():
    values = [1.0] * 100_000
    values[54_321] = 9.0
    x, y = curves.thinned((list(range(100_000)), values))
    assert len(x) <= curves.POINTS and y[x.index(54_321)] == 9.0


def test_steps_that_were_made_again_count_as_they_were_made_last(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5, "time": 5.0}, {"step": 3, "loss": 9.0},
        {"step": 2, "loss": 2.0}, {"step": 2, "evaluation/slow/4/frechet": 0.5}, {"step": 3, "loss": None},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (tmp_path / curves.FILE).write_text(text)
    folder = Folder(tmp_path)
    assert curves.read(folder) == {
        "loss": ([1, 2, 3], [3.0, 2.0, None]), "evaluation/slow/4/frechet": ([2], [0.5]),
    }  # fmt: skip
    assert folder.damaged == [f"{curves.FILE}: 1 of its lines left out, which is not whole"]


def test_every_metric_has_a_place_and_ranges_are_in_order():
    levels = [f"error_by_level/{name}" for name in ("0.8-1", "0-0.2", "0.2-0.4")]
    names = [*levels, "loss", "goodput", "new", "evaluation/slow/4/frechet", "evaluation/fast/4/frechet"]
    panels = curves.arranged(names)
    shown = [list(curves.matched(panel, names).values()) for panel in panels]
    assert ["0–0.2", "0.2–0.4", "0.8–1"] in shown and ["slow, 4 steps", "fast, 4 steps"] in shown and ["new"] in shown
    assert sorted(name for panel in panels for name in curves.matched(panel, names)) == sorted({*names} - {"goodput"})


@pytest.mark.parametrize(
    "value, count, text",
    [(0.5, 3, "0.500"), (2.6, 3, "2.60"), (-0.000613, 3, "−0.000613"), (123456.0, 3, "123,456"), (266, 3, "266"),
     (1.04, 2, "1.0"), (0.0, 3, "0.00")],
)  # fmt: skip
def test_numbers_have_the_digits_that_they_are_given(value, count, text):
    assert markup.digits(value, count) == text
