"""python -m tim_jax.convert import FROM WORKDIR [--config=…], export WORKDIR OUT [--ema=…], or upload OUT ORG/NAME

Weights have their official names: safetensors, or on import a PyTorch .bin, of which nothing is executed. What is
exported says itself what it is, so that it is imported, or loaded by tim_jax.load, with no further word.
"""

import argparse
import pathlib
import shlex

from tim_jax.config.command_line import Parser, failures, user_errors


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.convert", description="Weights to a workdir, from a workdir, to the hub.")
    commands = made.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="weights to a workdir")
    importing.add_argument("file", help="an exported folder, .safetensors or .bin; a path, or hf://owner/repository")
    importing.add_argument("workdir", help="a new folder")
    importing.add_config(default="", help="what the weights are; default: what an exported file says itself")
    importing.add_argument("--classes", default="", help="a file with the name of each class on a line; default: none")
    exporting = commands.add_parser(
        "export", help="weights of a workdir to a folder, with a card, or to a file", epilog=""
    )
    exporting.add_argument("workdir", help="a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000")
    exporting.add_argument("out", help="a new folder, or a new .safetensors file")
    exporting.add_argument("--ema", default="", help="online or the name of an EMA; default: what samples use")
    exporting.add_renamed("--which", "--ema")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    exporting.add_argument("--upload", default="", help="ORG/NAME on the hub, to which the folder is uploaded as well")
    uploading = commands.add_parser("upload", help="an exported folder to the hub", epilog="")
    uploading.add_argument("folder", help="that export wrote")
    uploading.add_argument("repository", help="ORG/NAME, which is made if it is not there")
    for command in (exporting, uploading):
        command.add_argument("--private", action="store_true", help="a repository that is made is hidden from others")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    if args.command == "import":
        return import_weights(args, overrides)
    if overrides.keys() - {"plugin"}:
        key = next(key for key in overrides if key != "plugin")
        parser().error(f"--config.{key}: {args.command} changes no configuration")
    if overrides:
        from tim_jax.config import plugins  # with JAX

        with user_errors():
            plugins.load_given(overrides)
    {"export": export_weights, "upload": upload_weights}[args.command](args)


def import_weights(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Weights to a workdir."""
    from tim_jax.runs import conversion

    with user_errors():
        folder = conversion.new_workdir(args.workdir)
        found = conversion.startable(conversion.read_weights(args.file, args.config, overrides))
        classes = conversion.class_names(found, args.classes)
    with failures(conversion.CannotWrite, OSError):
        conversion.write_workdir(found.run, found.params, found.file.name, folder, classes, found.counts)
    print(f"{found.size:,} parameters of {found.file.name} are step 0 of {args.workdir}")
    print(f"python -m tim_jax.sample {shlex.quote(f'--workdir={args.workdir}')} samples from them")


def export_weights(args: argparse.Namespace) -> None:
    """Weights of a workdir to a folder or a file, and to the hub."""
    from tim_jax.system import hub, paths

    with user_errors():
        out = paths.given(args.out, "OUT")
        alone = out.suffix == ".safetensors"
        if out.exists():
            raise ValueError(f"{args.out}: is there already")
        if args.private and not args.upload:
            raise ValueError("--private: is about a repository on the hub, and --upload names none")
        if args.upload and alone:
            raise ValueError(f"--upload is {args.upload!r}; it uploads a folder, and {args.out} is to be a file")
        repository = hub.check_upload(args.upload) if args.upload else ""
        paths.check_file(out, "OUT") if alone else paths.check_folder(out, "OUT")

    from tim_jax.runs import conversion

    with user_errors():
        found = conversion.read_export(args.workdir, args.ema, args.dtype)
    with failures(OSError):
        weights = conversion.write_export(found, out, repository or out.name)
    print(f"{found.size:,} parameters of {found.checkpoint}, {found.origin.ema}, are in {weights}")
    if not alone:
        print(f"{out / 'README.md'} describes them; set its field `license` before you hand them on")
    for line in conversion.obstacles(found):
        print(f"note: the published code cannot use them: {line}")
    if repository:
        upload(pathlib.Path(out), repository, args.private)


def upload_weights(args: argparse.Namespace) -> None:
    """An exported folder to the hub."""
    from tim_jax.system import hub, paths

    with user_errors():
        repository = hub.check_upload(args.repository)

    from tim_jax.runs import exports

    with user_errors():
        folder = pathlib.Path(paths.given(args.folder, "FOLDER", ()))
        if not (folder / exports.WEIGHTS).is_file():
            raise ValueError(
                f"FOLDER is {args.folder!r}; it must be a folder that export wrote, with {exports.WEIGHTS}"
            )
    upload(folder, repository, args.private)


def upload(folder: pathlib.Path, repository: str, private: bool) -> None:
    """Uploads a folder and says where it is."""
    from tim_jax.system import hub

    with user_errors():
        address = hub.upload(folder, repository, private)
    print(f"{folder} is at {address}; tim_jax.load({hub.SCHEME + repository!r}) loads it")


if __name__ == "__main__":
    main()
