"""TPU slices by the names that clouds give them: v5p-64 is a 2×4×4 torus of 32 chips."""

import pathlib
import re

FILE = pathlib.Path(__file__).with_suffix(".txt")
SHAPES: dict[str, str] = {
    words[0]: words[1] for line in FILE.read_text().splitlines() if (words := line.split()) and words[0] != "#"
}
SPELT = {"v5e": "v5litepod"}  # as everybody says it, and as accelerator types have it


def named_slice(name: str) -> tuple[str, str] | None:
    """Returns (chip, shape) of an accelerator type such as v5p-64 or v5e-16, or None for a name that is not like one.

    Raises:
        ValueError: For a slice that is not; it names the nearest of that chip.
    """
    match = re.fullmatch(r"([a-z]\w*)-(\d+)", name)
    chips = sorted({kind.partition("-")[0] for kind in SHAPES})
    if match is None or SPELT.get(match[1], match[1]) not in chips:
        return None
    family, count = SPELT.get(match[1], match[1]), int(match[2])
    chip = {official: said for said, official in SPELT.items()}.get(family, family)
    if shape := SHAPES.get(f"{family}-{count}"):
        return chip, shape
    counts = sorted(int(kind.partition("-")[2]) for kind in SHAPES if kind.startswith(f"{family}-"))
    near = [max((n for n in counts if n < count), default=None), min((n for n in counts if n > count), default=None)]
    raise ValueError(f"it must be {' or '.join(f'{match[1]}-{n}' for n in near if n is not None)}, the nearest")
