"""HTML whose texts are escaped unless they are markup, and a page that loads nothing and lets nothing be loaded."""

import base64
import hashlib
import html
import json
import math
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ASSETS = pathlib.Path(__file__).parent / "assets"
SCRIPTS = ("charts.js", "pictures.js", "page.js")
EMPTY = ("img", "input", "br", "meta")  # elements without an end


class Markup(str):
    """Text that is HTML already; any other text is escaped where it becomes a part of some."""


class Section(NamedTuple):
    """A part of a page: its anchor, its heading and what stands below that."""

    anchor: str
    title: str
    body: Markup


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
        name: of the element.
        *children: its content, of which all but Markup is escaped; None is left out.
        **attributes: a trailing _ is dropped and other _ are dashes; True gives a bare attribute, None and False none.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in EMPTY else f"{start}{join(children)}</{name}>")


def join(children: Iterable[Any], between: str = "") -> Markup:
    """Returns children one after another, of which all but Markup is escaped; None is left out."""
    texts = (each if isinstance(each, Markup) else html.escape(str(each)) for each in children if each is not None)
    return Markup(between.join(texts))


def table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str, *, texts: int = 1, class_: str = ""
) -> Markup:
    """Returns a table that scrolls by itself where it is wider than the page.

    Args:
        header: a cell for each column.
        rows: cells; one that is an element td or th is taken as it is.
        caption: what the table shows.
        texts: columns from the left that hold texts; the others hold numbers.
        class_: of the table.
    """

    def cell(value: Any, place: int) -> Markup:
        if isinstance(value, Markup) and value.startswith(("<td", "<th")):
            return value
        if place == 0:
            return tag("th", value, scope="row")
        return tag("td", value, class_="number" if place >= texts else None)

    head = tag(
        "tr", *(tag("th", each, scope="col", class_="number" if i >= texts else None) for i, each in enumerate(header))
    )
    body = [tag("tr", *(cell(value, i) for i, value in enumerate(row))) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_=class_ or None, aria_label=caption)
    return captioned(caption, whole)


def captioned(caption: str, whole: Markup) -> Markup:
    """Returns what may be wider than the page, so that it scrolls by itself, below a caption that does not."""
    scroll = tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return tag("figure", tag("figcaption", caption), scroll, class_="table")


def facts(pairs: Mapping[str, Any], class_: str = "facts") -> Markup:
    """Returns names with their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items()), class_=class_)


def missing(what: str, command: str = "") -> Markup:
    """Returns what stands in the place of a part that is not there, with the command that makes it."""
    return tag("p", what, *([" ", tag("code", command)] if command else []), class_="missing")


def more(title: str, *children: Any) -> Markup:
    """Returns content that opens when its title is clicked."""
    return tag("details", tag("summary", title), *children)


def component(kind: str, data: Any, *children: Any, **attributes: Any) -> Markup:
    """Returns an element that assets/*.js brings to life, with its data in it. children: what is there without."""
    holder = Markup(f'<script type="application/json">{as_json(data)}</script>')
    return tag("div", holder, *children, data_component=kind, **attributes)


def digits(value: float, count: int = 3) -> str:
    """Returns a number with so many significant digits, zeros at its end too, so that columns can be compared."""
    text = f"{value:#.{count}g}".rstrip(".")
    if "e+" in text:
        text = f"{value:,.0f}"
    return text.replace("-", "−")


def as_json(data: Any) -> str:
    """Returns data as JSON that can stand inside of an element script: nothing in it ends that, or begins a comment."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def finite(data: Any) -> Any:
    """Returns data with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def page(kind: str, title: str, lead: Any, header: Markup, sections: Sequence[Section], made: str) -> str:
    """Returns a whole page.

    Args:
        kind: what the page is, such as "Run".
        title: its heading.
        lead: a sentence below that.
        header: what follows.
        sections: its parts.
        made: when and by what, the last line.
    """
    style = (ASSETS / "style.css").read_text()
    script = "(() => {\n" + "\n".join((ASSETS / name).read_text() for name in SCRIPTS) + "\n})();\n"
    links = [tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections]
    parts = [
        tag("section", tag("h2", section.title), section.body, id=section.anchor, aria_label=section.title)
        for section in sections
    ]
    return string.Template((ASSETS / "page.html").read_text()).substitute(
        policy=f"default-src 'none'; img-src data:; style-src '{sha256(style)}'; script-src '{sha256(script)}'; "
        "base-uri 'none'; form-action 'none'",
        kind=join([kind]), title=join([title]), lead=join([lead]), header=header, links=join(links, "\n"),
        sections=join(parts, "\n"), made=join([made]), style=style, script=script,
    )  # fmt: skip


def sha256(text: str) -> str:
    """Returns what a policy calls a script or a style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
