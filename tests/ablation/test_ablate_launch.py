"""The runs of an ablation as commands for other machines."""

import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

from tests.helpers.ablations import arguments, fails, write_file
from tests.helpers.tally import OTHER, TAKEN
from tim_jax import ablate
from tim_jax.ablation import job, launch, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]


def launched(folder, kind, capsys):
    write_file(folder, {"a": {}, "b_2": {"model.depth": 2}}, seeds=2)
    ablate.main([*arguments(folder), f"--launch={kind}", "--seeds=2"])
    *lines, comment, last = capsys.readouterr().out.splitlines()
    assert not (folder / "runs").exists() and comment.startswith("#") and last.endswith("--report")
    return lines


def only(words):
    """The runs that a command's words pick, as the command itself reads them."""
    ablation = settings.load(words[0].removeprefix("--config="), {}, seeds=2)
    (picked,) = [word.removeprefix("--only=") for word in words if word.startswith("--only=")]
    return [str(member) for member in job.chosen(ablation, picked)]


EVERY = ["a/seed_0", "b_2/seed_0", "a/seed_1", "b_2/seed_1"]


def test_commands_to_be_typed(tmp_path, capsys):
    lines = [shlex.split(line) for line in launched(tmp_path, "print", capsys)]
    assert all(line[:3] == ["python", "-m", "tim_jax.ablate"] for line in lines)
    assert [run for line in lines for run in only(line[3:])] == EVERY
    assert all(set(arguments(tmp_path)) <= set(line) for line in lines)


def test_commands_for_slurm(tmp_path, capsys):
    found = []
    for line in launched(tmp_path, "slurm", capsys):
        module, sbatch, name, script, *words = shlex.split(line)
        assert (module, sbatch, script) == ("MODULE=tim_jax.ablate", "sbatch", "launch/slurm.sh")
        assert name.startswith("--job-name=tiny-")
        dry = ["bash", ROOT / script, "--dry-run", *words]
        said = subprocess.run(dry, env=os.environ | {"MODULE": "tim_jax.ablate"}, capture_output=True, text=True)
        assert said.returncode == 0 and "-m tim_jax.ablate --config=" in said.stdout
        found += only(words)
    assert found == EVERY


def test_commands_for_kubernetes(tmp_path, capsys):
    found, names = [], set()
    for line in launched(tmp_path, "kubernetes", capsys):
        name, module, bash, script, *words = shlex.split(line)
        assert (module, bash, script) == ("MODULE=tim_jax.ablate", "bash", "launch/kubernetes.sh")
        env = os.environ | dict(text.split("=") for text in (name, module))
        said = subprocess.run(["bash", ROOT / script, "--dry-run", *words], env=env, capture_output=True, text=True)
        manifest = yaml.safe_load(said.stdout)
        (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["-m", "tim_jax.ablate", *words]
        names.add(manifest["metadata"]["name"])
        found += only(words)
    assert found == EVERY and len(names) == 4 and "tiny-b-2-1" in names


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    "title", ["$(touch hit)", "a;touch hit", "a b", "-x", "`touch hit`", "a\ntouch hit", "ä", "a'b"]
)
def test_a_title_that_no_job_can_have_is_refused(kind, title, tmp_path, capsys):
    write_file(tmp_path, {"a": {}})
    file = (tmp_path / "tiny.py").rename(tmp_path / f"{title}.py")
    words = [f"--config={file}", *arguments(tmp_path)[1:]]
    assert "to name jobs" in fails([*words, f"--launch={kind}"], capsys)


STAND_IN = '#!/bin/bash\nprintf "%s\\0" "$@" >words\n[[ $0 != *kubectl ]] || cat >manifest\n'
HOSTILE = ["$(touch hit)", "`touch hit`", "'; touch hit; '", '"; touch hit; "', "a b", "${HOME}", "$(NAME)", "a: [b]\\"]


@pytest.mark.parametrize("kind", launch.KINDS)
@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_arguments_have_in_them_is_read_and_not_executed(kind, text, tmp_path, tally):
    """Each line is run by a shell that has stand-ins for what it would start, which write down their words."""
    for name in ("python", "sbatch", "kubectl"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    for name in ("launch", "tim_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (line, *_) = launch.commands(kind, "tiny", [f"--workdir={text}"], [settings.Member("a", 0)])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    executed = (tmp_path / "hit").exists()
    tally("words that a shell would execute", OTHER if executed else TAKEN)
    assert not executed
    if kind == "kubernetes":
        manifest = yaml.safe_load((tmp_path / "manifest").read_text())
        (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        words = [word.replace("$$", "$") for word in container["args"]]  # as Kubernetes reads them
    else:
        words = (tmp_path / "words").read_text().split("\0")
    assert f"--workdir={text}" in words and "--only=a/seed_0" in words


def test_a_name_that_is_too_long_for_kubernetes_is_refused(tmp_path, capsys):
    write_file(tmp_path, {"a" * 40: {}})
    assert "40" in fails([*arguments(tmp_path), "--launch=kubernetes"], capsys)
