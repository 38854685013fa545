"""Real processes: the same rows for any number of them and after any stop, and a manifest of ten million rows."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

STEPS = 200

# What a process reads: [[bucket, indices, captions, sums of pixels]] of its share of each step.
READ = """
import itertools, json, sys
import numpy as np
from tim_jax import data


def read(index, count, start, stop, cache):
    source = data.open_source("photos", cache, "held_out")
    grid = data.Grid(side=4, batch_multiple=8)
    how = data.Bucketing(area=32 * 32, tokens=8 * 64, max_buckets=6, grid=grid)
    plan = data.make_plan(source, data.read_sizes(source, cache), how, cache)
    augmentation = data.Augmentation(flip=0.5, random_crop=True, side=4)
    batches = data.global_batches(source, plan, 7, (index,), count, augmentation)
    found = []
    for batch in itertools.islice(data.iterate(batches, start), stop - start):
        sums = np.round(np.abs(batch["x"]).sum((1, 2, 3)).astype(np.float64), 2)
        found.append([batch["bucket"].tolist(), batch["index"].tolist(), batch["caption"].tolist(), sums.tolist()])
    return found
"""
# Each process joins the others and writes what it reads.
PROCESS = (
    READ
    + """
import jax
index, count, port, start, stop, cache, out = sys.argv[1:]
index, count, start, stop = int(index), int(count), int(start), int(stop)
jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=120)
assert (jax.process_index(), jax.process_count()) == (index, count)
json.dump(read(index, count, start, stop, cache), open(f"{out}-{index}.json", "w"))
assert "tensorflow" not in sys.modules
"""
)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(count, start, stop, cache, out):
    """What is read of the global batches, put together from real processes; a single one is this process."""
    if count == 1:
        defined = {}
        exec(READ, defined)
        return defined["read"](0, 1, start, stop, str(cache))
    port = str(free_port())
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            command + [str(i), str(count), port, str(start), str(stop), str(cache), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
    parts = [json.load(open(f"{out}-{i}.json")) for i in range(count)]
    steps = []
    for slices in zip(*parts, strict=True):
        assert all(part[0] == slices[0][0] for part in slices)
        steps.append([slices[0][0]] + [sum((part[k] for part in slices), []) for k in (1, 2, 3)])
    return steps


@pytest.fixture(scope="module")
def whole(data_directory, tmp_path_factory):
    return run(1, 0, STEPS, data_directory, tmp_path_factory.mktemp("one") / "rows")


def test_two_processes_see_the_rows_of_one_and_go_on_where_it_stopped(data_directory, tmp_path):
    whole = run(1, 0, 24, data_directory, tmp_path / "one")
    assert run(2, 5, 24, data_directory, tmp_path / "two") == whole[5:]
    assert len({tuple(bucket) for bucket, *_ in whole}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_rows_of_200_steps_are_the_same_for_any_number_of_processes(whole, count, data_directory, tmp_path):
    assert run(count, 0, STEPS, data_directory, tmp_path / "rows") == whole


@pytest.mark.nightly
def test_after_stops_another_number_of_processes_goes_on_with_the_same_rows(whole, data_directory, tmp_path):
    found = []
    for count, start, stop in ((4, 0, 13), (1, 13, 90), (8, 90, 101), (2, 101, STEPS)):
        found += run(count, start, stop, data_directory, tmp_path / "rows")
    assert found == whole


# Ten million rows.

TEN_MILLION = 10_000_000

START = """
import json, sys, time
began = time.perf_counter()
from tim_jax import data
root, cache = sys.argv[1:]
source = data.open_source("manifest", cache, path=root)
how = data.Bucketing(area=1024**2, tokens=2**20, grid=data.Grid(side=32, batch_multiple=8))
plan = data.make_plan(source, data.read_sizes(source, cache), how, cache)
order = data.Order(plan, 0)
rows = []
for step in (0, 1, 2, 10**6):
    bucket, first = order.bucket(step)
    found = order.indices(bucket, first + __import__("numpy").arange(plan.buckets[bucket].batch_size))
    rows.append(found[:8].tolist())
    source.identity(int(found[0])), source.headers(int(found[0]), int(found[0]) + 1)
seconds = time.perf_counter() - began
# Not ru_maxrss, which begins with what the process had that started this one.
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "bytes": peak, "images": plan.images(), "rows": rows}))
"""


@pytest.mark.nightly
def test_ten_million_rows_start_in_seconds_and_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "root").mkdir()
    sizes = (32 * rng.integers(8, 64, (100_000, 2))).tolist()
    lines = "".join(
        f'{{"image_file": "PART/{i:05}.jpg", "captions": ["no. PART {i:05}"], "bucket": "{h}x{w}"}}\n'
        for i, (h, w) in enumerate(sizes)
    )
    with open(tmp_path / "root" / "rows.jsonl", "w") as file:
        for part in range(TEN_MILLION // len(sizes)):
            file.write(lines.replace("PART", f"{part:03}"))
    command = [sys.executable, "-c", START, str(tmp_path / "root"), str(tmp_path / "cache")]

    def started():
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    built, said = started()
    again, silence = started()
    assert "lines of rows.jsonl" in said and "sizes of root" in said and silence == ""
    assert again["rows"] == built["rows"] and again["images"] > 0.9 * TEN_MILLION
    print(f"built {built}, again {again}")
    assert built["bytes"] <= 3e9
    assert again["seconds"] <= 20 and again["bytes"] <= 1.5e9
