"""Which accelerator launch/local.sh installs for, with stand-ins for nvidia-smi and for devices."""

import os
import subprocess

import pytest

from tests.helpers.launch import LAUNCH, bash

MACHINES = {
    "nothing": ([], None, "core", "CPU"),
    "a driver": (["dev/nvidia0"], "echo 580.65.06", "gpu", "GPU"),
    "two GPUs": ([], r"printf '590.1\n590.1\n'", "gpu", "GPU"),
    "an old driver": (["dev/nvidia0"], "echo 535.104", "core", "JAX needs 580"),
    "a driver that fails": ([], "echo 'has failed because it could not communicate'; exit 9", "core", "CPU"),
    "no nvidia-smi": (["dev/nvidia0"], None, "gpu", "/dev/nvidia0"),
    "an accel TPU": (["dev/accel0", "dev/accel1"], None, "tpu", "TPU"),
    "a vfio TPU": (["dev/vfio/0", "dev/vfio/vfio", "sys/bus/pci/devices/1/vendor"], None, "tpu", "TPU"),
    "a virtual machine": (["dev/vfio/0", "dev/vfio/vfio"], None, "core", "CPU"),
    "a neural unit": (["dev/accel/accel0"], None, "core", "CPU"),
}


def asked(root, tool=None, **environ):
    """What `find_accelerator` of a machine below `root` answers; tool: what its nvidia-smi does."""
    root.mkdir(exist_ok=True)
    programs = root / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/bash\n{tool or 'exit 127'}\n")
    (programs / "nvidia-smi").chmod(0o755)
    environ = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"} | environ
    command = [
        "bash",
        "-c",
        'source "$1" && find_accelerator "$2" && echo "$extra: $why"',
        "-",
        LAUNCH / "environment.sh",
        root,
    ]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("files, tool, extra, why", MACHINES.values(), ids=MACHINES)
def test_what_is_there_is_found_and_said(files, tool, extra, why, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("0x1ae0\n")
    done = asked(tmp_path, tool)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{extra}: ") and why in done.stdout and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("given, extra", [("gpu", "gpu"), ("tpu", "tpu"), ("cpu", "core"), ("cuda", None)])
def test_what_is_named_counts(given, extra, tmp_path):
    done = asked(tmp_path, "echo 580.1", ACCELERATOR=given)
    if extra is None:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: ACCELERATOR is cuda; it must be gpu, tpu or cpu\n"
    else:
        assert done.stdout == f"{extra}: {given}: as ACCELERATOR says\n"


@pytest.mark.parametrize("given", ["gpu", "cpu", "cuda"])
def test_the_script_installs_what_was_found(given):
    done = bash("local.sh", "--dry-run", ACCELERATOR=given)
    if given == "cuda":
        assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    else:
        assert f"extra {dict(gpu='gpu', cpu='core')[given]}" in done.stdout
