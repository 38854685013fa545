"""The notebooks: valid, small, without machinery of their own, and running from top to bottom in a fresh kernel."""

import ast
import os
import pathlib
import resource

import nbclient
import nbformat
import pytest
from etils import epath

from tim_jax.config import keys, loading
from tim_jax.config.build import build
from tim_jax.runs import workdir
from tim_jax.training import checksums

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = ROOT / "notebooks" / "digits"
RUN_BYTES = 2_000_000
SECONDS = 120  # of a notebook on two processors
BYTES = 1_500_000
FUNCTION_LINES = 12  # a docstring and about ten lines of code

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def pictures(notebook):
    """Number of pictures in each cell's output."""
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in notebook.cells]


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_are_here():
    assert [path.stem for path in NOTEBOOKS] == [
        "1_transitions", "2_loss", "3_sampling", "4_your_own", "5_reading_a_run"
    ]  # fmt: skip


def test_the_run_beside_them_is_small_whole_and_of_its_configuration():
    files = [path for path in RUN.glob("**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < RUN_BYTES
    (checkpoint,) = (RUN / "checkpoints").iterdir()
    assert checksums.damage(epath.Path(checkpoint)) is None
    config = loading.load("digits_tiny").get_config()
    keys.compare_identity(workdir.recorded(epath.Path(RUN)), build(config).config, RUN)


@every_notebook
def test_valid_and_stored_with_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < BYTES
    assert sum(pictures(notebook)) >= 3
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"display_data", "stream"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@every_notebook
def test_no_machinery_of_its_own(path):
    """Functions stay short, there are no classes, and the library is imported."""
    trees = [ast.parse(source) for source in code(nbformat.read(path, as_version=4))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = {node.name: node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, ast.FunctionDef)}
    assert {name: lines for name, lines in functions.items() if lines > FUNCTION_LINES} == {}
    assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("tim_jax")]


@pytest.mark.slow
@every_notebook
def test_runs_from_top_to_bottom_in_a_fresh_kernel(path):
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(stored)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[])
    # A reader's kernel, not this process's: one device, pictures drawn inline, the library of this checkout.
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MPLBACKEND")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    client = nbclient.NotebookClient(
        notebook, timeout=5 * SECONDS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    start = processor_seconds()
    client.execute(env=env)  # raises on the first cell with an error
    assert pictures(notebook) == pictures(stored)
    assert processor_seconds() - start < 2 * SECONDS


def processor_seconds() -> float:
    """Of all processes that this one has started and seen end; a busy machine does not lengthen them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
