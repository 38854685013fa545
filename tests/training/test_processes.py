"""Several real processes over loopback: training, sampling and evaluation give the numbers of one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.devices import for_devices

DEVICES = 4
TINY = [
    "--config.data.height=16", "--config.data.width=16", "--config.data.buckets.area=256",
    "--config.data.buckets.max_buckets=3", "--config.data.buckets.tokens=256", *flags(TINY_NETWORK),
    "--config.model.patch_size=4", "--config.optimizer.warmup_steps=0", "--config.training.log_every=1",
    "--config.training.sample_every=0", "--config.training.sample_steps=1",
]  # fmt: skip
LENGTH = ["--config.optimizer.decay_steps=4"]  # one schedule, however many steps a start takes
# By number of processes (data, fsdp, tensor). Where there are four, two and two have the same rows.
MESHES = {1: (2, 2, 1), 2: (2, 2, 1), 4: (1, 2, 2)}


def start(count, command, **more):
    """Processes that join each other, with DEVICES devices among them; their outputs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": for_devices(DEVICES // count), "JAX_PLATFORMS": "cpu"} | more
    if count > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment | ({"JAX_PROCESS_ID": str(i)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    said = [process.communicate(timeout=600)[0] for process in running]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


def train(count, folder, cache, steps, *more):
    where = ["--config=photos", f"--workdir={folder}", f"--config.loader.directory={cache}"]
    mesh = [f"--config.mesh.{axis}={n}" for axis, n in zip(("data", "fsdp", "tensor"), MESHES[count], strict=True)]
    start(count, ["tim_jax.train", *where, *TINY, *mesh, *LENGTH, f"--config.training.steps={steps}", *more])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_directory):
    folder = tmp_path_factory.mktemp("alone")
    (folder / "cache").symlink_to(data_directory)
    return folder, train(1, folder / "run", folder / "cache", 4)


def same(a, b):
    for name in ("loss", "error_equal", "error_moving", "grad_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.nightly)])
def test_processes_give_the_numbers_of_one(count, alone, tmp_path):
    """They stop after two steps, and one process goes on from their checkpoint."""
    folder, expected = alone
    found = train(count, tmp_path / "run", folder / "cache", 2)
    found = train(1, tmp_path / "run", folder / "cache", 4) | found
    for step in range(1, 5):
        same(found[step], expected[step])
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert [line["processes"] for line in starts] == [count, 1]


@pytest.mark.nightly
def test_two_processes_learn_from_a_teacher_as_one_does(alone, tmp_path):
    """With a score that is trained beside the student: each process reads its part of the teacher."""
    folder, _ = alone
    learner = ["--config.objective.name=rcm", f"--config.teacher.checkpoint={folder / 'run'}"]
    learner += [
        "--config.teacher.guidance=2.0",
        "--config.teacher.dtype=bfloat16",
        "--config.data.buckets.max_buckets=1",
    ]
    one, two = (train(count, tmp_path / str(count), folder / "cache", 2, *learner) for count in (1, 2))
    for step in (1, 2):
        same(two[step], one[step])
        for name in ("score_error", "score_distillation", "grad_norm_score"):
            assert two[step][name] == pytest.approx(one[step][name], rel=1e-4, abs=1e-6), name


@pytest.mark.nightly
def test_two_processes_sample_and_evaluate_what_one_does(alone, tmp_path):
    folder, _ = alone
    arrays, tables = [], []
    for count in (1, 2):
        out = tmp_path / str(count)
        start(count, ["tim_jax.sample", f"--workdir={folder / 'run'}", "--steps=3", "--count=6", f"--out={out}"])
        (path,) = out.glob("*.npz")
        arrays.append(np.load(path)["steps3"])
        few = ["--steps=2", "--seeds=1", "--config.evaluation.num_samples=10"]
        start(count, ["tim_jax.evaluate", f"--workdir={folder / 'run'}", *few])
        tables.append(json.loads((folder / "run" / "any_step.json").read_text())["rows"][0]["frechet"])
    np.testing.assert_allclose(arrays[0], arrays[1], atol=1e-5)
    assert tables[0] == pytest.approx(tables[1], rel=1e-4)
