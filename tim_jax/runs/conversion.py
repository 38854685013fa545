"""Official weights to a workdir and back: the job of python -m tim_jax.convert."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from safetensors.numpy import save

from tim_jax.codecs import hub, tensors
from tim_jax.codecs.official import from_official, to_official
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.run import Run
from tim_jax.runs import workdir
from tim_jax.system import files, paths
from tim_jax.training import checkpoints, warm_start
from tim_jax.training.sharding import on_mesh
from tim_jax.training.state import first_state
from tim_jax.types import DTYPES

# Released files by name, and the configuration of each: shapes alone do not tell it.
RELEASES = {
    "c2i_model_256.safetensors": "released_imagenet256",
    "c2i_model_512.safetensors": "released_imagenet512",
    "t2i_model.bin": "released_t2i",
}
ALIGNMENT = "projector.0.weight"  # of the head that only training uses, and files may lack
WITHOUT_ALIGNMENT = {"data.features_width": "0", "objective.alignment_weight": "0.0"}


class CannotWrite(Exception):
    """A checkpoint that could not be written."""


class Imported(NamedTuple):
    """Weights of a file that fit a run's network.

    Attributes:
        file: where they were read.
        run: that they are to be the first state of.
        params: parameters of its network.
        workdir: the new workdir.
    """

    file: pathlib.Path
    run: Run
    params: Any
    workdir: epath.Path

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


class Exported(NamedTuple):
    """Weights of a checkpoint under their official names.

    Attributes:
        checkpoint: where they were read.
        ema: "online" or the name of an EMA.
        state: {official name: array}.
        rope_order: of the network that they were trained with.
    """

    checkpoint: warm_start.Saved
    ema: str
    state: dict[str, np.ndarray]
    rope_order: str

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(array.size for array in self.state.values())


def read_import(file: str, folder: str, config: str, overrides: dict[str, str]) -> Imported:
    """Reads official weights that are to become a workdir.

    Args:
        file: safetensors or a PyTorch .bin, of which nothing is executed; a path, or hf://owner/repository/file.
        folder: the new workdir.
        config: name of the configuration; "" for that of a released file.
        overrides: {"section.key": text} of the configuration.

    Raises:
        ValueError: one line that names what is wrong with the file, the folder or the configuration.
    """
    new = files.absolute(paths.run_folder(folder, "WORKDIR"))
    if new.exists():
        raise ValueError(f"{folder}: is there already; weights are imported into a workdir of their own")
    paths.check_folder(new, "WORKDIR")
    path = hub.local(file)
    if not path.is_file():
        raise ValueError(f"{path}: is no file on this machine")
    state = tensors.read(path)
    run = build(import_config(path, state, config, overrides))
    try:
        params = from_official(state, run.trainer.abstract.params["online"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Imported(path, run, params, new)


def import_config(file: pathlib.Path, state: dict[str, np.ndarray], name: str, overrides: dict[str, str]) -> ConfigDict:
    """The configuration of official weights, without alignment if the file has no head for it.

    Args:
        file: of the weights.
        state: the weights.
        name: of the configuration; "" for that of a released file.
        overrides: {"section.key": text}.

    Raises:
        ValueError: one line.
    """
    if not name and file.name not in RELEASES:
        raise ValueError(
            f"{file}: is called like none of the released files ({', '.join(RELEASES)}); say with --config what it is, "
            "such as --config=imagenet256_xl --config.model.rope_order=official"
        )
    left_out = {} if ALIGNMENT in state else WITHOUT_ALIGNMENT
    return load_config(name or RELEASES[file.name], left_out | overrides)


def write_workdir(run: Run, params: Any, source: str, folder: epath.Path) -> None:
    """Makes a workdir at step 0, in one move; if that fails, nothing is left behind.

    Args:
        run: of the workdir.
        params: parameters of the online network, its EMAs and the auxiliary networks.
        source: what the checkpoint says of where they came from.
        folder: the new workdir.

    Raises:
        CannotWrite: if the checkpoint cannot be written.
    """
    new = folder.parent / f".{folder.name}.importing"
    try:
        new.rmtree(missing_ok=True)
        trainer, step = run.trainer, run.trainer.step
        make = jax.jit(
            lambda params: first_state(params, step.tx, step.emas, step.auxiliary), out_shardings=trainer.shardings
        )
        with on_mesh(run.mesh):
            state = make(params)
        record = workdir.record_start(new, run.config) | {"imported": source}
        saver = checkpoints.Saver(checkpoints.open_manager(new, keep=1, every=1))
        saver.save(0, state, record)
        saver.close()
        if saver.failures:
            raise CannotWrite(saver.failures[0])
        files.move_folder(new, folder)
    finally:
        if new.exists():
            new.rmtree()


def read_export(path: str, ema: str, dtype: str) -> Exported:
    """Reads weights of a run to be exported.

    Args:
        path: a workdir, or one of its checkpoints.
        ema: "online" or the name of an EMA; "" for what samples use.
        dtype: a name in DTYPES.

    Raises:
        ValueError: one line.
    """
    saved = warm_start.find(path, "WORKDIR")
    config = workdir.restored(warm_start.record(saved)["config"], saved.directory.parent)
    found, ema = warm_start.weights_of(saved), ema or config.sampling.ema
    if ema not in found:
        raise ValueError(f"--which is {ema!r}; it must be one of {', '.join(found)}, which {saved} has")
    here = SingleDeviceSharding(jax.local_devices()[0])
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, shape in found[ema].items()}
    params = unflatten_dict(warm_start.read_weights(saved, ema, abstract), sep="/")
    state = {name: array.astype(DTYPES[dtype]) for name, array in to_official(params).items()}
    return Exported(saved, ema, state, config.model.rope_order)


def write_export(exported: Exported, file: epath.Path) -> None:
    """Writes weights as safetensors, in one move. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, save(exported.state, {"format": "pt"}))
