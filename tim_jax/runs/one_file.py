"""Several modules of Python as one file, with nothing in it that it does not use."""

import ast
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """A statement of a module, with the comments before it.

    Attributes:
        names: that it defines.
        uses: the names that occur in it.
        text: as it stands there.
    """

    names: frozenset[str]
    uses: frozenset[str]
    text: str


class Module(NamedTuple):
    """A module that goes into a file.

    Attributes:
        title: the first line of its docstring.
        imports: (module, name) of what it imports; the name is "" where a module itself is imported.
        parts: what it defines.
    """

    title: str
    imports: frozenset[tuple[str, str]]
    parts: list[Part]


def alias(name: str, of: str) -> Part:
    """A further name of something."""
    return Part(frozenset({name}), frozenset({of}), f"{name} = {of}")


def read(path: pathlib.Path) -> Module:
    """Reads a module, whose imports come first."""
    text = path.read_text()
    tree, lines = ast.parse(text), text.splitlines()
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    imports: set[tuple[str, str]] = set()
    parts: list[Part] = []
    end = 0
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {(node.module or "", alias.name) for alias in node.names}
        elif not isinstance(node, ast.Expr):
            part = "\n".join(lines[end : node.end_lineno]).strip("\n")
            parts.append(Part(frozenset(_defined(node)), frozenset(_used(node)), part))
        end = node.end_lineno or end
    return Module(title, frozenset(imports), parts)


def arguments(path: pathlib.Path, name: str) -> list[str]:
    """The arguments, without self, of a class that a module defines, and those of the classes that it derives from."""
    tree = ast.parse(path.read_text())
    known = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in known:
        sources = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        found = [node.module for node in sources if name in {alias.name for alias in node.names}]
        beside = path.with_name(f"{str(found[0]).rpartition('.')[2]}.py") if found else None
        return arguments(beside, name) if beside is not None and beside.is_file() else []
    own = [node for node in known[name].body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    names = [argument.arg for init in own for argument in init.args.args[1:]]
    inherited = [one for base in known[name].bases for one in arguments(path, ast.unparse(base)) if one not in names]
    return names + inherited


def joined(head: str, table: str, modules: Sequence[Module], own: str, kept: Iterable[str]) -> str:
    """Writes the file.

    Args:
        head: its docstring.
        table: what stands before all modules, below the imports.
        modules: in their order in the file.
        own: the package whose modules are in the file, so that they are not imported.
        kept: names that are for those who use the file; all that they use is kept, and nothing else.
    """
    needed = _needed(modules, kept)
    blocks, used = [], set(_used(ast.parse(table)))
    for module in modules:
        parts = [part for part in module.parts if part.names & needed]
        used = used.union(*(part.uses for part in parts))
        if parts:
            blocks.append(_spaced([f"# {module.title}", *(part.text for part in parts)]))
    imports = {
        (module, name)
        for one in modules
        for module, name in one.imports
        if module.partition(".")[0] != own and (name or module.partition(".")[0]) in used
    }
    return "\n\n".join([head, _imports(imports), table]) + "\n\n\n" + "\n\n\n".join(blocks) + "\n"


def _needed(modules: Sequence[Module], kept: Iterable[str]) -> set[str]:
    """The names that are reached from others."""
    uses = {name: part.uses for module in modules for part in module.parts for name in part.names}
    found: set[str] = set()
    queue = list(kept)
    while queue:
        name = queue.pop()
        if name in uses and name not in found:
            found.add(name)
            queue += uses[name]
    return found


def _spaced(parts: Sequence[str]) -> str:
    """Parts of a module with two empty lines around functions and classes, and one between constants."""
    text = parts[0]
    for before, part in zip(parts, parts[1:]):
        tall = any(line.startswith(("def ", "class ", "@")) for one in (before, part) for line in one.splitlines())
        text += ("\n\n\n" if tall else "\n\n" if before is parts[0] or part.startswith("#") else "\n") + part
    return text


def _imports(found: set[tuple[str, str]]) -> str:
    """Imports of the standard library, then those of PyTorch."""
    blocks: dict[bool, list[str]] = {False: [], True: []}
    for module in sorted({module for module, _ in found}):
        names = sorted(name for other, name in found if other == module and name)
        block = blocks[module.partition(".")[0] == "torch"]
        block += [f"import {module}"] * ((module, "") in found)
        block += [f"from {module} import {', '.join(names)}"] * bool(names)
    return "\n\n".join("\n".join(sorted(block, key=lambda line: line.startswith("from"))) for block in blocks.values())


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def _used(tree: ast.AST) -> Iterator[str]:
    """The names that occur in a statement."""
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
