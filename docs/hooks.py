"""What mkdocs does besides rendering the pages: files that lie outside docs/, and the API reference.

A page may link to any file of the repository as it would on a code host, such as ../notebooks/pictures/samples.png or
../configs/base.py. Such files are copied to the site, and the links of the page are made to point there. Markdown
outside docs/ has a page that includes it instead.

The API reference has one page for each public module. Its text is rendered from the docstrings of the module.
"""

import ast
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tim_jax"
# The rooms in the order in which a reader meets them; a room that is not here comes after them.
ROOMS = ("transitions", "networks", "data", "training", "evaluation", "codecs", "config", "runs", "system")
OUTSIDE = re.compile(r"(\]\(|src=\")\.\./([^)#\s\"]+)")
REPOSITORY = "repository"  # the folder of the site that files from outside docs/ are copied to


def modules() -> dict[str, dict[str, pathlib.Path]]:
    """The files of the public modules by room and dotted name: all but commands, which have a page of their own."""
    found = {"tim_jax": {"tim_jax.types": PACKAGE / "types.py"}}
    rooms = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py")))
    rooms = [room for room in ROOMS if room in rooms] + [room for room in rooms if room not in ROOMS]
    for room in rooms:
        if room == "configs":
            continue
        paths = sorted((PACKAGE / room).rglob("*.py"))
        named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
        named = {name.removesuffix(".__init__"): path for name, path in named.items()}
        found[room] = {name: path for name, path in sorted(named.items()) if "._" not in name and path.stat().st_size}
    return found


def page_of(room: str, module: str) -> str:
    """The path below docs/ of the page of a module."""
    return f"api/{room}/{module.removeprefix('tim_jax.').replace('.', '_')}.md"


def summary(path: pathlib.Path) -> str:
    """The first sentence of the docstring of a file."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = text.split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
    return re.split(r"(?<=\.)\s", first, maxsplit=1)[0]


def exported(path: pathlib.Path) -> list[str]:
    """A list of the names that a package exports from its modules, each a link to where it is defined."""
    tree = ast.parse(path.read_text())
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    tables = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = [name for table in tables for name in ast.literal_eval(table) if name in origins]
    if not names:
        return []
    return ["", "It exports", "", *(f"- {_link(name, origins[name])}" for name in names), ""]


def _link(name: str, origin: str) -> str:
    """A name that is documented as a link; tables have no docstring and so no place of their own."""
    return f"`{name}`, of `{origin.rpartition('.')[0]}`" if name.isupper() else f"[`{name}`][{origin}]"


def on_config(config):
    """Appends the API reference to the navigation."""
    reference = [{"Overview": "api/index.md"}]
    for room, files in modules().items():
        reference.append({room: [{module.removeprefix(f"tim_jax.{room}."): page_of(room, module)} for module in files]})
    config.nav.append({"API reference": reference})
    return config


def on_files(files, config):
    """Adds the pages of the API reference and the files outside docs/ that pages link to."""
    lines = [
        "# API reference", "",
        "Every page below is rendered from the docstrings of one module. `tim_jax.load` opens a trained run:", "",
        "::: tim_jax", "    options:", "      members: [load]", "",
    ]  # fmt: skip
    for room, paths in modules().items():
        lines += [f"## {room}", "", "| module | |", "| --- | --- |"]
        for module, path in paths.items():
            page = page_of(room, module)
            lines.append(f"| [`{module}`]({page.removeprefix('api/')}) | {summary(path)} |")
            files.append(
                File.generated(
                    config, page, content="\n".join([f"# {module}", "", f"::: {module}", *exported(path), ""])
                )
            )
        lines.append("")
    files.append(File.generated(config, "api/index.md", content="\n".join(lines)))

    linked = set()
    for page in pathlib.Path(config.docs_dir).glob("*.md"):
        linked |= {name for _, name in OUTSIDE.findall(page.read_text())}
    for name in sorted(linked):
        if (ROOT / name).is_file():
            files.append(File.generated(config, f"{REPOSITORY}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lets links out of docs/ point to the copies."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    return OUTSIDE.sub(rf"\1{REPOSITORY}/\2", markdown)
