"""New folders that appear whole, whoever else makes the same one at the same time."""

import contextlib
from collections.abc import Iterator

from etils import epath

from tim_jax.system import files, lock


class CannotMake(ValueError):
    """A new folder that is there already, that another command makes, or whose place cannot be written to."""


@contextlib.contextmanager
def appearing(folder: epath.Path, option: str) -> Iterator[epath.Path]:
    """A context that gives an empty folder beside `folder`, which at the end becomes it, or else is removed.

    What a kill leaves behind has always the same name, and the next try removes it.

    Args:
        folder: The new folder.
        option: What named it, for errors.

    Raises:
        CannotMake: Before anything is written.
    """

    def refuse(who: str) -> None:
        raise ValueError(f"{option} is {str(folder)!r}; it must be a folder that no other command makes now ({who})")

    new = folder.parent / f".{folder.name}.unfinished"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.locked(folder.parent, True, 1, option, f".{folder.name}.lock", refuse))
            if folder.exists():
                raise ValueError(f"{option} is {str(folder)!r}; it must be a new folder, and is there already")
        except ValueError as error:
            raise CannotMake(str(error)) from None
        try:
            new.rmtree(missing_ok=True)
            new.mkdir(parents=True)
            yield new
            files.move_folder(new, folder)
        finally:
            if new.exists():
                new.rmtree()
