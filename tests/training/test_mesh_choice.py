"""How large `fsdp` is where no configuration names it: by width, parameters, devices and slices."""

import dataclasses

import pytest

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.training.mesh import PIECE, WHOLE, choose_fsdp, make_mesh, mesh_text, slices_of

SIZES = {"data": -1, "fsdp": 0, "tensor": 1, "sequence": 1}


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that is not there, as far as meshes look at it; `slice_index` says in which slice."""

    id: int
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def coords(self):
        return (self.id % 2, self.id // 2 % 2, self.id // 4)


def devices(count, slices=1):
    return [Device(i, i // (count // slices)) for i in range(count)]


@pytest.mark.parametrize(
    "count, slices, width, tensor, chosen",
    [
        (256, 1, 1152, 1, 8),  # XL
        (256, 1, 1024, 1, 8),  # L
        (256, 1, 768, 1, 4),  # B: 6 pieces, of which 256 devices take 4
        (32, 1, 1152, 1, 8),
        (12, 1, 1152, 1, 6),  # 9 pieces
        (8, 1, 1152, 2, 4),
        (32, 2, 1152, 1, 8),
        (8, 2, 1152, 1, 4),  # no further than a slice
        (8, 8, 1152, 1, 1),
        (7, 1, 1152, 1, 1),
        (8, 1, 128, 1, 1),  # one piece
    ],
)
def test_the_largest_group_that_leaves_whole_registers(count, slices, width, tensor, chosen):
    sizes = SIZES | {"tensor": tensor}
    found = choose_fsdp(sizes, devices(count, slices), width, lambda: WHOLE)
    assert found == chosen
    assert width % found == 0 and (found == 1 or width // found >= PIECE)


def test_a_small_network_stays_whole_and_is_not_counted_where_its_width_says_so():
    assert choose_fsdp(SIZES, devices(8), 1152, lambda: WHOLE - 1) == 1
    assert choose_fsdp(SIZES, devices(8), 128, lambda: pytest.fail("counted")) == 1


@pytest.mark.parametrize(
    "name, asked, mesh",
    [
        ("digits", {}, "data 8"),
        ("imagenet256_b", {}, "data 2 × fsdp 4"),
        ("imagenet256_xl", {}, "fsdp 8"),
        ("t2i_xl", {"mesh.tensor": "2"}, "fsdp 4 × tensor 2"),
        ("imagenet256_xl", {"mesh.fsdp": "2"}, "data 4 × fsdp 2"),
        ("imagenet256_xl", {"mesh.data": "1"}, "fsdp 8"),  # beside a data of its own: the rest
        ("imagenet256_b", {"mesh.data": "1"}, "fsdp 8"),
        ("digits", {"mesh.data": "2", "mesh.tensor": "2"}, "data 2 × fsdp 2 × tensor 2"),
    ],
)
def test_configurations_on_eight_devices(name, asked, mesh):
    assert mesh_text(build(load_config(name, asked)).mesh) == mesh


def test_slices_are_joined_by_the_data_axis_alone():
    sixteen = devices(16, 2)
    assert slices_of(sixteen) == 2
    for data, fsdp in ((-1, 0), (4, 4), (2, 0)):
        mesh = make_mesh(SIZES | {"data": data, "fsdp": fsdp}, sixteen, fsdp=8)
        half = mesh.shape["data"] // 2
        assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}] * half + [{1}] * half
    with pytest.raises(ValueError, match="mesh.data is 1; it must be a multiple of the number of slices, 2, which it"):
        make_mesh(SIZES | {"data": 1}, sixteen)


def test_a_size_that_does_not_divide_the_width_is_warned_of(capsys):
    build(load_config("digits", {"mesh.data": "1", "mesh.fsdp": "8", "model.width": "36", "model.heads": "3"}))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: mesh.fsdp is 8; it does not divide the width of the network, 36")
