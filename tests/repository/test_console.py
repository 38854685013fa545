"""The console command: it lists all commands, runs the one that is named, and loads nothing before that."""

import importlib
import inspect
import pathlib
import subprocess
import sys
import tomllib

import pytest

from tim_jax import __main__ as console

PACKAGE = pathlib.Path(console.__file__).parent


def test_the_table_is_all_commands():
    """The modules beside the rooms, and the rooms that can be run."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "types"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(console.COMMANDS) == modules | rooms


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_takes_its_arguments_and_describes_them(name, capsys):
    module = importlib.import_module(console.module_of(name))
    assert next(iter(inspect.signature(module.main).parameters)) == "argv"
    with pytest.raises(SystemExit) as stop:
        console.main([name, "--help"])
    assert stop.value.code == 0
    assert f"python -m tim_jax.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command(arguments, capsys):
    assert console.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, about in console.COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines if line.strip().startswith(f"{name} ")] == [[name, about]]
    assert max(map(len, lines)) <= 120


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        console.main(["sampel", "--workdir=x"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.splitlines() == ["error: sampel: no such command; did you mean sample? tim-jax --help lists them"]


def test_errors_of_a_command_keep_their_line_and_code(capsys):
    with pytest.raises(SystemExit) as stop:
        console.main(["train", "--config=digitz", "--workdir=x"])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: --config=digitz")


def test_python_runs_it_too_and_help_loads_nothing():
    program = (
        "import runpy, sys; sys.argv = ['tim-jax', '--help']\n"
        "try:\n    runpy.run_module('tim_jax', run_name='__main__')\n"
        "except SystemExit as stop:\n    print(stop.code, sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_package_installs_it():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["tim-jax"].partition(":")
    assert getattr(importlib.import_module(module), function) is console.main
