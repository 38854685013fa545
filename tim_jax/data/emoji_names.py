"""What emoji are called, which group they are of, and which of them are variants of one another.

Names and groups are those of Unicode (emoji.tsv beside this file), words to search by those of the package em-keyboard.
"""

import dataclasses
import importlib.resources
import json
import pathlib
import re
from collections.abc import Iterable
from importlib import metadata

TABLE = "emoji.tsv"
# Unicode's groups, as labels that are easily typed, in Unicode's order.
GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
PRESENTATION = "FE0F"  # asks for a colour picture in place of a letter, and is left out as often as not
MOST_WORDS = 8  # of a caption
WORD = re.compile(r"[a-z0-9]+(?:[ '-][a-z0-9]+)*")  # no emoticons
# What variants of one emoji differ by. Their names without it are the same.
VARIANTS = tuple(
    (re.compile(pattern), kept)
    for pattern, kept in (
        (r"^(kiss|couple with heart|family|handshake)\b.*", r"\1"),
        (r"^(person|man|woman): .*", "person"),  # hair and beard
        (r" facing right$", ""),
        (r"^(Santa|Mrs\.|Mx) Claus$", "Claus"),
        (r"^(person with crown|prince|princess)$", "prince"),
        (r"^(merperson|merman|mermaid)$", "mermaid"),
        (r"^(older person|old man|old woman)$", "old person"),
        (r"^(child|boy|girl)$", "child"),
        (r"^woman and man holding hands$", "people holding hands"),
        (r"^person with skullcap$|^(man|woman|person) with veil$", r"person with veil"),
        (r"^(man|men|woman|women|people)$", "person"),
        (r"\b(man|men|woman|women|person|people)(’s)? ", ""),
        (r"\b(red|orange|yellow|green|light blue|blue|purple|pink|brown|black|grey|white) ", ""),
        (r".*(o’clock|-thirty)$", "clock face"),
    )
)


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        code: the hexadecimal numbers of its characters, joined by "-".
        name: as Unicode has it, with skin tones at the end, such as "woman farmer: medium skin tone".
        group: a value of GROUPS.
        words: to search it by.
    """

    code: str
    name: str
    group: str
    words: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The name that its variants share: other skin tones, hair, sexes, directions and colours of the same thing."""
        name, _, rest = self.name.partition(": ")
        if details := [part for part in rest.split(", ") if part and part not in TONES.values()]:
            name = f"{name}: {', '.join(details)}"
        for pattern, kept in VARIANTS:
            name = pattern.sub(kept, name)
        return name

    @property
    def captions(self) -> tuple[str, ...]:
        """The name, and with it the words: "grinning face: smile, happy, joy"."""
        known = set(re.findall(r"\w+", self.name.lower()))
        words = [word for word in self.words if word not in known and word != self.name][:MOST_WORDS]
        return (self.name, f"{self.name.replace(': ', ', ')}: {', '.join(words)}") if words else (self.name,)


def plain(code: str) -> str:
    """A code without the signs that ask for a colour picture."""
    return "-".join(part for part in code.split("-") if part != PRESENTATION)


def named(codes: Iterable[str]) -> list[Emoji]:
    """Those of the codes that are emoji of Unicode, in its order, skin tones behind the emoji without one."""
    table, words = _table(), _words()
    found = []
    for code in codes:
        parts = plain(code).split("-")
        base, tones = "-".join(part for part in parts if part not in TONES), [p for p in parts if p in TONES]
        if base not in table:
            continue
        place, name, group = table[base]
        said = ", ".join(TONES[tone] for tone in tones)
        full = f"{name}{', ' if ': ' in name else ': '}{said}" if said else name
        found.append((place, len(tones), code, Emoji(code, full, group, words.get(base, ()))))
    return [emoji for *_, emoji in sorted(found, key=lambda row: row[:3])]


def _table() -> dict[str, tuple[int, str, str]]:
    """code → (place in Unicode's order, name, label of the group)."""
    table: dict[str, tuple[int, str, str]] = {}
    text = importlib.resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = GROUPS[line.removeprefix("# group: ")]
        elif not line.startswith("#"):
            code, name = line.split("\t")
            table[code] = (len(table), name, group)
    return table


def _words() -> dict[str, tuple[str, ...]]:
    """code → words that em-keyboard finds it by. Its first is the name."""
    (path,) = (file for file in metadata.files("em-keyboard") or () if file.name == "emojis.json")
    entries = json.loads(pathlib.Path(path.locate()).read_bytes())
    codes = ((plain("-".join(f"{ord(letter):04X}" for letter in letters)), words) for letters, words in entries.items())
    return {code: tuple(filter(WORD.fullmatch, (w.replace("_", " ") for w in words[1:]))) for code, words in codes}
