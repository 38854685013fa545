"""Reads a page of HTML as a browser would, strictly: what is opened is closed, and what is in it can be looked for."""

import base64
import dataclasses
import html.parser
import io
import json

import numpy as np
from PIL import Image

VOID = {"img", "input", "br", "meta"}
LOADING = ("src", "href", "srcset", "data", "action", "poster", "background")  # attributes by which things are loaded


@dataclasses.dataclass
class Element:
    """An element with its attributes, and the elements and texts in it."""

    tag: str
    attributes: dict
    children: list = dataclasses.field(default_factory=list)

    @property
    def text(self):
        """All text in it but scripts and styles, with single spaces."""
        if self.tag in ("script", "style"):
            return ""
        parts = [each if isinstance(each, str) else each.text for each in self.children]
        return " ".join("".join(f" {part} " if not isinstance(each, str) and each.tag in BLOCKS else part
                                for each, part in zip(self.children, parts)).split())  # fmt: skip

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def all(self, tag=None, class_=None, **attributes):
        """All elements in it of that kind, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = tag in (None, child.tag) and (class_ is None or class_ in child.classes)
                if fits and all(child.attributes.get(key.replace("_", "-")) == value
                                for key, value in attributes.items()):  # fmt: skip
                    found.append(child)
                found += child.all(tag, class_, **attributes)
        return found

    def one(self, *args, **attributes):
        """The only such element."""
        (found,) = self.all(*args, **attributes)
        return found


BLOCKS = {"p", "div", "li", "td", "th", "tr", "dt", "dd", "h1", "h2", "h3", "figcaption", "section", "summary", "code"}


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(text):
    """The root of a page, after checks that hold for all of them."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], "something is never closed"
    root = reader.root
    ids = [each.attributes["id"] for each in root.all() if "id" in each.attributes]
    assert len(set(ids)) == len(ids), "an id is there twice"
    for each in root.all():
        assert each.tag not in ("link", "iframe", "object", "embed", "base", "form"), each
        for name, value in each.attributes.items():
            assert not name.startswith("on") and name != "style", f"{name} in <{each.tag}>"
            if name in LOADING:
                assert value.startswith(("data:image/png;base64,", "#")) or each.tag == "a" and ":" not in value, value
                assert not value.startswith("#") or value[1:] in ids, f"{value} leads nowhere"
    assert all(each.attributes.get("alt") for each in root.all("img")), "an image has no text"
    assert len(root.all("h1")) == 1 and root.one("html").attributes["lang"] == "en"
    return root


def section(root, anchor):
    return root.one("section", id=anchor)


def data(element):
    """What the JSON in a component says."""
    (script,) = [each for each in element.all("script") if each.attributes.get("type") == "application/json"]
    return json.loads("".join(script.children))


def rows(table):
    """The cells of a table's body as texts."""
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in table.one("tbody").all("tr")]


def number(text):
    """The number that a cell begins with."""
    return float(text.removeprefix("≈").split("±")[0].replace("−", "-").replace(",", ""))


def pixels(uri):
    """The bytes (h, w, 3) of an image in a page."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
