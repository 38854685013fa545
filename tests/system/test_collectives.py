"""What a compiled step sends between devices, read from its text: counts, shapes and bytes, never time."""

import collections
import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tim_jax.config.command_line import load_config
from tim_jax.plan import collectives
from tim_jax.plan.bounds import network_bytes
from tim_jax.plan.compile import compile_step
from tim_jax.system.topologies import topology

SIZES = ("data", "fsdp", "tensor", "sequence")  # what the meshes below name, in this order

LOOP = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scattered (p: f32[32]) -> f32[4] {
  %p = f32[32]{0:T(8,128)} parameter(0)
  %all = f32[32]{0} all-reduce(%p), channel_id=7, replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[4]{0} dynamic-slice(%all, %zero), dynamic_slice_sizes={4}
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} constant(28)
  ROOT %more = pred[] compare(%i, %n), direction=LT
}

%body (s.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s.1 = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%s.1), index=1
  %some = bf16[16,8]{1:T(8)} all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, frontend_attributes={chain_id="5"}
  %more = bf16[16,8]{1,0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, frontend_attributes={chain_id="5"}
  %part = f32[4]{0} fusion(%x), kind=kCustom, calls=%scattered
  ROOT %out = (s32[], f32[4]{0}) tuple(%x, %part)
}

ENTRY %main (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%p.1), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  %done = f32[8]{0} all-gather-done(%start)
  %move = (f32[4]{0}, f32[4]{0}, u32[]) collective-permute-start(%p.1), source_target_pairs={{0,1},{1,0}}
  %sum.1 = (f32[10]{0}, bf16[6]{0}) all-reduce(%p.1), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %loop = (s32[], f32[4]{0}) while(%p.1), condition=%condition, body=%body
  ROOT %r = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_kinds_groups_bytes_and_loops_are_read():
    found = {(c.kind, c.count): c for c in collectives.read(LOOP)}
    assert len(found) == 5, "both pieces of chain 5 are one collective"
    assert found["all-gather", 28].bytes == 16 * 8 * 2 * 3 / 4
    assert found["all-gather", 28].groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found["reduce-scatter", 28].bytes == 32 * 4 * 7 / 8
    assert found["all-gather", 1].bytes == 8 * 4 / 2
    assert found["collective-permute", 1].bytes == 4 * 4
    assert found["all-reduce", 1].bytes == 2 * (10 * 4 + 6 * 2) / 2
    assert found["all-reduce", 1].groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found["all-reduce", 1].dtype == "f32"
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    assert found["all-gather", 28].axes(mesh) == ("fsdp",)
    assert found["all-reduce", 1].axes(mesh) == ("data",)
    assert found["reduce-scatter", 28].axes(mesh) == ("data", "fsdp")


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="how often"):
        collectives.read(LOOP.replace("%n = s32[]{:T(128)} constant(28)", "%n = s32[]{:T(128)} get-tuple-element(%s)"))
    with pytest.raises(ValueError, match="replica groups"):
        collectives.read(LOOP.replace("{'b'}", "{'b':(1)2}"))


TRANSFERS = """HloModule step, num_partitions=8

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %inside = f32[16]{0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %send = (f32[17,8,128]{2,1,0}, u32[], token[]) send(%p, %t), is_host_transfer=true, frontend_attributes={SUM}
  %recv = (f32[17,8,128]{2,1,0}, u32[], token[]) recv(%t), channel_id=3, frontend_attributes={SUM}
  %done = (f32[17,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
  %recv.1 = (f32[2,1,2]{2,1,0:T(1,128)}, u32[], token[]) recv(%t.1), channel_id=69, frontend_attributes={WHOLE}
  ROOT %host = (f32[9]{0}, u32[], token[]) recv(%t.2), channel_id=70, is_host_transfer=true
}
""".replace("SUM", '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"').replace(
    "WHOLE", '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_GATHER"'
)


def test_what_slices_exchange_is_read_as_the_collectives_of_the_same_chips():
    """Two slices of eight chips: the program is that of one slice, in which the exchange is a transfer by the host."""
    inside, summed, gathered = collectives.read(TRANSFERS, slices=2)
    places = [(summed, "all-reduce", 17 * 8 * 128 * 4), (gathered, "all-gather", 2 * 2 * 4 / 2)]
    for found, kind, size in places:
        assert (found.kind, found.bytes, found.count, found.groups.tolist()) == (
            kind,
            size,
            1,
            [[i, i + 8] for i in range(8)],
        )
        assert network_bytes(found, 8) == size
    assert network_bytes(inside, 8) == 0 and inside.bytes == 16 * 4 * 3 / 4
    (three,) = [found for found in collectives.read(TRANSFERS, slices=3) if found.kind == "all-reduce"]
    assert three.bytes == pytest.approx(2 * 17 * 8 * 128 * 4 * 2 / 3) and three.groups.shape == (8, 3)
    with pytest.raises(ValueError, match="transfer between slices"):
        collectives.read(TRANSFERS.replace("ALL_REDUCE", "SOMETHING"), slices=2)


@pytest.mark.nightly
def test_two_slices_exchange_gradients_and_nothing_else():
    """Gradients are float32 and lie over the chips of a slice; the other slice's come once a step."""
    pytest.importorskip("libtpu")
    devices = topology("2xv5e:2x2")
    changes = {"data.batch_size": "32", "mesh.fsdp": "4", "model.depth": "2"}
    compiled = compile_step(load_config("digits_small", changes), devices)
    found = collectives.read(compiled.text, devices.islands)
    crossing = sum(network_bytes(c, devices.island) * c.count for c in found)
    least = compiled.parameters * 4 / devices.island
    assert least <= crossing < devices.island * least, "each chip its part of them, whatever is padded"
    assert all(c.axes(compiled.mesh) == ("data",) for c in found if network_bytes(c, devices.island))


def test_a_real_program_moves_what_was_written():
    """Five turns of a gather, a scatter and a sum over known axes, as the CPU's compiler writes them."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"))
    def turn(x):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True)
        return jax.lax.psum(jax.lax.pcast(part, "data", to="varying"), "data")

    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((64, 3), jnp.float32, sharding=sharding)
    program = jax.jit(lambda x: jax.lax.scan(lambda x, _: (turn(x), None), x, length=5)[0]).lower(x).compile()
    found = {c.kind: c for c in collectives.read(program.as_text())}
    assert {kind: c.count for kind, c in found.items()} == {"all-gather": 5, "reduce-scatter": 5, "all-reduce": 5}
    assert {kind: c.axes(mesh) for kind, c in found.items()} == {
        "all-gather": ("fsdp",), "reduce-scatter": ("fsdp",), "all-reduce": ("data",)
    }  # fmt: skip
    size = 64 * 3 * 4
    assert found["all-gather"].bytes == found["reduce-scatter"].bytes == size * 3 / 4
    assert found["all-reduce"].bytes == 2 * size / 4 / 2


def tpu(name, dtype):
    installed = importlib.util.find_spec("libtpu") is not None
    # The test extra brings it on Linux; there is none for other systems.
    missing = pytest.mark.skipif(not installed, reason="the TPU compiler is missing: pip install -e .[tpu-planner]")
    return pytest.param(name, dtype, marks=[pytest.mark.nightly, missing])


# As deep as XL, so that blocks are most of the parameters, as they are there: the program has one block whatever depth.
ROWS = 32
SMALL = {
    "model.width": "128", "model.depth": "28", "model.heads": "2", "model.bottleneck": "48", "model.encoder_depth": "8",
    "model.projector_width": "128", "model.num_classes": "100", "data.height": "8", "data.width": "8",
    "data.features_width": "128", "data.batch_size": f"{ROWS}",
}  # fmt: skip


@functools.cache
def step(name, mesh, dtype, remat="full"):
    """(compiled step, its collectives, {shape of a layer's matrix: how many a block has}) on a mesh (data, fsdp, …)."""
    sizes = {f"mesh.{axis}": str(size) for axis, size in zip(SIZES, mesh, strict=False)}
    sizes |= {"model.dtype": dtype, "model.remat": remat}
    config, devices = load_config("imagenet256_xl", SMALL | sizes), topology(name)
    compiled = compile_step(config, devices)
    blocks = jax.tree.leaves(compiled.shapes["online"]["blocks"])
    matrices = collections.Counter(squeezed(x.shape[1:]) for x in blocks if "fsdp" in x.sharding.spec)
    return compiled, collectives.read(compiled.text), only_matrices(matrices)


def gathered_once(found):
    """Shapes of what is gathered outside of the layers, besides a number per row (times, for the metrics)."""
    shapes = {shape for c in found if c.kind == "all-gather" and c.count == 1 for _, shape in c.arrays}
    return {squeezed(shape) for shape in shapes} - {(ROWS,)}


def squeezed(shape):
    return tuple(size for size in shape if size > 1)


def only_matrices(shapes):
    """Without vectors: biases and norms are small, and compilers move them in ways of their own."""
    return collections.Counter({shape: count for shape, count in shapes.items() if len(shape) > 1})


WHERE = [("cpu:8", "float32"), tpu("v5e:2x4", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", WHERE)
@pytest.mark.parametrize("mesh, remat", [((1, 8), "full"), pytest.param((2, 4), "none", marks=pytest.mark.nightly)])
def test_a_fully_sharded_step_gathers_each_parameter_once_per_direction(name, dtype, mesh, remat):
    """Half of the rows have r = t and half carry a tangent: two row groups, for which a layer's parameters come once in
    the forward pass and once in the backward pass, whether that computes the block anew or not. No activations do."""
    compiled, found, matrices = step(name, mesh, dtype, remat)
    assert {c.kind for c in found} <= {"all-gather", "reduce-scatter", "all-reduce"}
    gathered = collections.Counter()
    for c in found:
        if c.kind == "all-gather" and c.count > 1:
            assert c.axes(compiled.mesh) == ("fsdp",) and c.count == 28
            gathered.update({squeezed(shape): c.count for _, shape in c.arrays})
    assert only_matrices(gathered) == {shape: 2 * 28 * count for shape, count in matrices.items()}
    assert gathered_once(found) <= {squeezed(x.shape) for x in jax.tree.leaves(compiled.shapes)}


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", WHERE)
@pytest.mark.parametrize("mesh", [(1, 8), pytest.param((8, 1), marks=pytest.mark.nightly)])
def test_a_step_moves_little_more_than_it_must(name, dtype, mesh):
    """The minimum. Fully sharded, N parameters over n devices: each is gathered in the forward pass, gathered once more
    in the backward pass, and its gradient is scattered, in the type that the network computes in: 3 N (n − 1)/n
    numbers of that type. Data-parallel: the gradients, which are float32, are scattered and gathered: 2 N (n − 1)/n."""
    compiled, found, _ = step(name, mesh, dtype)
    n = 8
    if mesh == (1, 8):
        least = 3 * compiled.parameters * (n - 1) / n * {"float32": 4, "bfloat16": 2}[dtype]
    else:
        assert {c.kind for c in found} <= {"all-reduce", "all-gather"}
        assert not gathered_once(found) and not [c for c in found if c.kind == "all-gather" and c.count > 1]
        least = 2 * compiled.parameters * (n - 1) / n * 4
    assert 0.99 * least <= sum(c.bytes * c.count for c in found) <= 1.1 * least


# Arrays that go between devices which share tokens, per layer: q, k, v and the output where two devices have a head
# each; where four share two heads, keys and values. They go for the plain rows, for the moving rows and their tangents,
# without tangents once more in the backward pass, and so do their gradients.
EXCHANGES = [
    (2, {"all-to-all": (4 + 8) + 8 + 8}),
    pytest.param(4, {"all-gather": (2 + 4) + 4, "reduce-scatter": 4}, marks=pytest.mark.nightly),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", WHERE)
@pytest.mark.parametrize("devices, exchanged", EXCHANGES)
def test_devices_that_share_tokens_exchange_what_attention_needs_and_nothing_else(name, dtype, devices, exchanged):
    compiled, found, _ = step(name, (1, 8 // devices, 1, devices), dtype)
    among = [c for c in found if "sequence" in c.axes(compiled.mesh)]
    moved = collections.Counter()
    for c in among:
        if c.count > 1:
            assert c.count == 28
            moved[c.kind] += c.bytes
    fsdp, tokens, width = 8 // devices, 8 * 8 // 2**2, 128
    group = ROWS // fsdp // 2 * tokens * width * {"float32": 4, "bfloat16": 2}[dtype] * (devices - 1) / devices
    gradients = moved.pop("all-reduce")
    assert moved == {
        kind: count * (group / devices if kind == "all-to-all" else group) for kind, count in exchanged.items()
    }
    blocks = sum(x.size for x in jax.tree.leaves(compiled.shapes["online"]["blocks"])) / 28
    assert gradients <= 1.1 * 2 * blocks / fsdp * 4 * (devices - 1) / devices
    # Besides the layers: F of all tokens, gradients and means.
    patches = (ROWS // fsdp // 2, tokens, 2, 2, 4)
    assert {c.kind for c in among if c.count == 1} == {"all-gather", "all-reduce"}
    assert {shape for c in among if c.count == 1 and c.kind == "all-gather" for _, shape in c.arrays} == {patches}
