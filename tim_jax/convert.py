"""python -m tim_jax.convert import FROM WORKDIR [--as=…], export WORKDIR OUT [--ema=…], or upload OUT ORG/NAME

Weights have their official names: safetensors, or on import a file of PyTorch, of which nothing is executed. What is
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
    importing.add_argument("file", help="an exported folder, or a file of weights; a path, or hf://owner/repository")
    importing.add_argument("workdir", help="a new folder")
    importing.add_config(default="", help="what the weights are; default: what an exported file says itself")
    importing.add_argument("--as", dest="released", default="", help="a released network by name, such as sit_xl_2")
    importing.add_argument(
        "--ema", default="", help="online, or the name of a copy in the file; default: its first EMA"
    )
    importing.add_argument("--classes", default="", help="a file with the name of each class on a line; default: none")
    exporting = commands.add_parser(
        "export", help="weights of a workdir to a folder, with a card, or to a file", epilog=""
    )
    exporting.add_argument("workdir", help="a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000")
    exporting.add_argument("out", help="a new folder, or a new .safetensors file")
    exporting.add_argument("--ema", default="", help="online or the name of an EMA; default: what samples use")
    exporting.add_renamed("--which", "--ema")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    exporting.add_argument(
        "--to",
        choices=("published", "torch", "diffusers"),
        default="published",
        help="torch: also network and sampler as one file of PyTorch; diffusers: a pipeline's folder, of a DiT",
    )
    exporting.add_argument("--upload", default="", help="ORG/NAME on the hub, to which the folder is uploaded as well")
    uploading = commands.add_parser("upload", aliases=["push"], help="an exported folder to the hub", epilog="")
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
    samples = args.command == "export" and args.to == "torch"
    changed = [key for key in overrides if key != "plugin" and not (samples and key.startswith("sampling."))]
    if changed:
        but = " but sampling" if samples else ""
        parser().error(f"--config.{changed[0]}: {args.command} changes no configuration{but}")
    if "plugin" in overrides:
        from tim_jax.config import plugins  # with JAX

        with user_errors():
            plugins.load_given(overrides)
    if args.command == "export":
        return export_weights(args, overrides)
    upload_weights(args)


def import_weights(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Weights to a workdir."""
    from tim_jax.runs import conversion
    from tim_jax.system import folders

    with user_errors():
        folder = conversion.new_workdir(args.workdir)
        if args.released and args.config:
            raise ValueError(f"--as is {args.released!r}; it must be left out where --config says what the weights are")
        config = conversion.released(args.released) if args.released else args.config
        found = conversion.startable(conversion.read_weights(args.file, config, overrides, copy=args.ema))
        classes = conversion.class_names(found, args.classes)
    with user_errors(folders.CannotMake), failures(conversion.CannotWrite, OSError):
        conversion.write_workdir(found.run, found.params, found.file.name, folder, classes, found.counts)
    print(f"{found.size:,} parameters of {found.file.name} are step 0 of {args.workdir}")
    print(f"python -m tim_jax.sample {shlex.quote(f'--workdir={args.workdir}')} samples from them")


def export_weights(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Weights of a workdir to a folder or a file, and to the hub."""
    from tim_jax.system import folders, hub, paths

    with user_errors():
        out = paths.given(args.out, "OUT")
        alone = out.suffix == ".safetensors"
        if out.exists():
            raise ValueError(f"{args.out}: is there already")
        if args.private and not args.upload:
            raise ValueError("--private: is about a repository on the hub, and --upload names none")
        if args.upload and alone:
            raise ValueError(f"--upload is {args.upload!r}; it uploads a folder, and {args.out} is to be a file")
        if args.to != "published" and alone:
            raise ValueError(f"--to is {args.to!r}; it writes a folder, and {args.out} is to be a file")
        repository = hub.check_upload(args.upload) if args.upload else ""
        paths.check_file(out, "OUT") if alone else paths.check_folder(out, "OUT")

    from tim_jax.runs import conversion, exports, to_diffusers, to_torch

    name, formats = repository or out.name, {"torch": to_torch.of_export, "diffusers": to_diffusers.of_export}
    with user_errors():
        found = conversion.read_export(args.workdir, args.ema, args.dtype)
        extra = formats[args.to](found, name, overrides) if args.to in formats else exports.Extra()
    with user_errors(folders.CannotMake), failures(OSError):
        weights = conversion.write_export(found, out, name, extra)
    print(f"{found.size:,} parameters of {found.checkpoint}, {found.origin.ema}, are in {weights}")
    if not alone:
        print(f"{out / 'README.md'} describes them; set its field `license` before you hand them on")
    for line in [] if extra.alone else conversion.obstacles(found):
        print(f"note: the published code cannot use them: {line}")
    if repository:
        upload(pathlib.Path(out), repository, args.private)


def upload_weights(args: argparse.Namespace) -> None:
    """An exported folder to the hub."""
    from tim_jax.system import hub, paths

    with user_errors():
        repository = hub.check_upload(args.repository)

    from tim_jax.runs import exports, to_diffusers

    with user_errors():
        folder = pathlib.Path(paths.given(args.folder, "FOLDER", ()))
        marks = (exports.WEIGHTS, to_diffusers.INDEX)
        if not any((folder / name).is_file() for name in marks):
            raise ValueError(
                f"FOLDER is {args.folder!r}; it must be a folder that export wrote, with {' or '.join(marks)}"
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
