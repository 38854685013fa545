"""What compilers for TPUs and GPUs make of the attention kernels; no such device is needed."""

import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from tim_jax.bench import __main__ as command
from tim_jax.bench import attention as bench
from tim_jax.config.command_line import load_config
from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.plan.compile import compile_step
from tim_jax.system import topologies

KERNELS = ("attention_and_tangent", "attention_dq", "attention_dk_dv")
SMALL = {
    "model.width": "16", "model.depth": "2", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "20", "training.sample_steps": "1", "training.sample_every": "0",
}  # fmt: skip
# Width of a head, type, keys: None for as many as queries, otherwise with a mask.
SIZES = [*itertools.product((64, 72, 128), ("float32", "bfloat16"), (None,)), (72, "bfloat16", 77)]


def kernels_of(text):
    """Those that a program for TPUs calls, each as often as it does."""
    return sorted(re.findall(rf"%({'|'.join(KERNELS)})[.\d]* = .*custom-call\(", text))


def tpu(name):
    """A topology, whose compiler the test extra brings."""
    if sys.platform != "linux":
        pytest.skip("there is a compiler for TPUs on Linux alone")
    return topologies.topology(name)


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    "width, dtype, keys",
    [pytest.param(*of, marks=() if of == (72, "bfloat16", None) else pytest.mark.slow) for of in SIZES],
)
def test_the_compiler_for_tpus_takes_the_kernels(name, width, dtype, keys):
    device, shape = tpu(name).devices[0], (1, 1000, 2, width)
    program = bench.compile_mode("pallas", "jvp_grad", shape, jnp.dtype(dtype), device, keys, masked=keys is not None)
    assert kernels_of(program.as_text()) == sorted(KERNELS)


def written(text):
    """Yields (type, shape, operation in JAX) of all that a program writes; a fusion writes its result alone."""
    within = set(re.findall(r"calls=%?([\w.\-]+)", text))
    for name, body in re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S):
        for line in "" if name in within else body.splitlines():
            results, operation = re.search(r" = (.*?) [\w\-]+\(", line), re.search(r'op_name="([^"]*)"', line)
            for kind, shape in re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", results[1] if results else ""):
                yield kind, tuple(map(int, shape.split(","))), operation[1] if operation else ""


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["pallas", "blockwise"])
def test_a_program_of_the_size_of_XL_has_no_array_of_all_queries_by_all_keys(implementation):
    """With kernels nothing as large as the keys is written in float32 either; blocks sum a gradient in it."""
    device, sizes = tpu("v5e:2x2").devices[0], (2, 1024, 16, 72)
    text = bench.compile_mode(implementation, "jvp_grad", sizes, jnp.bfloat16, device).as_text()
    shapes = [tuple(map(int, found.split(","))) for found in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert math.prod(sizes) in map(math.prod, shapes) and not [shape for shape in shapes if shape.count(1024) > 1]
    if implementation == "pallas":
        sizes_written = [math.prod(shape) for kind, shape, _ in written(text) if kind == "f32"]
        assert sizes_written and max(sizes_written) < math.prod(sizes)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_a_step_as_wide_as_XL_writes_neither_all_queries_by_all_keys_nor_keys_in_float32(name):
    """Two blocks and 1,024 tokens. Gradients of queries and keys, which JAX calls transposed, are in float32."""
    two_blocks = {"model.depth": "2", "model.encoder_depth": "1", "model.patch_size": "1", "model.remat": "dots"}
    small = {"data.batch_size": "4", "training.sample_every": "0", "model.attention": "pallas"}
    text = compile_step(load_config("imagenet256_xl", two_blocks | small), tpu(name)).text
    found = [array for array in written(text) if 1024 in array[1]]
    assert not [array for array in found if array[1].count(1024) > 1]
    keys = 2 * 1024 * 16 * 72  # of the two examples with r = t, or of the two others
    heads = [array for array in found if {72, 36} & set(array[1]) and math.prod(array[1]) >= keys // 2]
    recomputed = lambda operation: "transpose(" not in operation or "rematted_computation" in operation  # noqa: E731
    assert {"f32", "bf16"} == {kind for kind, *_ in heads}
    assert not [array for array in heads if array[0] == "f32" and array[2] and recomputed(array[2])]


GPU_COMPILER = pathlib.Path(__file__).parents[2] / ".cache" / "gpu-compiler" / "{}.{}".format(*sys.version_info)
COMPILE_FOR_GPU = """
import sys
import jax.numpy as jnp
from tim_jax.bench import attention
device = attention.target("h100:1x1")
for argument in sys.argv[1:]:
    mode, width = argument.split(",")
    text = attention.compile_mode("pallas", mode, (1, 1000, 2, int(width)), jnp.bfloat16, device).as_text()
    print("calls:", argument, text.count('custom_call_target="mosaic_gpu_v2"'))
"""


MODES = ("jvp_grad,72",), ("forward,72", "jvp_grad,64"), ("forward,128", "jvp_grad,128")


@pytest.mark.parametrize(
    "modes", [modes if i == 0 else pytest.param(modes, marks=pytest.mark.slow) for i, modes in enumerate(MODES)]
)
def test_the_compiler_for_hopper_takes_the_kernels_and_keeps_them_in_registers(modes):
    """In a process of its own, which alone sees that compiler: JAX would look for a GPU wherever it is installed.

    Of heads 128 wide ptxas may put a few numbers of each thread into local memory.
    """
    if not GPU_COMPILER.exists():
        pytest.skip("the GPU compiler is missing: bash launch/test.sh installs it, on Linux")
    paths = os.pathsep.join([str(GPU_COMPILER), str(GPU_COMPILER.parent.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_FOR_GPU, *modes],
        env=os.environ | {"PYTHONPATH": paths, "MOSAIC_GPU_DUMP_PTXAS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = {"forward": ("attention",), "jvp_grad": KERNELS}
    calls = [f"calls: {mode} {len(kernels[mode.split(',')[0]])}" for mode in modes]
    assert [line for line in done.stdout.splitlines() if line.startswith("calls:")] == calls
    report = done.stdout + done.stderr
    found = re.findall(r"entry function '(\w+)_mosaic_gpu_kernel' for 'sm_90a'", report)
    assert sorted(found) == sorted(name for mode in modes for name in kernels[mode.split(",")[0]])
    spilled = [int(count) for count in re.findall(r"stack frame, (\d+) bytes spill stores", report)]
    assert len(spilled) == len(found) and max(spilled) <= (0 if "128" not in str(modes) else 128), report


@pytest.mark.nightly
def test_the_kernels_take_part_in_a_step_on_a_mesh_of_tpus():
    """Every device runs them on its own rows and heads: for the compiler alone they would be impossible to split."""
    sizes = {"mesh.data": "2", "mesh.fsdp": "2", "mesh.tensor": "2", "model.attention": "pallas"}
    step = compile_step(load_config("digits", SMALL | sizes), tpu("v5e:2x4"))
    assert set(kernels_of(step.text)) >= set(KERNELS)


def test_benchmark_compiles_for_devices_that_are_not_there(tmp_path):
    tpu("v5e:2x2")
    file = tmp_path / "attention.json"
    command.main(["attention", "--target=v5e:2x2", "--tokens=512", "--modes=jvp", f"--json={file}"])
    rows = {row["implementation"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows.keys() == ATTENTION.keys() and all(row["seconds"] is None for row in rows.values())
