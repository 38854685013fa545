"""Which of the copies of a network in a published file is meant, and what its parameters are called there.

Files hold one network, bare or wrapped ("module.", "_orig_mod.", "net."), or several copies of it: the weights that
were trained and their EMAs ("model" and "ema", "model_ema1", "state_dict" with "denoiser" and "ema_denoiser"). A copy
is found by the name of a parameter that every network has, and what is in front of that is in front of all others.
"""

from collections.abc import Iterable

ANCHOR = "final_layer.linear.weight"
EMA = "ema"  # of the names of copies that are EMAs
ONLINE = "online"


def prefixes(names: Iterable[str]) -> list[str]:
    """What stands in front of the names of each copy, "" or what ends with a dot, in the order of the file."""
    found = (name.removesuffix(ANCHOR) for name in names if name.endswith(ANCHOR))
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]


def further(names: Iterable[str]) -> list[str]:
    """The arrays of a file that are of no copy of a network, such as an optimizer's; [] where no copy is found."""
    found = tuple(prefixes(names := list(names)))
    return [name for name in names if found and not name.startswith(found)]


def choose(names: Iterable[str], copy: str = "") -> dict[str, str]:
    """Chooses one copy of a network among the arrays of a file.

    Args:
        names: of all arrays.
        copy: what stands in front of the names of the copy, without the last dot, or one word of that; "online" for the
            first that is no EMA; "" for the first EMA, or the first at all where there is none.

    Returns:
        {name in the file: official name}. Where no copy is found, all arrays by their own names.

    Raises:
        ValueError: if there is no such copy.
    """
    names = list(names)
    found = prefixes(names)
    if not found and not copy:
        return {name: name for name in names}
    emas = [prefix for prefix in found if EMA in prefix.lower()]
    if copy == ONLINE:
        meant = [prefix for prefix in found if prefix not in emas]
    elif copy:
        meant = [prefix for prefix in found if copy == prefix[:-1] or copy in prefix.split(".")]
    else:
        meant = emas or found
    if not meant:
        known = ", ".join(prefix[:-1] or ONLINE for prefix in found) or "no copy of a network here"
        raise ValueError(f"--ema is {copy!r}; it must be one of {known}, which the file has")
    within = [prefix for prefix in found if prefix != meant[0] and prefix.startswith(meant[0])]
    own = [name for name in names if name.startswith(meant[0]) and not name.startswith(tuple(within))]
    return {name: name.removeprefix(meant[0]) for name in own}
