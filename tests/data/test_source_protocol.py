"""What every source must be: an instance of one class with a default for each ability, and one line in the table."""

import ast
import dataclasses
import importlib
import pathlib

import numpy as np
import pytest

import tim_jax
from tests.helpers.sources import open_made
from tim_jax import data
from tim_jax.data.sources.base import EncodedImages, Raw

PACKAGE = pathlib.Path(tim_jax.__file__).parent
# The abilities that a source has or has not, and what a source is that says nothing of them.
DEFAULTS = {"num_classes": 0, "class_names": (), "left_out": {}, "captions": False, "latents": False}
DEFAULTS |= {"paired_noise": False, "preference": (), "null_text": {}, "labels_at_hand": False}
METHODS = {"read", "header", "headers", "identity", "stable_names", "fingerprint", "parts", "name", "image_shape"}
METHODS |= {"annotations", "labels", "former_fingerprint"}


def sources_in(tree: ast.AST) -> list[str]:
    """Calls in a file of the package that ask a source by a text what it has."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and "source" in ast.unparse(node.args[0]).lower()
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_is_probed_for_what_it_has(path):
    assert sources_in(ast.parse(path.read_text())) == []


def test_probing_would_be_seen():
    assert len(sources_in(ast.parse('getattr(self.source, "captions", False) or hasattr(source, "row")'))) == 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "emoji" else ()) for name in data.SOURCES]
)
def test_every_entry_of_the_table_is_a_source_with_all_abilities(name, tmp_path, embedded):
    source = open_made(name, tmp_path, embedded)
    assert isinstance(source, data.Source) and dataclasses.is_dataclass(source)
    public = {name for name in vars(data.Source) if not name.startswith("_")}
    assert public == METHODS | set(DEFAULTS)
    for ability, default in DEFAULTS.items():
        assert isinstance(getattr(source, ability), type(default)), ability
    assert source.headers(0, 2) == [source.header(0), source.header(1)]
    assert len(source.parts) == 1 and source.parts[0] == (len(source), 1)


def test_the_table_names_functions_that_are_there_and_every_file_of_sources_is_in_it():
    modules = set()
    for path in data.SOURCES.values():
        module, function = path.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), function))
        modules.add(module.rsplit(".", 1)[1])
    files = {path.stem for path in (PACKAGE / "data" / "sources").glob("*.py")}
    assert files - {"__init__", "base", "mixture"} == modules


@dataclasses.dataclass(frozen=True)
class Stripes(EncodedImages):
    """The least that a source of image files must say."""

    encoded: tuple[bytes, ...]
    name: str = "stripes"
    image_shape: tuple = (None, None, 3)

    def __len__(self):
        return len(self.encoded)

    def raw(self, i, max_bytes=-1):
        return Raw(self.encoded[i])

    def fingerprint(self):
        return str(len(self.encoded))


def test_a_source_of_four_methods_trains(tmp_path):
    from tests.helpers.sources import IMAGES, encoded

    source = Stripes(tuple(encoded(image) for image in IMAGES[:6]))
    assert {name: getattr(source, name) for name in DEFAULTS} == DEFAULTS
    assert source.identity(3) == "stripes[3]"
    np.testing.assert_array_equal(source[2]["image"], IMAGES[2])
    how = data.Bucketing(area=64, batch_size=2, max_buckets=2, fitting=data.Fitting(max_cropped=0.9))
    plan = data.make_plan(source, data.read_sizes(source, tmp_path), how, tmp_path)
    assert plan.images() == 6
    assert data.global_batches(source, plan, 0)[0]["x"].shape[0] == 2


def test_a_source_that_lacks_a_method_is_refused_when_it_is_made():
    @dataclasses.dataclass(frozen=True)
    class Nothing(data.Source):
        name: str = "nothing"

    with pytest.raises(TypeError, match="abstract.*fingerprint.*image_shape.*read"):
        Nothing()
