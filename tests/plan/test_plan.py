"""The planner against what really happens: arrays on devices, closed forms, exit codes."""

import dataclasses
import importlib.util
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.networks import TiM
from tim_jax.plan import __main__ as command
from tim_jax.plan import bounds, memory
from tim_jax.plan.collectives import Collective
from tim_jax.plan.compile import compile_step, trace_step
from tim_jax.system import flops, slices, topologies
from tim_jax.system.chips import CHIPS, Chip
from tim_jax.training.mesh import make_mesh
from tim_jax.types import Query

SMALL = {
    "model.width": "32", "model.depth": "2", "model.heads": "2", "model.bottleneck": "16", "model.encoder_depth": "1",
    "model.patch_size": "4", "data.batch_size": "32", "mesh.data": "2", "mesh.fsdp": "4",
}  # fmt: skip
FLAGS = [f"--config.{name}={value}" for name, value in SMALL.items()]


# What python -m tim_jax.verify has written.
MEASURED = {
    "machine": {"device": "cpu"},
    "speeds": {"flops": CHIPS["cpu"].flops / 4},
    "planned": [
        {"step": "B/4", "seconds": 0.2, "planned_seconds": 0.16, "planned_bytes": 2**30, "measured_bytes": 2**29}
    ],
}


@pytest.fixture(scope="module")
def step():
    return compile_step(load_config("digits", SMALL), topologies.topology("cpu:8"))


@pytest.mark.slow
def test_memory_is_that_of_the_arrays_of_a_real_state(step):
    run = build(load_config("digits", SMALL))
    state = run.trainer.create()

    def on_first_device(tree):
        return sum(
            shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device.id == 0
        )

    assert step.memory.parameters == on_first_device(state.params)
    assert step.memory.emas == on_first_device(state.emas)
    assert step.memory.optimizer == on_first_device(state.opt_state)
    assert step.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert step.memory.activations > 0


def test_operations_of_products_loops_and_derivatives():
    def chain(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jnp.zeros((5, 8, 8)), jnp.zeros((3, 8))
    once = 2 * 3 * 8 * 8
    assert flops.count(jax.make_jaxpr(chain)(w, x)) == 5 * once
    assert flops.count(jax.make_jaxpr(jax.grad(chain))(w, x)) == 5 * 3 * once
    assert flops.count(jax.make_jaxpr(lambda w, x: jax.jvp(lambda x: chain(w, x), (x,), (x,)))(w, x)) == 5 * 2 * once
    recomputed = jax.make_jaxpr(jax.grad(lambda w, x: jax.checkpoint(chain)(w, x)))(w, x)
    assert flops.count(recomputed) > 5 * 3 * once
    assert flops.count(
        jax.make_jaxpr(jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: x[:, :3])))(x)
    ) == (2 * 3 * 3 * 8)


def test_operations_of_the_network_are_those_of_its_formula():
    B, h, D, L, H, b, p, C = 3, 8, 32, 5, 2, 16, 2, 4
    net = TiM(patch_size=p, channels=C, width=D, depth=L, heads=H, bottleneck=b, encoder_depth=1, num_classes=7)
    time = jnp.zeros((B,))
    query = Query(jnp.zeros((B, h, h, C)), time, time, {"label": jnp.zeros((B,), jnp.int32)})
    params = jax.eval_shape(lambda: nn.unbox(net.init(jax.random.key(0), (query,))))
    counted = flops.count(jax.make_jaxpr(net.apply)(params, (query,)))
    N = (h // p) ** 2
    mlp = D * 4 * 2 // 3
    row = 2 * b * D + b * 6 * D + D * 3 * D  # modulation, the interval's q, k, v
    token = 3 * D * D + D * D + 3 * D * mlp + 2 * N * D  # q, k, v; output; MLP; scores and values
    embedders = 2 * (256 * D + D * D)
    ends = N * 2 * p * p * C * D + 2 * D * (D // 2) + (D // 2) * 2 * D
    assert counted == 2 * B * (L * (row + N * token) + embedders + ends)


@pytest.mark.slow
def test_operations_are_the_same_on_every_mesh():
    config = load_config("digits", SMALL | {"mesh.data": "1", "mesh.fsdp": "-1", "times.share_equal": "0.5"})
    eight, one = (trace_step(config, topologies.topology(name)) for name in ("cpu:8", "cpu:1"))
    assert eight.model_flops == one.model_flops


def test_a_step_costs_three_passes_and_the_tangent():
    """Flow matching is forward and twice as much backward; a tangent for half of the rows adds a half of a forward."""
    devices = topologies.topology("cpu:1")
    small = SMALL | {"mesh.data": "1", "mesh.fsdp": "1", "times.share_equal": "0.5", "objective.velocity": "data"}
    small |= {"model.remat": "none"}
    step = trace_step(load_config("digits", small), devices)
    plain = trace_step(load_config("digits", small | {"times.share_equal": "1.0", "times.share_min": "0.0"}), devices)
    assert 7 / 6 <= step.model_flops / plain.model_flops < 7 / 6 * 1.1
    recomputed = trace_step(load_config("digits", small | {"model.remat": "full"}), devices)
    assert recomputed.model_flops == step.model_flops == step.executed_flops
    assert 1.1 * step.executed_flops < recomputed.executed_flops < 1.5 * step.executed_flops


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "has written"),
        ("[]", "has written"),
        (json.dumps(MEASURED | {"planned": [{}]}), "has written"),
        (json.dumps(MEASURED | {"machine": {"device": "NVIDIA H100 80GB HBM3"}}), "and it is of NVIDIA H100 80GB HBM3"),
    ],
)
def test_what_was_not_measured_on_such_devices_is_refused(content, said, capsys, tmp_path):
    file = tmp_path / "verified.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as stop:
        command.main(["--config=digits", "--topology=cpu:8", f"--measured={file}", *FLAGS])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and said in error
    assert error.startswith(f"error: --measured is '{file}'; it must be a file that python -m tim_jax.verify")


@pytest.mark.parametrize("grow", [lambda rows: 50 + 3 * rows, lambda rows: 50 + 2 * rows + rows**2 // 400])
def test_the_largest_batch_is_found_and_tried(grow):
    tried = []

    def measure(rows):
        tried.append(rows)
        return grow(rows)

    rows, used = memory.largest_batch(measure, 1600, grow(1600), capacity=1000, unit=16)
    best = max(n for n in range(16, 1600, 16) if grow(n) <= 1000)
    assert rows in tried and used == grow(rows) <= 1000
    assert 0.9 * best <= rows <= best
    assert rows % 16 == 0 and len(tried) <= 5


def test_no_batch_fits_where_the_state_does_not():
    assert memory.largest_batch(lambda rows: 5000 + rows, 64, 5064, capacity=1000, unit=16) == (0, 0)
    assert memory.largest_batch(lambda rows: 5000 + rows, 16, 5016, capacity=1000, unit=16) == (0, 0)


def test_the_network_between_islands_carries_what_an_island_lacks():
    """Sixteen chips gather 1600 bytes: on two islands of eight, each island lacks half, an eighth of it per chip."""
    gather = Collective("all-gather", (("u8", (1600,)),), np.arange(16)[None], 1500, 1, "")
    assert bounds.network_bytes(gather, 16) == 0
    assert bounds.network_bytes(gather, 8) == 1600 / 2 / 8
    assert bounds.network_bytes(gather, 1) == 1500


@pytest.mark.slow
def test_a_plan_that_fits(capsys, tmp_path):
    file, verified = tmp_path / "plan.json", tmp_path / "verified.json"
    verified.write_text(json.dumps(MEASURED))
    options = ["--config=digits", "--topology=cpu:8,cpu:4", f"--json={file}", f"--measured={verified}"]
    code = command.main([*options, *FLAGS, "--config.mesh.data=-1"])
    assert code == 0
    shown = capsys.readouterr()
    assert "cpu:8: 8 chips, mesh data 2 × fsdp 4; 32 examples a step" in shown.out
    assert "compiling for cpu:8, 32 examples" in shown.err
    assert shown.out.count("all-gather") >= 2 and "images/s" in shown.out
    assert "a step takes at least, ms; planned, and at measured speeds" in shown.out
    (row,) = {line.strip() for line in shown.out.splitlines() if line.startswith("  B/4")}
    assert row.split() == ["B/4", "1.000", "0.500", "160", "200", "1.25"]
    plans = json.loads(file.read_text())
    assert [(plan["topology"], plan["chips"], plan["fits"], plan["largest_batch"]) for plan in plans] == [
        ("cpu:8", 8, True, 32), ("cpu:4", 4, True, 32)
    ]  # fmt: skip
    for plan in plans:
        named = {name: size for name, size in plan["memory"].items() if name not in ("total", "chip")}
        assert plan["memory"]["total"] == sum(named.values())
        assert plan["bounds"]["compute"] == pytest.approx(plan["executed_flops"] / plan["chips"] / CHIPS["cpu"].flops)
        # Measured at a quarter of the round numbers that stand for a CPU; the memory's and the links' speed were not.
        assert plan["bounds_measured"]["compute"] == pytest.approx(4 * plan["bounds"]["compute"])
        assert plan["bounds_measured"]["interconnect"] == plan["bounds"]["interconnect"]
        assert plan["images_per_second"] == pytest.approx(32 / plan["bounds"]["step"])
        assert plan["days"] == pytest.approx(3600 * plan["bounds"]["step"] / 86400)


@pytest.mark.slow
def test_a_plan_that_does_not_fit_names_a_batch_that_does(capsys, monkeypatch):
    config = load_config("digits", SMALL | {"times.share_equal": "0.5"})
    whole = compile_step(config, topologies.topology("cpu:8"))
    small = Chip(whole.memory.total - 1, 1e12, 5e10, 1e10, 1e9)
    monkeypatch.setitem(CHIPS, "cpu", small)
    assert command.main(["--config=digits", "--topology=cpu:8", *FLAGS, "--config.times.share_equal=0.5"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    rows = int(out.split("compiled to be sure: ")[1].split()[0])
    assert 0 < rows < 32 and rows % 16 == 0, "two rows on each of eight devices, one of them at r = t"
    fits = compile_step(config, topologies.topology("cpu:8"), rows)
    assert fits.memory.total <= small.memory


@pytest.mark.parametrize(
    "topology, hidden, message",
    [
        ("v9:2x2", None, "CHIP:SHAPE, such as v5e:16x16"),
        ("v5p:four", None, "CHIP:SHAPE"),
        ("v5p:4x4", None, "3 sizes, such as v5p:4x4x8"),
        ("h100:8", None, "nodes × GPUs per node, such as h100:4x8"),
        ("2xh100:4x8", None, "one such as h100:4x8: only TPU slices are counted"),
        ("v5p-48", None, "it must be v5p-32 or v5p-64, the nearest"),
        ("2xv5e-2", None, "it must be v5e-1 or v5e-4, the nearest"),
        ("v6e-512", None, "it must be v6e-256, the nearest"),
        ("v4-8", None, "it must have one of the chips v5e, v5p"),
        ("cpu:4096", None, "here up to 8"),
        ("v5e:4x4", "libtpu", 'pip install "tim-jax[tpu-planner]"'),
        ("h100:4x8", "jax_cuda13_plugin", 'pip install "tim-jax[gpu-planner]"'),
    ],
)
def test_what_cannot_be_planned_is_one_line(topology, hidden, message, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else find(name, *rest))
    with pytest.raises(SystemExit) as stop:
        command.main(["--config=digits", f"--topology={topology}", *FLAGS])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert topology in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name, chips, slices",
    [("v5p-64", 32, 1), ("v5litepod-16", 16, 1), ("v5e-1", 1, 1), ("2xv5p-64", 64, 2), ("3xv5e:2x4", 24, 3)],
)
def test_slices_go_by_the_names_of_clouds(name, chips, slices):
    pytest.importorskip("libtpu")
    found = topologies.topology(name)
    assert (len(found.devices), found.islands, found.island) == (chips, slices, chips // slices)
    assert len({getattr(device, "slice_index", 0) for device in found.devices[: found.island]}) == 1


def test_every_named_slice_is_one_of_the_compiler():
    """A type counts cores or chips; the table's shape has as many chips, which its hosts share."""
    pytest.importorskip("libtpu")
    for line in slices.FILE.read_text().splitlines():
        if not line.startswith("#"):
            name, shape, hosts, of_a_host = line.split()
            family, count = name.split("-")
            chips = math.prod(int(size) for size in shape.split("x"))
            assert chips * (2 if family in ("v4", "v5p") else 1) == int(count)
            assert chips == int(hosts) * int(of_a_host)
            if family != "v4" and chips <= 256:
                assert len(topologies.topology(name).devices) == chips


def test_a_refusal_of_the_tpu_compiler_says_how_much_it_needs():
    state = build(load_config("digits", SMALL)).trainer.abstract
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded …"
    needed = memory.of_refusal(state, {}, message)
    assert needed.total == int(20.5 * 2**30) and needed.parameters > 0
    message = "… the total memory required for HLO temporaries (17.00G) exceeds available HBM (15.75G)."
    assert memory.of_refusal(state, {}, message) == dataclasses.replace(needed, activations=17 * 2**30)
    assert memory.of_refusal(state, {}, "INTERNAL: something else") is None


def test_gpus_are_described_to_their_compiler():
    for kind in topologies.GPUS:
        text = topologies.gpu_description(kind)
        assert f"device_memory_size: {CHIPS[kind].memory}" in text and text.count("{") == text.count("}")


def test_of_several_slices_only_the_data_axis_joins_them():
    pytest.importorskip("libtpu")
    topologies.topology("v5e:4x4")  # tells the compiler that there is no TPU here
    two = jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2)
    for data, fsdp, tensor in ((2, 16, 1), (8, 2, 2), (-1, 4, 1)):
        mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": 1}, list(two.devices))
        slices = [{getattr(device, "slice_index", 0) for device in part.flat} for part in mesh.devices]
        half = len(slices) // 2
        assert slices == [{0}] * half + [{1}] * half
    with pytest.raises(ValueError, match="mesh.data is 1; it must be a multiple of the number of slices, 2, which it"):
        make_mesh({"data": 1, "fsdp": 32, "tensor": 1, "sequence": 1}, list(two.devices))
