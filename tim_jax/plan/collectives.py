"""Collectives of a compiled step, read from its HLO text: kind, mesh axes, bytes, how often.

A collective inside a loop counts once per iteration. Bytes are those that a chip receives, for n chips in a group and
an array of S bytes (gathered, or before it is reduced and scattered):

    all-gather, reduce-scatter, all-to-all   S (n − 1)/n
    all-reduce                               2 S (n − 1)/n
    collective-permute                       S

The TPU compiler writes a program for one slice. What several slices exchange stands in it as transfers by the host, of
a chip with the same chip of the other slices; they are read as the collectives that they belong to.

No algorithm moves less for a gather, a scatter or an all-reduce, so that dividing by the speed of a link bounds the
time.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")

DTYPE_BITS = {"pred": 8, "bf16": 16}  # other types have their bits in their name: f32, s8, u4, f8e4m3fn

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
        kind: a name in KINDS.
        arrays: (dtype, shape) of each result; there are several where the compiler combined some collectives.
        groups: (number of groups, n) chips that take part together, as positions in the mesh's flat list; the pairs
            (from, to) of a permutation.
        bytes: received by a chip each time.
        count: times per step.
        source: name of the operation in the program that it belongs to.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    groups: np.ndarray
    bytes: float
    count: int
    source: str

    @property
    def dtype(self) -> str:
        """The type of its largest array."""
        return max(self.arrays, key=lambda array: _bytes(*array))[0]

    def axes(self, mesh: Mesh) -> tuple[str, ...]:
        """The mesh axes along which it communicates."""
        places = np.stack(np.unravel_index(self.groups, mesh.devices.shape), axis=-1)
        moves = (places != places[:, :1]).any(axis=(0, 1))
        return tuple(axis for axis, move in zip(mesh.axis_names, moves, strict=True) if move)


def read(text: str, slices: int = 1) -> list[Collective]:
    """Reads the collectives of a compiled program, except those of a chip with itself.

    The TPU compiler may cut one collective into a chain of pieces, to do other work between them; it counts once.

    Args:
        text: the optimised HLO of the program.
        slices: of TPUs that run it together.

    Raises:
        ValueError: for a loop or a group that cannot be read.
    """
    computations, entry = split(text)
    chips = re.search(r"\bnum_partitions=(\d+)", text)
    same_chips = np.arange(slices * int(chips[1] if chips else 1)).reshape(slices, -1).T
    found = {}
    for name, times in _times(computations, entry).items():
        for line in computations[name]:
            collective = _collective(line, computations[name], times) or _transfer(line, same_chips, times)
            if collective is not None:
                chain = re.search(r'chain_id="\d+"', line)
                found[chain.group() if chain else (name, line)] = collective
    return list(found.values())


def split(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns ({computation: its lines}, the name of the entry computation) of HLO text."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and line.startswith(" "):
            current.append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Returns how often each computation runs per step."""
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for line in computations[name]:
            turns = _trip_count(line, computations) if " while(" in line else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for callee in called:
                if callee in computations:
                    visit(callee, count * turns)

    visit(entry, 1)
    return times


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Returns the iterations of a while loop: as the compiler states, or the limit of its counter, from 0 on."""
    known = re.search(r"known_trip_count[^0-9]*(\d+)", line)
    if known:
        return int(known.group(1))
    (condition,) = re.findall(r"condition=%?([\w.-]+)", line)
    lines = list(computations[condition])
    for callee in [name for line in computations[condition] for name in _CALLED.findall(line)]:
        lines += computations.get(callee, [])
    limits = {int(n) for line in lines for n in re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", line)}
    if len(limits) != 1:
        raise ValueError(f"loop with condition {condition}: cannot tell how often it runs")
    return limits.pop()


def _collective(line: str, computation: list[str], times: int) -> Collective | None:
    instruction = _INSTRUCTION.match(line)
    if not instruction:
        return None
    kind = instruction.group(3)
    started = kind.endswith("-start")
    kind = kind.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = _arrays(instruction.group(2))
    if started and kind != "all-reduce":
        # The result of an asynchronous one holds its operands, then its results (and then maybe counters).
        arrays = [array for array in arrays if array[1]] if kind == "collective-permute" else arrays
        arrays = arrays[len(arrays) // 2 :]
    groups = _groups(line, kind)
    if groups.shape[1] == 1:
        return None
    n, size = groups.shape[1], sum(_bytes(*array) for array in arrays)
    if kind == "reduce-scatter":
        size *= n
    if kind == "all-reduce" and re.match(r"\s+ROOT \S+ = .* dynamic-slice\(", computation[-1]):
        # An all-reduce whose result is sliced at once, in a fusion of its own, is how TPUs spell a reduce-scatter.
        kind = "reduce-scatter"
    if kind != "collective-permute":
        size *= (n - 1) / n * (2 if kind == "all-reduce" else 1)
    source = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, tuple(arrays), groups, size, times, source.group(1) if source else "")


def _transfer(line: str, groups: np.ndarray, times: int) -> Collective | None:
    """Returns what chips of different slices receive by their hosts, the chips of a group from one another."""
    received = re.match(r"^\s+%?[\w.-]+ = (.*?) recv\(.*_xla_megascale_transfer_type=\"(\w+)\"", line)
    if not received:
        return None
    kind, array, n = received[2].lower().replace("_", "-"), _arrays(received[1])[:1], groups.shape[1]
    if kind not in KINDS:
        raise ValueError(f"cannot read the transfer between slices {line.strip()[:300]}")
    size = _bytes(*array[0]) * (n if kind == "reduce-scatter" else 1)
    if kind != "collective-permute":
        size *= (n - 1) / n * (2 if kind == "all-reduce" else 1)
    source = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', line)
    return Collective(kind, tuple(array), groups, size, times, source[1] if source else "")


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, shape) of every array in a result type, without layouts."""
    text = re.sub(r"\{[^{}]*\}", "", text)
    return [(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in _ARRAY.findall(text)]


def _bytes(dtype: str, shape: Iterable[int]) -> float:
    bits = DTYPE_BITS.get(dtype) or int(re.findall(r"^[a-z]+(\d+)", dtype)[0])
    return math.prod(shape) * bits / 8


def _groups(line: str, kind: str) -> np.ndarray:
    """Returns groups of devices (number, n), from any of the forms in which HLO writes them."""
    if kind == "collective-permute":
        (pairs,) = re.findall(r"source_target_pairs=\{(\{.*?\})\}", line)
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs)])
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed.group(1))])
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if iota:
        return _iota(iota.group(3)).reshape(int(iota.group(1)), int(iota.group(2)))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}", line)
    if named and "(" not in named.group(3):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
        ids = np.arange(math.prod(sizes.values())) if not named.group(2) else _iota(named.group(2))
        axes = [list(sizes).index(axis) for axis in re.findall(r"'([^']+)'", named.group(3))]
        places = ids.reshape(*sizes.values())
        return np.moveaxis(places, axes, range(-len(axes), 0)).reshape(-1, math.prod(places.shape[a] for a in axes))
    raise ValueError(f"cannot read the replica groups of {line.strip()[:300]}")


def _iota(text: str) -> np.ndarray:
    """Returns the numbers 0, 1, … of "[8,4]T(1,0)": in that shape, transposed, and flat again."""
    shape, _, order = text.partition("T")
    dims = [int(n) for n in shape.strip("[]").split(",")]
    numbers = np.arange(math.prod(dims)).reshape(dims)
    return numbers.transpose([int(n) for n in order.strip("()").split(",")]).ravel() if order else numbers.ravel()
