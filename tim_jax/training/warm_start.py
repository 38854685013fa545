"""Starting from another run's checkpoint: from its whole state, or from its weights, all or some of them."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import unflatten_dict

from tim_jax.system import files, holds, paths
from tim_jax.system.user_errors import few
from tim_jax.training import checkpoints, formats, names, power_ema, snapshots
from tim_jax.training.state import TrainState

Shapes = Mapping[str, tuple[int, ...]]  # {name of a parameter: its shape}
SHOWN = 4  # parameters that an error names


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint of some run.

    Attributes:
        directory: Folder of all its checkpoints.
        step: Which one.
        hold: Keeps the run, which may be at work, from removing it, as long as this object lives; or None.
    """

    directory: epath.Path
    step: int
    hold: holds.Hold | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.directory / str(self.step))


def latest(workdir: epath.Path) -> Saved | None:
    """Returns a workdir's latest checkpoint, damaged or not, or None."""
    directory = files.absolute(workdir) / "checkpoints"
    if not directory.exists():
        return None
    with checkpoints.opened(directory) as manager:
        step = manager.latest_step()
    return None if step is None else Saved(directory, step)


def find(path: str, key: str) -> Saved:
    """Returns the checkpoint that a path names; all processes must call this.

    Args:
        path: A workdir, for its latest good checkpoint, or the folder of one checkpoint.
        key: Key or option that has the path, for errors.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    given = files.absolute(paths.run_folder(path, key))
    named = given.name.isdigit() and not (given / "checkpoints").exists()
    directory = given.parent if named else given / "checkpoints"
    step = hold = None
    if directory.exists():
        with checkpoints.opened(directory) as manager:
            if not named:
                step, _, hold = checkpoints.hold_good(manager)
            elif int(given.name) in manager.all_steps():
                step = int(given.name)
                hold, wrong = checkpoints.examined(given)
                if wrong not in (None, checkpoints.NO_MANIFEST):
                    raise ValueError(f"{key} is {path!r}; it must be a checkpoint that can be used: {wrong}")
    if step is None or not all((directory / str(step) / item).exists() for item in ("state", "record")):
        raise ValueError(f"{key} is {path!r}; it must be a workdir with a checkpoint, or one of its checkpoints/STEP")
    return Saved(directory, step, hold)


def record(saved: Saved) -> dict[str, Any]:
    """Returns what a checkpoint says of the run that made it."""
    with checkpoints.opened(saved.directory) as manager:
        return checkpoints.read_record(manager, saved.step)


def latest_record(workdir: epath.Path) -> tuple[Saved, dict[str, Any]] | None:
    """Returns the latest checkpoint of a workdir whose record can be read, and the record, or None.

    Checksums are not looked at.
    """
    latest_one = latest(workdir)
    if latest_one is None:
        return None
    with checkpoints.opened(latest_one.directory) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            with contextlib.suppress(ValueError, KeyError, OSError):  # a damaged one, which training sets aside
                return Saved(latest_one.directory, step), checkpoints.read_record(manager, step)
    return None


def weights_of(saved: Saved) -> dict[str, Shapes]:
    """Returns the shapes of all weights that a checkpoint holds, by "online" or the name of an EMA."""
    with checkpoints.opened(saved.directory, whole=False) as manager:
        tree = manager.item_metadata(saved.step)["state"]
        online = formats.name_then("online", checkpoints.format_of(manager, saved.step))
    found = {"online": tree["params"][online]} | dict(tree["emas"] or {})

    def shapes(tree: Any) -> Shapes:
        return {name: tuple(leaf.shape) for name, leaf in names.by_name(tree).items()}

    return {ema: shapes(tree) for ema, tree in found.items()}


def common(here: Shapes, there: Shapes, new: Sequence[str]) -> set[str]:
    """Returns the names of the parameters to take from there: all that no pattern of `new` matches.

    Args:
        here: Shapes of the run that starts.
        there: Shapes of the weights that it starts from.
        new: Patterns of names that start from scratch.

    Raises:
        ValueError: If some of those are missing, left over or of another shape there; it names them.
    """
    wanted = {name for name in here.keys() | there.keys() if not names.matches(name, new)}
    wrong = [name for name in sorted(wanted) if here.get(name) != there.get(name)]
    if not wrong:
        return wanted

    def described(name: str) -> str:
        if name not in there:
            return f"{name} is not there"
        if name not in here:
            return f"{name} is there alone"
        return f"{name} is {there[name]} there and {here[name]} here"

    listed = few([described(name) for name in wrong], SHOWN)
    raise ValueError(f"{listed}; what is to start from scratch must be in start.reinitialise")


def resume(saved: Saved, abstract: TrainState) -> TrainState:
    """Returns the whole state of a checkpoint, on the shardings of `abstract`."""
    with checkpoints.opened(saved.directory) as manager:
        return checkpoints.restore(manager, abstract, saved.step)


def find_weights(saved: Saved, name: str, key: str) -> Shapes:
    """Returns the shapes of the weights that a name means in a checkpoint: its own, or an EMA synthesised from them.

    Args:
        saved: The checkpoint.
        name: "online", the name of an EMA, or, with power-function EMAs, another length, such as "sigma_rel:0.13".
        key: Key or option that has the name, for the error.

    Raises:
        ValueError: If there are none.
    """
    found = weights_of(saved)
    tracked = [each for each in found if power_ema.named(each)]
    if power_ema.canonical(name) in found:
        return found[power_ema.canonical(name)]
    if tracked and power_ema.named(name):
        return found[tracked[0]]
    more = f" or {power_ema.PREFIX}VALUE, with a value up to {power_ema.MAX_SIGMA_REL}" if tracked else ""
    raise ValueError(f"{key} is {name!r}; it must be one of {', '.join(found)}{more}, which {saved} has")


def read_weights(saved: Saved, ema: str, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns parameters by name; nothing else is read.

    Args:
        saved: The checkpoint.
        ema: A name as `find_weights` takes it. A length that the checkpoint does not have is synthesised.
        abstract: Shapes, types and shardings of the parameters to read, by name.
    """
    ema = power_ema.canonical(ema)
    if power_ema.named(ema) is not None:
        tracked = {name: value for name in weights_of(saved) if (value := power_ema.named(name))}
        if tracked and ema not in tracked:
            return snapshots.synthesise(
                saved.directory.parent,
                saved.step,
                cast(float, power_ema.named(ema)),
                tracked,
                lambda name, abstract: read_weights(saved, name, abstract),
                abstract,
            )
    with checkpoints.opened(saved.directory, whole=False) as manager:
        part = ("emas", ema)
        if ema == "online":
            part = ("params", formats.name_then("online", checkpoints.format_of(manager, saved.step)))
        return checkpoints.read_part(manager, saved.step, part, abstract)


def read_network(saved: Saved, ema: str, abstract: Any) -> Any:
    """Returns all parameters of a network as the tree that `abstract` is; see `read_weights`."""
    return unflatten_dict(read_weights(saved, ema, names.by_name(abstract)), sep="/")


def replace_weights(state: TrainState, weights: Mapping[str, jax.Array], heads: Iterable[str] = ()) -> TrainState:
    """Returns a first state whose online network has other parameters; EMAs and auxiliary networks are copies of it.

    Args:
        state: The first state.
        weights: Parameters by name; those that are not there stay.
        heads: The names of networks, and of their EMAs, that stay because they are of another kind.
    """
    online = jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights.get(names.name_of(path), leaf), state.params["online"]
    )

    def copies(trees):  # a step donates them all: no sharing
        return {name: tree if name in heads else jax.tree.map(jnp.copy, online) for name, tree in trees.items()}

    return state.replace(params=copies(state.params) | {"online": online}, emas=copies(state.emas))
