"""A loaded run in a notebook and in a typed program: what it says that it is, what it shows, how it refuses."""

import io
import pathlib

import jax
import pytest
from PIL import Image

import tim_jax
from tests.helpers.workdirs import one_device

FILE = pathlib.Path(__file__).resolve().parents[1] / "golden" / "net_sit.safetensors"
RUN = pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "digits"


@pytest.fixture(scope="module")
def tim():
    with one_device():
        return tim_jax.load(RUN)


def test_it_says_what_it_is(tim):
    said = repr(tim)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(tim._weights))
    for fact in (str(RUN / "checkpoints" / "4000"), "step: 4,000", "10 classes", "8 × 8", "tim, ot_fm", "flow_map",
                 f"{parameters:,}", "slow", "1 × cpu"):  # fmt: skip
        assert fact in said, said
    assert "\n" not in said and tim._repr_html_().count("<tr>") == len(tim.facts())


def test_images_are_a_list_that_is_shown_as_a_grid(tim, tmp_path):
    images = tim([3, 5], steps=2, count=3)
    assert isinstance(images, list) and len(images) == 6 and all(isinstance(one, Image.Image) for one in images)
    assert images.conditions == [3, 3, 3, 5, 5, 5] and repr(images) == "6 images, 8 × 8, in 2 steps"
    shown = Image.open(io.BytesIO(images._repr_png_()))
    assert shown.width > shown.height >= 2 * 8
    images.save(tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == shown.size == images.grid().size
    one = tim(3, steps=1)
    assert repr(one) == "1 image, 8 × 8, in 1 step"


def test_errors_name_arguments_of_python(tim, tmp_path):
    for call, said in (
        (lambda: tim([10]), "conditions has 10"),
        (lambda: tim(3, guidance=-1.0), "guidance is -1.0; it must be at least 0"),
        (lambda: tim(3, steps=0), "steps is 0"),
        (lambda: tim_jax.load(RUN, sampling={"guidanc": 2}), "sampling={'guidanc': …}: no such key; did you mean"),
        (lambda: tim_jax.load(RUN, sampling={"guidance": -1.0}), "sampling={'guidance': -1.0}; it must be at least 0"),
        (lambda: tim_jax.load(RUN, sampling={"guidance": "x"}), "sampling={'guidance': 'x'}; it must be a finite"),
        (lambda: tim_jax.load(RUN, objective={"name": "scm"}), "objective={'name': 'scm'}; it must be 'tim'"),
        (lambda: tim_jax.load(tmp_path / "none"), "path is"),
        (lambda: tim_jax.load(RUN, as_="sit_xl_2"), "as_ is 'sit_xl_2'; it must be left out for a workdir"),
        (lambda: tim_jax.load(RUN, ema="slow"), "ema is 'slow'; it must be left out for a workdir"),
        (lambda: tim_jax.load(FILE), "net_sit.safetensors: does not say what it is"),
        (lambda: tim_jax.load(FILE), "; say what it is by as_, such as as_='sit_xl_2'"),
        (lambda: tim_jax.load(FILE, as_="sit_xl_3"), "as_ is 'sit_xl_3'; it must be one of ddt_xl_2, "),
        (lambda: tim_jax.load(FILE, as_="sit_xl_2", ema="fast"), "ema is 'fast'; it must be one of online, which"),
        (lambda: tim_jax.load(RUN, plugin=tmp_path / "none.py"), "plugin is"),
    ):
        with one_device(), pytest.raises(ValueError) as error:
            call()
        assert said in str(error.value) and "--" not in str(error.value) and "\n" not in str(error.value), error.value
