"""Who may look into whom, read from the imports of every file."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tim_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path for folder in ("tim_jax", "tests", "configs", "launch") for path in (ROOT / folder).rglob("*.[ps][yh]")
)
LONGEST = 450

# Room -> the rooms that it may import from, from the ground up. Everybody may import types, and commands may import
# whatever they need.
GROUND = {"system"}
RECEIVE = {"transitions", "networks", "data", "codecs", "training", "evaluation"}  # built objects, no configuration
SEE_A_RUN = GROUND | RECEIVE | {"config", "runs"}
ARROWS = {
    "": {"runs"},  # tim_jax itself: tim_jax.load
    "types": set(),
    "system": set(),
    "transitions": set(),
    "networks": set(),
    "codecs": GROUND,
    "data": GROUND,
    "training": GROUND,
    "evaluation": GROUND | {"codecs"},  # the one reader of files of weights
    "config": GROUND | RECEIVE,
    "runs": GROUND | RECEIVE | {"config"},
    "ablation": SEE_A_RUN,
    "report": SEE_A_RUN | {"ablation"},
    "plan": SEE_A_RUN,
    "bench": SEE_A_RUN,
    "verification": GROUND | RECEIVE | {"bench", "plan"},  # and of these two nothing that needs a configuration
}
ROOMS = set(ARROWS) - {""}
# Thin command lines, which nothing imports: the modules beside the rooms, and what `python -m` runs of a room.
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "types"}

TRANSITIONS_MAY_IMPORT = {"jax", "numpy", "tim_jax.transitions", "tim_jax.types"}
SEES_CONFIG_DICT = {"config", "runs", "ablation", "plan", "bench"} | COMMANDS
PYTREE_DECORATORS = {
    "register_dataclass",
    "register_pytree_node_class",
    "register_pytree_with_keys_class",
    "register_static",
}


def imported(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Absolute dotted names that a module imports; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join(parents + ([base] if base else []))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def registrations(tree: ast.AST) -> set[str]:
    """Decorators that enter what they decorate into a table; JAX's own for pytrees do not count."""
    found = set()
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            name = ast.unparse(called)
            if "regist" in name.lower() and name.split(".")[-1] not in PYTREE_DECORATORS:
                found.add(name)
    return found


def violations(source: str, path: str) -> list[str]:
    """What is wrong with the file `path` ("tim_jax/room/file.py") of text `source`, one line each."""
    tree = ast.parse(source)
    parts = path.removesuffix(".py").split("/")
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    room = (module.split(".") + [""])[1]
    allowed = {room, *ARROWS.get(room, ROOMS), "types"}
    wrong = [f"{path}: registration decorator @{name}" for name in sorted(registrations(tree))]
    for name in sorted(imported(tree, module, is_package)):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "tim_jax" and (target in COMMANDS and target != room or rest.endswith("__main__")):
            wrong.append(f"{path}: {name} is a command, which nothing may import")
        elif top == "tim_jax" and target in ROOMS - allowed:
            wrong.append(f"{path}: {room or 'tim_jax'} may not import {name}")
        elif top == "ml_collections" and room not in SEES_CONFIG_DICT:
            wrong.append(f"{path}: {room} may not import {name}")
        elif room == "transitions" and top not in sys.stdlib_module_names:
            if not any(f"{name}.".startswith(f"{allowed}.") for allowed in TRANSITIONS_MAY_IMPORT):
                wrong.append(f"{path}: transitions may not import {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows(path):
    assert violations(path.read_text(), str(path.relative_to(PACKAGE.parent).as_posix())) == []


def test_a_file_can_be_held_in_the_head():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path.partition("/")[0] for path in lengths} == {"tim_jax", "tests", "configs", "launch"}
    del lengths["configs/base.py"]  # which is generated, a line for every key
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize(
    "path, source",
    [
        ("tim_jax/transitions/loss.py", "import flax.linen as nn"),
        ("tim_jax/transitions/loss.py", "import tim_jax.networks.tim"),
        ("tim_jax/transitions/loss.py", "from tim_jax.system import files"),
        ("tim_jax/networks/tim.py", "from tim_jax.transitions import TRANSPORTS"),
        ("tim_jax/networks/tim.py", "from ..codecs import names"),
        ("tim_jax/networks/__init__.py", "from ..data import SOURCES"),
        ("tim_jax/data/sources/digits.py", "def f():\n    from tim_jax import training"),
        ("tim_jax/data/sources/digits.py", "from tim_jax.codecs import tensors"),
        ("tim_jax/codecs/names.py", "from tim_jax.networks.tim import TiM"),
        ("tim_jax/system/files.py", "from tim_jax.data import faults"),
        ("tim_jax/training/step.py", "from tim_jax import config"),
        ("tim_jax/training/step.py", "from tim_jax.transitions.loss import loss"),
        ("tim_jax/training/loop.py", "from ml_collections import ConfigDict"),
        ("tim_jax/evaluation/table.py", "import tim_jax.training.state"),
        ("tim_jax/evaluation/table.py", "from tim_jax.train import main"),
        ("tim_jax/types.py", "from tim_jax import networks"),
        ("tim_jax/__init__.py", "from . import networks"),
        ("tim_jax/config/build.py", "from tim_jax import bench"),
        ("tim_jax/config/build.py", "from tim_jax.runs import workdir"),
        ("tim_jax/runs/training.py", "from tim_jax import train"),
        ("tim_jax/runs/training.py", "from tim_jax.ablation import plan"),
        ("tim_jax/bench/step.py", "from tim_jax.plan import compile"),
        ("tim_jax/plan/report.py", "from tim_jax.bench import step"),
        ("tim_jax/plan/report.py", "from tim_jax.plan import __main__"),
        ("tim_jax/sample.py", "from tim_jax.train import main"),
        ("tim_jax/networks/tim.py", "@NETWORKS.register('tim')\nclass TiM: pass"),
        ("tim_jax/data/sources/digits.py", "@register_source\ndef digits(): pass"),
    ],
)
def test_a_wrong_arrow_is_seen(path, source):
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        (
            "tim_jax/transitions/loss.py",
            "import math\nimport jax.numpy as jnp\nfrom jax import lax\nimport numpy as np",
        ),
        ("tim_jax/transitions/loss.py", "from tim_jax.types import Query\nfrom tim_jax.transitions import weights"),
        ("tim_jax/transitions/__init__.py", "from . import loss\nfrom .weights import WEIGHTS"),
        ("tim_jax/networks/tim.py", "import flax.linen as nn\nfrom .attention import attention"),
        ("tim_jax/training/step.py", "import optax\nfrom tim_jax import types\nfrom tim_jax.system import files"),
        ("tim_jax/config/build.py", "from tim_jax import transitions, networks, data\nimport ml_collections"),
        ("tim_jax/train.py", "from tim_jax import config, training\nfrom ml_collections import config_flags"),
        ("tim_jax/bench/step.py", "from tim_jax.networks.tim import TiM"),
        ("tim_jax/plan/__main__.py", "from tim_jax.plan import report\nfrom tim_jax.runs import teachers"),
        ("tim_jax/training/state.py", "@jax.tree_util.register_dataclass\nclass State: pass"),
    ],
)
def test_a_right_arrow_passes(path, source):
    assert violations(source, path) == []
