"""What commands import: nothing heavy before their line is read, and nothing that they do not need after that."""

import json
import subprocess
import sys

import pytest

from tim_jax.__main__ import COMMANDS

HEAVY = (
    "jax", "flax", "optax", "orbax", "grain", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "tensorflow",
    "tensorflow_datasets", "tensorboardX", "pyarrow", "PIL", "torch",
)  # fmt: skip
# Of these no command has a need before it opens the data, draws a picture or compares features.
UNNEEDED = {
    "scipy.linalg", "sklearn", "skimage", "matplotlib", "tensorflow", "tensorflow_datasets", "pyarrow", "pandas",
    "torch",
}  # fmt: skip
MISTAKES = {
    "help": ["--help"],
    "nothing": [],
    "flag": ["--no-such-flag=1"],
    "key": ["--config.training.stpes=5"],
    "key without its section": ["--steps-per-second=5"],
    "configuration": ["--config=digitz"],
}
NO_MISTAKE = ("verify", "nothing")  # which needs no arguments
# Arguments with which a command comes as far as its work, and finds nothing to do it on. {} is an empty folder.
NOTHING_THERE = {
    "train": ["--config=digits", "--workdir={}/run", "--config.data.source=none"],
    "sample": ["--workdir={}"],
    "evaluate": ["--workdir={}"],
    "diagnose": ["--workdir={}"],
    "report": ["--workdir={}"],
    "grid": ["--workdir={}"],
    "inspect": ["--config=digits", "--config.data.source=none"],
    "encode": ["--config=digits", "--out={}/out"],
    "pairs": ["--workdir={}", "--out={}/out"],
    "classify": ["--config=digits", "--config.data.source=none", "--out={}/x.safetensors"],
    "prefer": ["--workdir={}", "--reward=brightness", "--out={}/out"],
    "search": ["--workdir={}", "--reward=brightness"],
    "convert": ["export", "{}", "{}/x.safetensors"],
    "ablate": ["--config=ablations/objectives", "--workdir={}", "--report"],
    "plan": ["--config=digits", "--topology=cpu:4096"],
    "bench": ["step", "--repeats=0"],
    "verify": ["--out={}"],
}
PROGRAM = """
import contextlib, io, json, sys
from tim_jax import __main__ as console
watched, calls, found, seen = *json.loads(sys.argv[1]), [], set()
for name, arguments in calls:
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            console.main([name, *arguments])
        except SystemExit as stop:
            code = stop.code
    imported = set(watched) & set(sys.modules)
    found.append([code, out.getvalue(), err.getvalue(), sorted(imported - seen)])
    seen |= imported
json.dump(found, sys.stdout)
"""


def calls_of(watched, calls):
    """[(exit code, standard output, standard error, watched modules imported)] of commands in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([watched, calls])], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers():
    """{(command, mistake): what `calls_of` gives}."""
    calls = [(name, mistake) for name in COMMANDS for mistake in MISTAKES if (name, mistake) != NO_MISTAKE]
    found = calls_of(HEAVY, [(name, MISTAKES[mistake]) for name, mistake in calls])
    return dict(zip(calls, found, strict=True))


@pytest.mark.parametrize(
    "name, mistake",
    [(name, mistake) for name in COMMANDS for mistake in MISTAKES if (name, mistake) != NO_MISTAKE],
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(name, mistake, answers):
    code, out, err, imported = answers[name, mistake]
    assert imported == []
    if mistake == "help":
        assert code == 0 and f"python -m tim_jax.{name}" in out and err == ""
    else:
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """{command: what `calls_of` gives} of commands that have come as far as their work."""
    folder = str(tmp_path_factory.mktemp("empty"))
    calls = [(name, [word.format(folder) for word in words]) for name, words in NOTHING_THERE.items()]
    found = calls_of(sorted({*HEAVY, *UNNEEDED}), calls)
    assert "jax" in found[0][3], "the first of them loads what they have in common"
    return dict(zip(NOTHING_THERE, found, strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_what_it_needs_and_no_more(name, work):
    code, _, err, imported = work[name]
    assert code == 2 and err.count("\n") == 1 and "see --help" not in err, err
    assert not UNNEEDED & set(imported)
