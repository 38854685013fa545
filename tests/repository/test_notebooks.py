"""The notebooks: valid, small, without machinery of their own, and running from top to bottom in a fresh kernel."""

import ast
import os
import pathlib
import resource
import subprocess
import sys
import tomllib

import nbclient
import nbformat
import pytest
from etils import epath

from tim_jax.config import identity, loading
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
    identity.compare(workdir.recorded(epath.Path(RUN)), build(config).config, RUN)


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


BADGE = "https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"


@every_notebook
def test_the_first_cell_brings_the_project_to_colab(path, tmp_path, monkeypatch):
    """From a real repository, with a stand-in for pip; elsewhere the cell does nothing."""
    notebook = nbformat.read(path, as_version=4)
    cell = code(notebook)[0]
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].get("Repository", "")
    assert f'REPOSITORY = "{address}"' in cell and cell == code(nbformat.read(NOTEBOOKS[0], as_version=4))[0]
    if address.startswith("https://github.com/"):
        there = BADGE.format(path=address.removeprefix("https://github.com/"), name=path.stem)
        assert there in notebook.cells[0].source
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert not list(tmp_path.iterdir())

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / "there")]
    (tmp_path / "there" / "notebooks").mkdir(parents=True)
    (tmp_path / "there" / "notebooks" / path.name).write_bytes(path.read_bytes())
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *words], check=True)
    run, installed = subprocess.run, []
    monkeypatch.setattr(
        subprocess, "run", lambda words, **how: installed.append(words) if "pip" in words else run(words, **how)
    )
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(cell.replace(f'REPOSITORY = "{address}"', f'REPOSITORY = "file://{tmp_path / "there"}"'), {})
    assert pathlib.Path.cwd() == tmp_path / "tim_jax" / "notebooks" and pathlib.Path(path.name).exists()
    assert installed == [[sys.executable, "-m", "pip", "install", "--quiet", ".."]]


WATCH = """
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tests.helpers.figures import unreadable

print_figure = FigureCanvasAgg.print_figure


def watched(canvas, *args, **options):
    print_figure(canvas, *args, **options)
    with open({path!r}, "a") as file:
        file.writelines(line + "\\n" for line in unreadable(canvas.figure))


FigureCanvasAgg.print_figure = watched
"""


@pytest.mark.slow
@every_notebook
def test_runs_from_top_to_bottom_in_a_fresh_kernel(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(stored)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[])
    # A first cell of the test's own: it looks for what cannot be read in every figure that is drawn.
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WATCH.format(path=str(tmp_path / "unreadable.txt"))))
    # A reader's kernel, not this process's: one device, pictures drawn inline, the library of this checkout.
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MPLBACKEND")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    client = nbclient.NotebookClient(
        notebook, timeout=5 * SECONDS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    start = processor_seconds()
    client.execute(env=env)  # raises on the first cell with an error
    assert pictures(notebook)[1:] == pictures(stored)
    assert (tmp_path / "unreadable.txt").read_text() == ""
    assert processor_seconds() - start < 2 * SECONDS


def processor_seconds() -> float:
    """Of all processes that this one has started and seen end; a busy machine does not lengthen them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
