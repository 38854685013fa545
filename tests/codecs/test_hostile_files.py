"""Files of weights and images that somebody has made up: none is believed, nothing is run, nothing hangs or is killed.

Each is read in a process of its own with 4 GB of memory and 60 s, since a fault could end the one that reads.
"""

import io
import multiprocessing
import pathlib
import pickle
import resource
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest

from tests.helpers.tally import OTHER, REFUSED, TAKEN
from tests.helpers.torch_files import Stored, view, write_archive
from tim_jax.codecs import tensors
from tim_jax.system import archives

GIB = 2**30


def archive(path, content, name="archive/data.pkl", kind=zipfile.ZIP_STORED, more=()):
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr(name, content)
        for inner, data in more:
            made.writestr(inner, data)


def nested(depth, after):
    """A pickle of a dictionary with a key that is nested `depth` deep, with operations after it."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + after


def a_deep_key(path):
    archive(path, nested(500_000, b"K\x01s."))


def a_deep_key_of_many(path):
    archive(path, b"\x80\x02}(" + b")" + b"\x85" * 500_000 + b"K\x01u.")


def a_deep_key_of_an_ordered_dictionary(path):
    archive(path, b"\x80\x02ccollections\nOrderedDict\n(()" + b"\x85" * 500_000 + b"K\x01\x86tt\x85R.")


def a_deep_value(path):
    archive(path, b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 500_000 + b"s.")


def a_name_of_exponential_length(path):
    archive(path, b"\x80\x02}X\x01\x00\x00\x00a(" + b")" + b"q\x00h\x00\x86" * 60 + b"tQs.")


def a_build_of_a_function(path):
    archive(path, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.")


def a_memo_of_two_thousand_million(path):
    archive(path, b"\x80\x02}r\xff\xff\xff\x7f.")


def a_text_of_a_tebibyte(path):
    archive(path, b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.")


def a_call_of_eval(path):
    archive(path, b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")


def an_instance(path):
    archive(path, b"(ios\nsystem\nX\x01\x00\x00\x001.")


def a_new_dictionary_of_a_deep_key(path):
    archive(path, b"\x80\x02ccollections\nOrderedDict\n)" + b"\x85" * 500_000 + b"\x81.")


def an_extension(path):
    archive(path, b"\x80\x02\x82\x01.")


def one_value_shown_as_many(path):
    write_archive(path, {"a": view(Stored("FloatStorage", "0", 1), 0, (10**6, 10**6), (0, 0))}, {"0": bytes(4)})


def a_storage_that_is_too_large(path):
    write_archive(path, {"a": view(Stored("FloatStorage", "0", 2**60), 0, (2**60,), (1,))}, {"0": bytes(4)})


def a_shape_without_end(path):
    write_archive(path, {"a": view(Stored("FloatStorage", "0", 1), 0, (1,) * 1000, (1,) * 1000)}, {"0": bytes(4)})


def a_bomb(path):
    content = {"a": view(Stored("FloatStorage", "0", GIB), 0, (GIB,), (1,))}
    write_archive(path, content, {"0": b""})
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as made:
        inner = [name for name in made.namelist() if name.endswith("data.pkl")][0]
        content = made.read(inner)
    archive(path, content, inner, zipfile.ZIP_DEFLATED, [(inner.replace("data.pkl", "data/0"), bytes(2**20))])


def flags(path, flag, method):
    write_archive(path, {"a": view(Stored("FloatStorage", "0", 1), 0, (1,), (1,))}, {"0": bytes(4)})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place : at + place + 4] = struct.pack("<HH", flag, method)
    path.write_bytes(data)


def an_encrypted_entry(path):
    flags(path, 1, 0)


def an_unknown_compression(path):
    flags(path, 0, 99)


def npz(path, header, data=b"", kind=zipfile.ZIP_STORED):
    head = repr(header).encode() + b" " * 20 + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data
    archive(path.with_suffix(".npz"), content, "a.npy", kind)
    return path.with_suffix(".npz")


def an_array_of_a_tebibyte(path):
    return npz(path, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)})


def an_array_of_negative_size(path):
    return npz(path, {"descr": "<f4", "fortran_order": False, "shape": (-5, -5)})


def an_array_of_objects(path):
    return npz(path, {"descr": "|O", "fortran_order": False, "shape": (1,)}, pickle.dumps([print]))


def an_npz_bomb(path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**25,)}
    return npz(path, header, bytes(2**27), zipfile.ZIP_DEFLATED)


def a_header_of_safetensors_that_lies(path):
    path = path.with_suffix(".safetensors")
    head = b'{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    return path


def a_header_of_safetensors_without_end(path):
    path = path.with_suffix(".safetensors")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{")
    return path


def an_old_file_with_a_storage_that_lies(path):
    system = {"little_endian": True}
    parts = [pickle.dumps(value, 2) for value in (tensors.OLD_MAGIC, 1001, system)]
    content = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
    content += b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08" + struct.pack("<q", 2**60)
    content += b"NtQK\x00K\x01\x85K\x01\x85\x89}tRs."
    path.write_bytes(b"".join(parts) + content + pickle.dumps(["0"], 2) + struct.pack("<q", 2**60) + bytes(4))


FILES = [
    a_deep_key, a_deep_key_of_many, a_deep_key_of_an_ordered_dictionary, a_deep_value, a_name_of_exponential_length,
    a_build_of_a_function, a_memo_of_two_thousand_million, a_text_of_a_tebibyte, a_call_of_eval, an_instance,
    a_new_dictionary_of_a_deep_key,
    an_extension, one_value_shown_as_many, a_storage_that_is_too_large, a_shape_without_end, a_bomb, an_encrypted_entry,
    an_unknown_compression, an_array_of_a_tebibyte, an_array_of_negative_size, an_array_of_objects, an_npz_bomb,
    a_header_of_safetensors_that_lies, a_header_of_safetensors_without_end, an_old_file_with_a_storage_that_lies,
]  # fmt: skip


HARMLESS = ("a_memo_of_two_thousand_million",)  # an empty dictionary, which takes no more memory than that


def read_all(paths, answers):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])  # the forked process has what its parent had
    limit = pages * resource.getpagesize() + 4 * GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in paths:
        try:
            tensors.read(path)
            answers.put((path.name, "it was read"))
        except ValueError as error:
            answers.put((path.name, str(error)))
        except BaseException as error:
            answers.put((path.name, f"escaped: {type(error).__name__}: {error}"))


def test_every_one_is_refused_in_one_line(tmp_path, tally):
    paths = {}
    for make in FILES:
        path = tmp_path / f"{make.__name__}.pth"
        paths[make.__name__] = make(path) or path
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    reader = context.Process(target=read_all, args=(list(paths.values()), answers))
    reader.start()
    reader.join(60)
    assert reader.exitcode == 0
    said = {}
    while not answers.empty():
        name, answer = answers.get()
        said[name] = answer
    tally("files of weights", OTHER, len(FILES) - len(said))
    for name, answer in said.items():
        clean = answer.count("\n") == 0 and name in answer
        tally("files of weights", TAKEN if answer == "it was read" else REFUSED if clean else OTHER)
    wrong = {name: answer for name, answer in said.items() if name not in answer or "\n" in answer or len(answer) > 600}
    assert wrong == {f"{name}.pth": "it was read" for name in HARMLESS} and len(said) == len(FILES)


def test_every_altered_byte_of_a_file_is_read_or_refused(tmp_path, tally):
    """Flags, sizes, names and operations among them."""
    path = tmp_path / "weights.pth"
    write_archive(path, {"a": view(Stored("FloatStorage", "0", 6), 0, (2, 3), (3, 1))}, {"0": bytes(24)})
    whole, rng, found = path.read_bytes(), np.random.default_rng(0), Counter()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            tensors.read(path)
            found[TAKEN] += 1
        except ValueError:
            found[REFUSED] += 1
        except Exception:
            found[OTHER] += 1
    for outcome, count in found.items():
        tally("files of weights with an altered bit", outcome, count)
    assert not found[OTHER] and found[REFUSED] > len(whole) // 4


@pytest.mark.parametrize("stored", [True, False])
def test_archives_of_usual_sizes_pass(stored, tmp_path):
    save = np.savez if stored else np.savez_compressed
    save(tmp_path / "a.npz", a=np.random.default_rng(0).normal(size=(100, 100)), b=np.zeros((1000, 1000)))
    with (tmp_path / "a.npz").open("rb") as file:
        archives.check(file, stored)
        assert file.tell() == 0
