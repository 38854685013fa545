"""What the launch scripts are given: --dry-run and --help act on nothing, and flags that no command has are refused."""

import importlib
import os
import re
import subprocess

import pytest
import yaml

from tests.helpers.launch import LAUNCH, bash
from tim_jax.__main__ import COMMANDS, module_of
from tim_jax.system.exit_codes import DONE, USER_ERROR

ARGUMENTS = {
    "slurm.sh": [["--config=digits", "--workdir=two words"]],
    "tpu.sh": [["train", "--config=digits", "--workdir=two words"], ["create"], ["install"], ["stop"], ["delete"]],
    "kubernetes.sh": [["--config=digits"]],
    "local.sh": [["--config.training.steps=2"]],
    "test.sh": [["-m", "slow"]],
}
DRY_RUNS = [
    [script, *words[:place], "--dry-run", *words[place:]]
    for script, lines in ARGUMENTS.items()
    for words in lines
    for place in range(len(words) + 1)
]


@pytest.fixture
def forbidden(tmp_path):
    """Programs in whose place a file is written that must not be there; and that file."""
    record = tmp_path / "record"
    for name in ("gcloud", "kubectl", "srun", "scontrol", "tar", "python3", "python3.11", "python", "pip"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "$0 $*" >>{record}\n')
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}, record


def test_every_script_has_arguments_here():
    assert ARGUMENTS.keys() == {path.name for path in LAUNCH.glob("*.sh")} - {"environment.sh", "flags.sh", "run.sh"}


@pytest.mark.parametrize("arguments", DRY_RUNS, ids=" ".join)
def test_a_dry_run_prints_and_runs_nothing(arguments, forbidden):
    environ, record = forbidden
    done = bash(*arguments, **environ)
    assert done.returncode == DONE and done.stderr == "" and not record.exists()
    if arguments[0] == "kubernetes.sh":
        assert yaml.safe_load(done.stdout)["kind"] == "JobSet"
        return
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    assert "--dry-run" not in done.stdout
    if "--config=digits" in arguments:
        assert "exit code 75" in done.stdout and "-m tim_jax.train --config=digits" in done.stdout
        assert "'--workdir=two words'" in done.stdout.replace("'\\''", "'")


@pytest.mark.parametrize("arguments", DRY_RUNS, ids=" ".join)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_tells_how_to_start_and_runs_nothing(arguments, word, forbidden):
    environ, record = forbidden
    script, *words = arguments
    done = bash(script, *(word if given == "--dry-run" else given for given in words), **environ)
    assert done.returncode == DONE and done.stderr == "" and not record.exists()
    assert f"launch/{script}" in done.stdout and "--dry-run" in done.stdout and "#" not in done.stdout


NEARLY = ["--dryrun", "--dry_run", "--dry-run=client", "--dry", "--helpme"]
UNKNOWN = [(script, word) for script in ARGUMENTS for word in NEARLY]
UNKNOWN += [(script, word) for script in ARGUMENTS if script != "test.sh" for word in ("--wrkdir=x", "-n")]


@pytest.mark.parametrize("script, word", UNKNOWN)
def test_an_unknown_flag_runs_nothing(script, word, forbidden):
    environ, record = forbidden
    words = ARGUMENTS[script][0]
    for place in range(len(words) + 1):
        done = bash(script, *words[:place], word, *words[place:], **environ)
        assert done.returncode == USER_ERROR and done.stdout == "" and not record.exists()
        assert done.stderr.startswith(f"error: {word}: no such argument") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["create", "--config=digits"], ["delete", "other"], ["remove"], []])
def test_a_step_of_a_slice_that_is_not(words, forbidden):
    environ, record = forbidden
    done = bash("tpu.sh", *words, **environ)
    assert done.returncode == USER_ERROR and len(done.stderr.splitlines()) == 1 and not record.exists()


@pytest.mark.parametrize("word", ["--workdir=elsewhere", "--workdir", "--check"])
def test_the_script_for_one_machine_has_its_own_workdir(word, forbidden):
    environ, record = forbidden
    done = bash("local.sh", word, **environ)
    assert done.returncode == USER_ERROR and len(done.stderr.splitlines()) == 1 and not record.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_know_every_flag_of_every_command(command, capsys):
    """By what the parsers themselves list."""
    with pytest.raises(SystemExit):
        importlib.import_module(module_of(command)).main(["--help"])
    listed = set(re.findall(r"(?<![\w.-])--[a-z-]+(?=[ =,\n])", capsys.readouterr().out)) - {"--help"}
    words = [f"{word}=x" for word in sorted(listed)]
    done = bash("kubernetes.sh", "--dry-run", *words, MODULE=f"tim_jax.{command}")
    assert done.returncode == DONE, done.stderr
    assert all(f'"{word}"' in done.stdout for word in words)
