"""The notebooks: valid, small, without machinery of their own, and running from top to bottom in a fresh kernel."""

import ast
import os
import pathlib
import time

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120
BYTES = 1_500_000
FUNCTION_LINES = 12  # a docstring and about ten lines of code

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def pictures(notebook):
    """Number of pictures in each cell's output."""
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in notebook.cells]


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_both_notebooks_are_here():
    assert {"1_transitions", "2_loss"} <= {path.stem for path in NOTEBOOKS}


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
    start = time.monotonic()
    client.execute(env=env)  # raises on the first cell with an error
    seconds = time.monotonic() - start
    assert pictures(notebook) == pictures(stored)
    assert seconds < SECONDS
