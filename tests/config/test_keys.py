"""Keys of configurations: one page has them all, and each is found by its name where it acts."""

import ast
import pathlib

import pytest

import tim_jax
from tim_jax.config import loading, page
from tim_jax.config.keys import flatten
from tim_jax.config.renames import KEYS, WEIGHTS
from tim_jax.config.sections import FREE, SECTIONS

PACKAGE = pathlib.Path(tim_jax.__file__).parent
BASE = flatten(loading.load("base").get_config())
# Where a key acts is neither where configurations are read nor a page that lists them.
ROOMS = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("config", "configs")]


def attributes(path):
    """Names of attributes that a file reads, and of fields that its classes have, as a.b for the attribute b of a."""
    reads, fields = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            reads.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            fields |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            reads |= set(node.value.split(".")) if node.value.isidentifier() else set()
    return reads, fields


FOUND = {path: attributes(path) for path in ROOMS}


def test_the_page_of_all_keys_is_written_from_the_dataclasses():
    assert loading.find("base").read_text() == page.page(), "python -m tim_jax.config.page > configs/base.py"


@pytest.mark.parametrize("key", [key for key in BASE if key != "seed" and key.split(".")[0] not in FREE])
def test_a_key_is_an_attribute_that_is_read_where_it_acts(key):
    """Its last part is a field of a dataclass outside of config/, and is read there by that name."""
    name = key.rsplit(".", 1)[-1]
    defined = [path for path, (_, fields) in FOUND.items() if name in fields]
    read = [path for path, (reads, _) in FOUND.items() if name in reads]
    assert defined and read, key


def test_every_section_is_in_the_table():
    assert {key.split(".")[0] for key in BASE} == {"seed", *SECTIONS}


def test_old_names_have_new_ones():
    assert not KEYS.keys() & BASE.keys() and set(KEYS.values()) <= BASE.keys() and set(WEIGHTS) <= BASE.keys()
    assert len(set(KEYS.values())) == len(KEYS)
