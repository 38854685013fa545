"""The weights: a reader of safetensors."""

import json
import pathlib
import struct

import torch
from torch import Tensor, nn

from tim_jax.runs.pytorch.run import RUN, Network


def read_safetensors(path: str | pathlib.Path) -> dict[str, Tensor]:
    """Reads a file of safetensors: the length of a header, the header in JSON, and arrays one after another."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    state = {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            array = torch.frombuffer(bytearray(file.read(end - begin)), dtype=types[entry["dtype"]])
            state[name] = array.reshape(entry["shape"])
    return state


def in_pytorch(name: str, array: Tensor) -> tuple[str, Tensor]:
    """The name and layout here of a parameter that the published network lacks: tim_jax.a/b/kernel is a.b.weight."""
    if not name.startswith("tim_jax."):
        return name, array
    path, _, leaf = name.removeprefix("tim_jax.").replace("/", ".").rpartition(".")
    leaf, array = {"kernel": ("weight", array.movedim(0, -1)), "scale": ("weight", array)}.get(leaf, (leaf, array))
    return f"{path}.{leaf}", array


def load(folder: str | None = None) -> nn.Module:
    """The network with its weights, in float32.

    Args:
        folder: of model.safetensors, whose parameters of heads that only training has are left out; by default that of
            this file.
    """
    path = pathlib.Path(folder or pathlib.Path(__file__).parent) / "model.safetensors"
    state = dict(in_pytorch(name, array) for name, array in read_safetensors(path).items())
    network = Network(**RUN["network"])
    for name in network.load_state_dict(state, strict=False).missing_keys:
        if not name.startswith("delta_embedder."):  # of networks that have not learned of the interval, and are 0
            raise ValueError(f"{path}: has no {name}")
    return network.eval()
