"""Finds a configuration file by path or by name, in a checkout as well as in an installed package."""

import difflib
import importlib.util
import os
import pathlib
import traceback
import types

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """The folder of the configurations that come with the package: inside it in a wheel, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> dict[str, pathlib.Path]:
    """The configurations that come with the package, by name; in a folder, "ablations/objectives"."""
    root = folder()
    paths = [path for path in sorted(root.rglob("*.py")) if path.stem != "__init__"]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def find(name: str, flag: str = "--config") -> pathlib.Path:
    """The configuration file called `name`.

    Args:
        name: a path to a .py file, absolute or from the working directory; else the name of a configuration that comes
            with the package: "configs/digits.py", "digits.py" or "digits"; in a folder, "ablations/objectives".
        flag: that gave it, for the error.

    Raises:
        ValueError: if there is none.
    """
    given = pathlib.Path(os.path.expanduser(name))
    if given.suffix == ".py" and given.is_file():
        return given.resolve()
    stem = name.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    known = names()
    if stem in known:
        return known[stem]
    near = [match for text in (stem, given.stem) for match in difflib.get_close_matches(text, known, n=3)]
    nearest = list(dict.fromkeys(near))
    wrong = "is no Python file" if os.path.exists(given) else "no such file or configuration"
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"those that come with the package are in {folder()}"
    raise ValueError(f"{flag}={name}: {wrong}; {hint}")


def load(name: str) -> types.ModuleType:
    """The configuration file called `name` as a module, so that one configuration can start from another."""
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"tim_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of what the file does or imports, or of what it is
        raise ValueError(f"--config={name}: {said(error, path)}") from error
    return module


def said(error: Exception, path: pathlib.Path) -> str:
    """What an error says, with its kind and the line of the configuration file that it comes from."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f"line {frames[-1]}: " if frames and not isinstance(error, SyntaxError) else ""
    return f"{line}{type(error).__name__}: {error}"
