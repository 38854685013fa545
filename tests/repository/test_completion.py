"""Completion, asked of a real bash."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tim_jax.__main__ import COMMANDS
from tim_jax.config import keys, loading
from tim_jax.train import parser

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What bash does for a user who presses Tab at the end of each line of its standard input.
SCRIPT = """
eval "$("$REGISTER" tim-jax)"
while IFS= read -r line; do
  COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
  read -ra COMP_WORDS <<< "$line"
  [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _python_argcomplete tim-jax
  echo "${COMPREPLY[*]}"
done
"""
KEYS = keys.known_keys()
TRAIN = [f"--{name}" for name in ("help", "config", "workdir", "check", "min-processes", "profile", "wait")]
LINES = {
    "tim-jax ": ["--help", *COMMANDS],
    "tim-jax sam": ["sample"],
    "tim-jax train --": TRAIN,
    "tim-jax train --config=digits_t": ["digits_teacher", "digits_tiny"],
    "tim-jax train --config ablations/o": ["ablations/objectives"],
    "tim-jax train --config=mine": ["mine.py"],
    "tim-jax train --config=digits --config.training.st": ["--config.training.steps"],
    "tim-jax sample --config.sampling.": [f"--config.{key}" for key in KEYS if key.startswith("sampling.")],
    "tim-jax sample --config.training.": [
        "--config.training.compilation_cache",
        "--config.training.compilation_cache_gib",
    ],
    "tim-jax train --config.training.steps=5 --config.ema.mine=0.5 --workd": ["--workdir"],
    "tim-jax train --config.data.random_crop=": ["False", "True"],
    "tim-jax train --workdir=r": ["runs/"],
    "tim-jax sample --workdir runs/": ["runs/digits/"],
    "tim-jax sample --layout=": ["dpg", "geneval", "mjhq", "plain"],
    "tim-jax bench comp": ["compile"],
    "tim-jax bench faults --": ["--help", "--json", "--kills", "--seed"],
    "tim-jax convert exp": ["export"],
    "tim-jax plan --teacher=imagenet256_b": ["imagenet256_b"],
}


@pytest.fixture(scope="module")
def replies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "runs" / "digits").mkdir(parents=True)
    (folder / "runs.txt").touch()
    (folder / "mine.py").touch()
    (folder / "bin").mkdir()
    command = folder / "bin" / "tim-jax"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tim_jax "$@"\n')
    command.chmod(0o755)
    beside, paths = pathlib.Path(sys.executable).parent, os.environ["PATH"]
    found = shutil.which("register-python-argcomplete", path=f"{beside}:{paths}")
    assert found, "it comes with argcomplete"
    environment = {"PATH": f"{folder / 'bin'}:{paths}", "PYTHONPATH": str(ROOT), "REGISTER": found}
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT],
        input="\n".join([*LINES, ""]), env=environment, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return dict(zip(LINES, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("line", LINES)
def test_a_line_goes_on_as_it_can(line, replies):
    assert sorted(replies[line].split()) == sorted(LINES[line])


def test_the_table_names_all_flags_of_train():
    assert set(TRAIN) == {flag for flag in parser().flags() if flag.startswith("--")}
    assert "digits_tiny" in loading.names()
