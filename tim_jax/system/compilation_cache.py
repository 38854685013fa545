"""Where compiled programs are kept, so that a second start compiles nothing anew."""

import hashlib
import os
import pathlib
import platform
import re
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from tim_jax.system import caches, files, paths

KEY = "training.compilation_cache"
PROGRAMS = re.compile(r".+-(cache|atime)")  # what JAX calls them, and what it notes of their use


def use(setting: str, gib: float = 0.0) -> str:
    """Turns JAX's persistent cache on, before anything large is compiled, and returns a line that says where it is.

    Only programs that take a second or more to compile are kept, and of several processes the first one writes.

    Args:
        setting: `training.compilation_cache`: a folder, "auto", or "" for none.
        gib: `training.compilation_cache_gib`: what the programs in the folder may take; those used longest ago go. 0:
            no limit, as for a folder that JAX_COMPILATION_CACHE_DIR names.

    Raises:
        ValueError: For a folder that cannot be made.
    """
    if setting == "":
        change(None)
        return "compiled programs are not kept"
    config: Any = jax.config  # whose options type checkers do not see
    given = config.jax_compilation_cache_dir  # from JAX_COMPILATION_CACHE_DIR
    if setting == "auto" and given:
        return f"compiled programs are kept in {given}"
    try:
        folder = files.absolute(epath.Path(default()) if setting == "auto" else paths.given(setting, KEY))
    except RuntimeError as error:  # no home
        return f"compiled programs are not kept: {error}"
    if jax.default_backend() == "cpu":
        folder /= processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if setting == "auto":  # such as a container without a home
            return f"compiled programs are not kept: {error}"
        raise ValueError(f"{KEY} is {setting!r}; it must be a folder that can be made ({error})") from None
    caches.trim(folder, PROGRAMS, gib)
    change(os.fspath(folder))
    return f"compiled programs are kept in {folder}"


def change(folder: str | None) -> None:
    """Sets the folder, also where JAX has begun to use another one."""
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)


def default() -> pathlib.Path:
    """Returns a folder of the user's own: others who may write to it could make this program run what they like."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    return pathlib.Path(base) / "tim_jax" / "xla"


def processor() -> str:
    """Returns a name for this kind of processor.

    XLA compiles for the instructions that it finds. A program from another kind may not run here, though a home folder
    or a bucket is shared by both.
    """
    known = pathlib.Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.processor()]
    named = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or lines
    return f"{platform.machine()}-{hashlib.sha256(''.join(named).encode()).hexdigest()[:8]}"
