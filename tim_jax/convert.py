"""python -m tim_jax.convert import FILE WORKDIR [--config=…], or export WORKDIR FILE [--which=…]

FILE holds weights under their official names: safetensors, or on import a PyTorch .bin, of which nothing is executed.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save

from tim_jax.codecs import hub, tensors
from tim_jax.codecs.official import from_official, to_official
from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, failures, load_config, user_errors
from tim_jax.config.run import Run
from tim_jax.runs import workdir
from tim_jax.system import files
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


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """{official name: array} of a file. Raises ValueError with one line that names it."""
    if not file.is_file():
        raise ValueError(f"{file}: is no file on this machine")
    return tensors.read(file)


def configure(file: pathlib.Path, state: dict[str, np.ndarray], name: str, overrides: dict[str, str]):
    """The configuration called `name`, or that of a released file; without alignment if the file has no head for it.

    Raises ValueError with one line.
    """
    if not name and file.name not in RELEASES:
        raise ValueError(
            f"{file}: is called like none of the released files ({', '.join(RELEASES)}); say with --config what it is, "
            "such as --config=imagenet256_xl --config.model.rope_order=official"
        )
    left_out = {} if ALIGNMENT in state else WITHOUT_ALIGNMENT
    return load_config(name or RELEASES[file.name], left_out | overrides)


def fill(run: Run, params: dict, source: str, folder: epath.Path) -> None:
    """Makes `folder` a workdir at step 0 with these parameters as student and averages, in one move.

    Raises CannotWrite; then nothing is left behind.
    """
    new = folder.parent / f".{folder.name}.importing"
    try:
        new.rmtree(missing_ok=True)
        trainer, step = run.trainer, run.trainer.step
        make = jax.jit(
            lambda params: first_state(params, step.tx, step.emas, step.auxiliary),
            out_shardings=trainer.shardings,
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


def import_weights(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The import command, its line being read."""
    with user_errors():
        folder = files.absolute(epath.Path(args.workdir))
        if folder.exists():
            raise ValueError(f"{args.workdir}: is there already; weights are imported into a workdir of their own")
        file = hub.local(args.file)
        state = read(file)
        run = build(configure(file, state, args.config, overrides))
        try:
            params = from_official(state, run.trainer.abstract.params["online"])
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    with failures(CannotWrite, OSError):
        fill(run, params, file.name, folder)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count:,} parameters of {file.name} are step 0 of {args.workdir}")
    print(f"python -m tim_jax.sample --workdir={args.workdir} samples from them")


def export_weights(args: argparse.Namespace) -> None:
    """The export command, its line being read."""
    with user_errors():
        file = epath.Path(args.file)
        if file.suffix != ".safetensors":
            raise ValueError(f"{args.file}: must end in .safetensors; other forms are not written")
        if file.exists():
            raise ValueError(f"{args.file}: is there already")
        saved = warm_start.find(args.workdir, "WORKDIR")
        config = warm_start.record(saved)["config"]
        found, which = warm_start.weights_of(saved), args.which or config["sampling"]["ema"]
        if which not in found:
            raise ValueError(f"--which is {which!r}; it must be one of {', '.join(found)}, which {saved} has")
        here = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, shape in found[which].items()
        }
        params = unflatten_dict(warm_start.read_weights(saved, which, abstract), sep="/")
        state = {name: array.astype(DTYPES[args.dtype]) for name, array in to_official(params).items()}
    with failures(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, save(state, {"format": "pt"}))
    print(f"{sum(array.size for array in state.values()):,} parameters of {saved}, {which}, are in {args.file}")
    if config["model"]["rope_order"] != "official":
        print("note: the published code pairs tokens and positions in an order that these were not trained with")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.convert", description="Official weights to a workdir, and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="weights to a workdir")
    importing.add_argument("file", help=".safetensors or .bin; a path, or hf://owner/repository/file")
    importing.add_argument("workdir", help="a new folder")
    importing.add_argument("--config", default="", help="what the weights are; default: by the name of a released file")
    exporting = commands.add_parser("export", help="weights of a workdir to a file")
    exporting.add_argument("workdir", help="a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000")
    exporting.add_argument("file", help="a new .safetensors file")
    exporting.add_argument("--which", default="", help="online or the name of an average; default: what samples use")
    exporting.add_argument("--dtype", choices=DTYPES, default="float32")
    args, overrides = parser.parse(argv)
    if args.command == "import":
        return import_weights(args, overrides)
    if overrides:
        parser.error(f"--config.{next(iter(overrides))}: exporting changes no configuration")
    export_weights(args)


if __name__ == "__main__":
    main()
