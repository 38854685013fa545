"""What the launch scripts are given: --dry-run and --help act on nothing, and flags that no command has are refused."""

import importlib
import os
import re
import subprocess

import pytest
import yaml

from tests.helpers.launch import LAUNCH, ROOT, bash
from tim_jax.__main__ import COMMANDS, module_of
from tim_jax.system import slices
from tim_jax.system.exit_codes import DONE, USER_ERROR

ARGUMENTS = {
    "hosts.sh": [["--config=digits", "--workdir=two words"]],
    "slurm.sh": [["--config=digits", "--workdir=two words"]],
    "tpu.sh": [["train", "--config=digits", "--workdir=two words"], ["create"], ["install"], ["stop"], ["delete"]],
    "kubernetes.sh": [["--config=digits"]],
    "local.sh": [["--config.training.steps=2"]],
    "test.sh": [["-m", "slow"]],
}
SOURCED = {"environment.sh", "flags.sh", "run.sh", "slices.sh"}
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
    assert ARGUMENTS.keys() == {path.name for path in LAUNCH.glob("*.sh")} - SOURCED


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


OF_CLUSTERS = re.compile("SLURM_|BASH|RANDOM|SECONDS|PATH|PWD|HOME")  # set by the shell, or by what starts the script


def sourced(script):
    """The text of a launch script and of what it sources."""
    text = (LAUNCH / script).read_text()
    return text + "".join(sourced(name) for name in re.findall(r"^source .*?(\w+\.sh)\"?$", text, re.M))


@pytest.mark.parametrize("script", ARGUMENTS)
def test_help_lists_every_variable_with_its_default(script):
    """What is read with a default, or in capitals at all and not assigned there, is a variable of the environment."""
    code = re.sub(r"(?m)(^|\s)#.*$", "", sourced(script))
    code = re.sub(r"'[^'\n]*'", "", code)
    read = set(re.findall(r"\$\{([A-Z]\w*):?[-+]", code)) | set(re.findall(r"\$\{?([A-Z][A-Z_]{2,})\b", code))
    assigned = set(re.findall(r"(?:^|\s)(?:local )?([A-Z][A-Z_]+)=", code))
    if script == "test.sh":
        read -= {"ACCELERATOR"}  # of a function that it does not call
    read = {name for name in read if not OF_CLUSTERS.match(name)}
    shown = dict(re.findall(r"^  ([A-Z][A-Z_]+)=(\S*) +\S", bash(script, "--help").stdout, re.M))
    declared = dict(re.findall(r"^\s*(?:\S.*\|\| )?variable ([A-Z_]+) (\S+)", sourced(script), re.M))
    assert read - assigned <= shown.keys() <= declared.keys()
    assert shown and not re.search(r"\$\{[A-Z]\w*:[-=]", (LAUNCH / script).read_text().replace("SLURM", "")
                                  .replace("${RUNTIME:-", "").replace("${TPU", "")), "a default of its own"  # fmt: skip
    for name, value in shown.items():
        assert declared[name].strip('"') == value or declared[name].startswith('"$'), name


def test_a_variable_of_the_environment_takes_the_place_of_its_default():
    listed = bash("tpu.sh", "--dry-run", "create", TYPE="v5e-16", ZONE="here").stdout
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite" in listed and "--zone=here" in listed


@pytest.mark.parametrize(
    "script, variable, value, said",
    [
        ("tpu.sh", "TYPE", "v5p-48", "v5p-32 v5p-64"),
        ("kubernetes.sh", "TYPE", "v5e-2", "v5e-1 v5e-4"),
        ("kubernetes.sh", "TYPE", "v6e-512", "v6e-256"),
        ("tpu.sh", "TYPE", "h100", "v4-8 v5e-16 v5p-64 v6e-16"),
        ("tpu.sh", "SLICES", "0", "at least 1"),
        ("kubernetes.sh", "TPU_SLICES", "two", "at least 1"),
    ],
)
def test_a_slice_that_is_not_is_answered_with_the_nearest(script, variable, value, said, forbidden):
    environ, record = forbidden
    done = bash(script, *ARGUMENTS[script][0], **environ, **{variable: value})
    assert done.returncode == USER_ERROR and not record.exists()
    assert done.stderr.startswith(f"error: {variable} is {value}; it must be") and done.stderr.endswith(f"{said}\n")


@pytest.mark.parametrize("value", ["x\n  evil: true", "$(touch hit)", "a b", "x, y: {z}", "'"])
@pytest.mark.parametrize(
    "script, variable",
    [("tpu.sh", "MODULE"), ("tpu.sh", "PYTHON_VERSION"), ("tpu.sh", "EXTRAS"), ("slurm.sh", "MODULE")]
    + [("kubernetes.sh", name) for name in ("MODULE", "NAME", "IMAGE", "MEMORY", "DATA_CLAIM", "GRACE", "GPU")],
)
def test_a_variable_with_signs_of_the_shell_or_of_yaml_is_refused(script, variable, value, forbidden):
    environ, record = forbidden
    done = bash(script, *ARGUMENTS[script][0], **environ, **{variable: value})
    assert done.returncode == USER_ERROR and done.stdout == "" and not record.exists()
    assert done.stderr.startswith(f"error: {variable} is ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ARGUMENTS)
def test_a_word_with_control_characters_is_refused(script, forbidden):
    environ, record = forbidden
    done = bash(script, *ARGUMENTS[script][0], "--workdir=a\nb", **environ)
    assert done.returncode == USER_ERROR and not record.exists() and done.stderr.count("\n") == 1


def test_every_slice_of_the_table_is_known_to_the_scripts():
    """The same answers as Python's, from the same table."""
    script = 'source launch/slices.sh; while read -r name; do read_slice "$name"; echo "$name $slice_shape"; done'
    names = list(slices.SHAPES) + ["v5e-16", "v5e-256"]
    said = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, input="\n".join(names) + "\n", text=True, capture_output=True, check=True
    ).stdout
    assert said.splitlines() == [f"{name} {slices.named_slice(name)[1]}" for name in names]


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
    words = [f"{word}=x" for word in sorted(listed - {"--min-processes"})]  # whose value the script reads
    done = bash("kubernetes.sh", "--dry-run", *words, MODULE=f"tim_jax.{command}")
    assert done.returncode == DONE, done.stderr
    assert all(f'"{word}"' in done.stdout for word in words)
