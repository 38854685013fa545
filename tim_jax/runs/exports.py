"""What an exported file of weights says, in its header, of the run that it is of: enough to import it alone."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tim_jax.codecs import tensors
from tim_jax.config import loading
from tim_jax.system import hub

WEIGHTS = "model.safetensors"  # of an exported folder
KEY = "tim_jax"  # of the header
REMOTE = "://"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The run that exported weights are of.

    Attributes:
        config: its configuration, without the places of files, see `without_places`.
        ema: "online" or the name of the EMA that was exported.
        step: of training.
        transposed: whether the weights were transposed (`codecs.official.transposed`), so that the published code reads
            the positions of patches as they were trained.
        classes: names of labels, or ().
        counts: how often the data has each label, or ().
    """

    config: Mapping[str, Any]
    ema: str
    step: int
    transposed: bool
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def header(self) -> dict[str, str]:
        """What a safetensors file says besides its arrays; "format" is what PyTorch's readers look for."""
        return {"format": "pt", KEY: json.dumps(dataclasses.asdict(self), ensure_ascii=False)}


class Extra(NamedTuple):
    """What a format adds to an exported folder.

    Attributes:
        files: {path in the folder: content}.
        use: how the card says that they are used, in Markdown.
        alone: whether they stand in place of WEIGHTS.
    """

    files: Mapping[str, bytes] = {}
    use: str = ""
    alone: bool = False


def origin_of(file: pathlib.Path) -> Origin | None:
    """Reads what an exported file says of its run; None of a file that says nothing.

    Raises ValueError, in one line, for a file that is damaged or says what cannot be read.
    """
    if file.suffix != ".safetensors":
        return None
    said = (tensors.open_safetensors(file).metadata() or {}).get(KEY)
    if said is None:
        return None
    try:
        origin = Origin(**json.loads(said))
        return dataclasses.replace(origin, classes=tuple(origin.classes), counts=tuple(origin.counts))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: its header is not that of a file exported by this version ({error})") from None


def is_export(path: str) -> bool:
    """Whether a path names exported weights, in a file, a folder or on the hub, and no workdir."""
    if path.startswith(hub.SCHEME):
        return True
    if REMOTE in path:
        return False
    given = pathlib.Path(path).expanduser()
    return given.suffix in tensors.READERS or (given / WEIGHTS).is_file()


def local_file(path: str) -> pathlib.Path:
    """The file of weights that a path names: itself, that of an exported folder, or one that is fetched of the hub.

    Raises ValueError where there is none.
    """
    found = hub.local(path)
    if found.is_dir() and (found / WEIGHTS).is_file():
        return found / WEIGHTS
    if not found.is_file():
        raise ValueError(f"{path}: is no file on this machine, and no folder with {WEIGHTS}")
    return found


def portable(config: ConfigDict) -> dict[str, Any]:
    """A configuration as it goes on to others: with the default of what is about a machine, and without its places."""
    base = loading.load("base").get_config()
    machine = {section: json.loads(base[section].to_json()) for section in ("loader", "mesh")}
    return without_places(json.loads(config.to_json()) | machine)


def without_places(value: Any) -> Any:
    """A configuration without the places of the author's files, which are nobody's business and help nobody.

    Of a path from the root, from a home folder, from here up or in object storage only the last name is left; what lies
    on the hub stays.
    """
    if isinstance(value, Mapping):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    if not isinstance(value, str) or value.startswith(hub.SCHEME):
        return value
    if value.startswith(("/", "~", ".")) or REMOTE in value:
        return value.rstrip("/").rpartition("/")[2]
    return value
