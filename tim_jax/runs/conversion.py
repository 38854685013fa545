"""Official weights to a workdir and back: the job of python -m tim_jax.convert."""

import functools
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from safetensors.numpy import save

from tim_jax.codecs import copies, tensors
from tim_jax.codecs.official import OWN, from_official, to_official, transposed
from tim_jax.config import identity, loading, plugins, recorded_plugins
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.network import make_network
from tim_jax.config.objective import make_objective, make_transport, resolved
from tim_jax.config.overrides import override
from tim_jax.config.run import Run
from tim_jax.networks import Transformer
from tim_jax.runs import exports, fixed_arrays, labels, model_card, published, teachers, workdir
from tim_jax.runs.conditions import read_counts, write_counts
from tim_jax.runs.exports import Extra
from tim_jax.system import files, folders, paths
from tim_jax.training import checkpoints, names, proof, warm_start
from tim_jax.training.sharding import on_mesh
from tim_jax.types import DTYPES

# Released files by name, and the configuration of each: shapes alone do not tell it.
RELEASES = {
    "c2i_model_256.safetensors": "released_imagenet256",
    "c2i_model_512.safetensors": "released_imagenet512",
    "t2i_model.bin": "released_t2i",
}
FOLDER = "released/"  # of the configurations of other released networks, by name
ALIGNMENT = "projector"  # begins the names of the head that only training uses, and files may lack
WITHOUT_ALIGNMENT = {"data.features_width": "0", "objective.alignment_weight": "0.0"}


class CannotWrite(Exception):
    """A checkpoint that could not be written."""


class Weights(NamedTuple):
    """Weights of a file that fit a run's network.

    Attributes:
        file: where they were read.
        run: that they are of.
        params: parameters of its network.
        origin: what the file says of the run; None if it says nothing.
    """

    file: pathlib.Path
    run: Run
    params: Any
    origin: exports.Origin | None

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def counts(self) -> tuple[int, ...]:
        """How often the data has each label, where the file says so."""
        return self.origin.counts if self.origin else ()


class Exported(NamedTuple):
    """Weights of a checkpoint under their official names.

    Attributes:
        checkpoint: where they were read.
        state: {official name: array}.
        origin: what the file says of them.
    """

    checkpoint: warm_start.Saved
    state: dict[str, np.ndarray]
    origin: exports.Origin

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(array.size for array in self.state.values())

    @property
    def workdir(self) -> epath.Path:
        """The workdir that the checkpoint is of."""
        return self.checkpoint.directory.parent


def new_workdir(folder: str) -> epath.Path:
    """The path of a workdir to import into. Raises ValueError if it is there already or cannot be made."""
    new = files.absolute(paths.run_folder(folder, "WORKDIR"))
    if new.exists():
        raise ValueError(f"{folder}: is there already; weights are imported into a workdir of their own")
    paths.check_folder(new, "WORKDIR")
    return new


def released(name: str) -> str:
    """The configuration of a released network by its name, that of `--as`. Raises ValueError for an unknown name."""
    known = [each.removeprefix(FOLDER) for each in loading.names() if each.startswith(FOLDER)]
    if name not in known:
        raise ValueError(f"--as is {name!r}; it must be one of {', '.join(known)}")
    return FOLDER + name


def read_weights(path: str, config: str, overrides: dict[str, str], same: bool = False, copy: str = "") -> Weights:
    """Reads exported or published weights, and builds the run that they are of.

    Args:
        path: a file of safetensors or of PyTorch, of which nothing is executed; an exported folder; or
            hf://owner/repository, perhaps with a file.
        config: name of the configuration; "" for what the file says, or that of a released file.
        overrides: {"section.key": text} of the configuration.
        same: refuse overrides of keys that make a run what it is.
        copy: of the copies of the network in the file, see `copies.choose`.

    Raises:
        ValueError: one line that names what is wrong with the file or the configuration.
    """
    file = exports.local_file(path)
    state, origin = tensors.read(file, functools.partial(copies.choose, copy=copy)), exports.origin_of(file)
    chosen = import_config(file, state, origin, config, overrides)
    if same:
        before = workdir.to_json(import_config(file, state, origin, config, {}))
        identity.compare(before, chosen, path)
    run = build(chosen)
    fixed = fixed_arrays.of(run.config, run.network)
    try:
        params = from_official(
            state, run.trainer.abstract_online, chosen.model.network, fixed, functools.partial(first, run)
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if origin is not None and origin.transposed and run.config.model.rope_order == "row_major":
        params = transposed(params)
    return Weights(file, run, params, origin)


def first(run: Run, paths: list[str]) -> dict[str, np.ndarray]:
    """{path: array} of some parameters as they are before training."""

    def make(key: jax.Array) -> dict[str, jax.Array]:
        all_of_them = names.by_name(nn.unbox(run.trainer.init(key)))
        return {path: all_of_them[path] for path in paths}

    return jax.tree.map(np.asarray, jax.jit(make)(jax.random.key(run.config.seed)))


def import_config(
    file: pathlib.Path,
    state: dict[str, np.ndarray],
    origin: exports.Origin | None,
    name: str,
    overrides: dict[str, str],
) -> ConfigDict:
    """The configuration of official weights, without alignment if the file has no head for it.

    Args:
        file: of the weights.
        state: the weights.
        origin: what the file says of its run, if anything.
        name: of the configuration; "" for what the file says, or that of a released file.
        overrides: {"section.key": text}.

    Raises:
        ValueError: one line.
    """
    if not name and origin is not None:
        overrides = dict(overrides)
        plugins.load_given(overrides)
        copies = file.parent if (file.parent / recorded_plugins.FOLDER).is_dir() else None
        return override(workdir.restored(dict(origin.config), copies), overrides)
    if not name and file.name not in RELEASES:
        raise ValueError(
            f"{file}: does not say what it is, as files that tim_jax exports do, and is called like none of the "
            f"released files ({', '.join(RELEASES)}); say with --config what it is, such as --config=imagenet256_xl "
            "--config.model.rope_order=official, or with --as"
        )
    left_out = {} if any(key.startswith(ALIGNMENT) for key in state) else WITHOUT_ALIGNMENT
    return load_config(name or RELEASES[file.name], left_out | overrides)


def class_names(weights: Weights, file: str = "") -> tuple[str, ...]:
    """Names of the labels of weights: those in `file`, if one is given, else what the file of weights says."""
    if not file:
        return weights.origin.classes if weights.origin else ()
    if weights.run.config.model.condition != "class":
        raise ValueError(f"--classes is {file!r}; these weights are conditioned on text, not on classes")
    return labels.read_names(file, weights.run.config.model.num_classes)


def startable(weights: Weights) -> Weights:
    """Weights whose run has its teachers, where it has heads on their states, which are as wide.

    Raises:
        ValueError: naming the key, for a teacher that is not there or does not fit the run.
    """
    return weights._replace(run=teachers.with_teachers(weights.run)) if weights.run.trainer.heads else weights


def write_workdir(
    run: Run,
    params: Any,
    source: str,
    folder: epath.Path,
    classes: tuple[str, ...] = (),
    counts: tuple[int, ...] = (),
) -> None:
    """Makes a workdir at step 0, in one move; if that fails, nothing is left behind.

    Args:
        run: of the workdir, with its teachers where it has heads on their states.
        params: parameters of the online network, its EMAs and the auxiliary networks.
        source: what the checkpoint says of where they came from.
        folder: the new workdir.
        classes: names of labels, or ().
        counts: how often the data had each label, or ().

    Raises:
        CannotWrite: if the checkpoint cannot be written.
        CannotMake: if the folder cannot be made.
    """
    trainer = run.trainer
    with folders.appearing(folder, "WORKDIR") as new:
        with on_mesh(run.mesh):
            state = jax.jit(trainer.state_with, out_shardings=trainer.shardings)(params, trainer.seed_array)
        record = workdir.record_start(new, run.config, classes=classes) | {"imported": source}
        if counts and jax.process_index() == 0:
            write_counts(new, np.array(counts))
        saver = checkpoints.Saver(checkpoints.open_manager(new, keep=1))
        saver.save(0, state, record)
        saver.close()
        if saver.failures:
            raise CannotWrite(saver.failures[0])


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
    ema = ema or config.sampling.ema
    shapes = warm_start.find_weights(saved, ema, "--ema")
    here = SingleDeviceSharding(jax.local_devices()[0])
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, shape in shapes.items()}
    params = unflatten_dict(warm_start.read_weights(saved, ema, abstract), sep="/")
    turned = published.is_transposed(config)
    fixed = fixed_arrays.of(config, network_of(config))
    official = to_official(transposed(params) if turned else params, config.model.network, fixed)
    state = {name: array.astype(DTYPES[dtype]) for name, array in official.items()}
    if found := proof.not_finite(state):
        raise ValueError(f"WORKDIR is {path!r}; it must hold finite weights, and {found} of {ema} is not")
    folder = saved.directory.parent
    counts = read_counts(folder)
    origin = exports.Origin(
        config=exports.portable(config),
        ema=ema,
        step=saved.step,
        transposed=turned,
        classes=workdir.class_names(folder),
        counts=() if counts is None else tuple(counts.tolist()),
    )
    return Exported(saved, state, origin)


def network_of(config: ConfigDict) -> Transformer:
    """The network of a configuration."""
    config = resolved(config)
    return make_network(config, make_objective(config, make_transport(config), shards=1))


def own_modules(exported: Exported) -> list[str]:
    """The modules, sorted, of exported weights that the published network does not have."""
    return sorted({key.removeprefix(OWN).partition("/")[0] for key in exported.state if key.startswith(OWN)})


def obstacles(exported: Exported) -> list[str]:
    """See `published.obstacles`."""
    return published.obstacles(workdir.restored(dict(exported.origin.config)), own_modules(exported))


def write_export(exported: Exported, out: epath.Path, name: str, extra: Extra = Extra()) -> epath.Path:
    """Writes weights to a new folder, or to a file where `out` ends like one, and returns the file that has them.

    Args:
        exported: the weights.
        out: the folder or the file.
        name: of the model, for its card: ORG/NAME on the hub, or any other.
        extra: further files of a folder.

    Raises:
        OSError: if a file cannot be written; then nothing is left behind.
    """
    if out.suffix == ".safetensors":
        write_file(exported, out)
        return out
    write_folder(exported, out, name, extra)
    return out if extra.alone else out / exports.WEIGHTS


def write_file(exported: Exported, file: epath.Path) -> None:
    """Writes weights as safetensors, in one move. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, save(exported.state, exported.origin.header()))


def write_folder(exported: Exported, folder: epath.Path, name: str, extra: Extra = Extra()) -> None:
    """Writes weights, a card that describes them, and a picture of samples if there is one, into a new folder.

    Args:
        exported, name, extra: as `write_export` takes them.
        folder: the new folder, which appears whole.

    Raises:
        OSError: if a file cannot be written; then nothing is left behind.
        CannotMake: if the folder cannot be made.
    """
    with folders.appearing(folder, "OUT") as new:
        if not extra.alone:
            write_file(exported, new / exports.WEIGHTS)
        for path, data in extra.files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
        picture = model_card.samples(exported.workdir)
        if picture is not None:
            (new / model_card.PICTURE).write_bytes(picture.read_bytes())
        recorded_plugins.keep_copies(exported.origin.config["plugin"], new)
        own = own_modules(exported)
        card = model_card.card(exported.origin, exported.workdir, name, exported.size, own, picture, extra)
        (new / model_card.CARD).write_text(card)
