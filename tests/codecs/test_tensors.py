"""Files of weights: what is read of safetensors, npz and PyTorch files, and that nothing in them is ever run."""

import collections
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.torch_files import WRITERS, Call, Global, Stored, save_torch, tensor, view, write_archive, write_old
from tim_jax.codecs import tensors

VALUES = np.arange(24, dtype=np.float32)
STORAGES = {"0": VALUES.tobytes()}
VIEWS = {"whole": (0, (4, 6), (6, 1)), "turned": (0, (6, 4), (1, 6)), "row": (6, (6,), (1,)), "number": (5, (), ())}
EXPECTED = {"whole": VALUES.reshape(4, 6), "turned": VALUES.reshape(4, 6).T, "row": VALUES[6:12], "number": VALUES[5]}


def views(of=VIEWS):
    return collections.OrderedDict((name, view(Stored("FloatStorage", "0", 24), *where)) for name, where in of.items())


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pth", "pt", "bin"])
def test_every_kind_of_file_gives_the_same_arrays(ending, tmp_path):
    arrays = {"a": VALUES.reshape(4, 6), "b": np.array([3], np.int64)}
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif ending == "npz":
        np.savez(path, **arrays)
    else:
        save_torch(path, arrays)
    found = tensors.read(path)
    assert found.keys() == arrays.keys()
    for name, value in found.items():
        assert value.dtype == arrays[name].dtype
        np.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize("write", WRITERS)
def test_pytorch_files_are_read(write, tmp_path):
    write(tmp_path / "weights.pth", views(), STORAGES)
    found = tensors.read(tmp_path / "weights.pth")
    assert list(found) == list(EXPECTED)
    for name, value in found.items():
        np.testing.assert_array_equal(value, EXPECTED[name])


def test_views_of_one_storage_are_read_as_what_they_show(tmp_path):
    """Transposed, beginning later, sharing, of other types, empty; and as parameters, with what torch.save adds."""
    values = np.arange(24, dtype=np.float32)
    half = np.arange(6).astype(jnp.bfloat16)
    content = collections.OrderedDict(
        turned=view(Stored("FloatStorage", "0", 24), 2, (5, 4), (1, 5)),
        shared=view(Stored("FloatStorage", "0", 24), 0, (3,), (1,)),
        half=Call(Global("torch._utils", "_rebuild_parameter"), tensor("1", half), True, collections.OrderedDict()),
        scalar=tensor("2", np.array(7)),
        none=tensor("3", np.zeros((0, 4), np.float32)),
    )  # fmt: skip
    content._metadata = {"": {"version": 1}}
    storages = {"0": values.tobytes(), "1": half.tobytes(), "2": np.array(7).tobytes(), "3": b""}
    write_archive(tmp_path / "weights.bin", content, storages, root="t2i_model")
    found = tensors.read(tmp_path / "weights.bin")
    np.testing.assert_array_equal(found["turned"], values[2:22].reshape(4, 5).T)
    np.testing.assert_array_equal(found["shared"], values[:3])
    assert found["half"].dtype == jnp.bfloat16 and found["half"].tobytes() == half.tobytes()
    assert found["scalar"] == 7 and found["scalar"].dtype == np.int64
    assert found["none"].shape == (0, 4)
    assert np.shares_memory(found["turned"], found["shared"]) and not found["turned"].flags.writeable


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "where",
    [(0, (5, 6), (6, 1)), (20, (5,), (1,)), (0, (2,), (10**9,)), (4, (2, 2), (-1, 1)), (-4, (2,), (1,)), (25, (), ())],
)
def test_views_beyond_their_storage_are_refused(write, where, tmp_path):
    write(tmp_path / "weights.pth", views({"x": where}), STORAGES)
    with pytest.raises(ValueError, match="x, of shape .*, reaches beyond its storage of 24 values"):
        tensors.read(tmp_path / "weights.pth")


# Fault: content of the pickle, storages, what is said.
BAD = {
    "a command": (
        {"a": Call(Global("os", "system"), "touch ran")},
        {},
        "it asks for os.system, which no file of weights needs; it is not run",
    ),
    "a builtin": ({"a": Call(Global("builtins", "eval"), "1")}, {}, "it asks for builtins.eval"),
    "a method of what is known": ({"a": Global("collections", "OrderedDict.fromkeys")}, {}, "OrderedDict.fromkeys"),
    "other torch": ({"a": Global("torch", "load")}, {}, "it asks for torch.load"),
    "too large": (
        {"a": view(Stored("FloatStorage", "0", 4), 0, (4,), (2,))},
        {"0": bytes(16)},
        r"a, of shape \(4,\), reaches beyond its storage of 4 values",
    ),
    "no numbers": (
        {"a": view(Stored("FloatStorage", "0", 4), 0, ("4",), (1,))},
        {"0": bytes(16)},
        "whose place is not given in whole numbers",
    ),
    "short storage": ({"a": tensor("0", np.zeros(4, np.float32))}, {"0": bytes(12)}, "storage 0 has 3 values, not 4"),
    "no tensors": ({"step": 3, "model": {}}, {}, "holds things that are no tensors: step, model"),
    "no dictionary": ([1, 2], {}, "holds a list, not a dictionary of tensors"),
    "a bare storage": ({"a": Stored("FloatStorage", "0", 4)}, {"0": bytes(16)}, "holds things that are no tensors: a"),
    "a view of a storage": (
        {"a": view(Stored("FloatStorage", "0", 4, ("1", 0, 4)), 0, (4,), (1,))},
        {"0": bytes(16)},
        "it holds something else than tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("fault", BAD)
def test_a_pickle_that_wants_more_than_tensors_is_refused(tmp_path, monkeypatch, fault, write):
    monkeypatch.chdir(tmp_path)
    content, storages, message = BAD[fault]
    write(tmp_path / "weights.bin", content, storages)
    with pytest.raises(ValueError, match=message) as error:
        tensors.read(tmp_path / "weights.bin")
    assert "\n" not in str(error.value) and str(tmp_path / "weights.bin") in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_storage_that_is_not_there_is_refused(tmp_path):
    for write in WRITERS:
        write(tmp_path / "weights.bin", {"a": tensor("0", np.zeros(4, np.float32))}, {})
        with pytest.raises(ValueError, match="its pickle is broken"):
            tensors.read(tmp_path / "weights.bin")


def test_nothing_that_a_file_asks_for_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'done')!r}, 'w')",)

    evil = pickle.dumps({"x": Evil()}, 2)
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("archive/data.pkl", evil)
    write_old(tmp_path / "old.pth", {}, {})
    whole = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(whole.replace(pickle.dumps(1001, 2), evil))
    (tmp_path / "bare.pth").write_bytes(evil)
    for name in ("archive", "old", "bare"):
        with pytest.raises(ValueError, match="exec.*it is not run") as error:
            tensors.read(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        tensors.read(tmp_path / "evil.npz")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_files_that_end_early_are_refused(write, tmp_path):
    write(tmp_path / "whole.pth", views(), STORAGES)
    data = (tmp_path / "whole.pth").read_bytes()
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pth").write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut.pth: ") as error:
            tensors.read(tmp_path / "cut.pth")
        assert "\n" not in str(error.value)


def test_a_zip_of_something_else_and_a_damaged_byte_are_refused(tmp_path):
    path = tmp_path / "weights.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not one of PyTorch"):
        tensors.read(path)
    for content, said in ((pickle.dumps({}), "no PyTorch file"), (pickle.dumps(3) * 3, "it is no file of PyTorch")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            tensors.read(path)
    save_torch(path, {"a": np.arange(1000, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is truncated or no PyTorch file .*CRC"):
        tensors.read(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="none.npz: there is no such file"):
        tensors.read(tmp_path / "none.npz")
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(ValueError, match="weights.txt: weights must be in a file of .safetensors, .npz"):
        tensors.read(tmp_path / "weights.txt")
    for name in ("cut.safetensors", "cut.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match=f"{name}: is truncated or no ") as error:
            tensors.read(tmp_path / name)
        assert "\n" not in str(error.value)
