"""python -m tim_jax.convert import FILE WORKDIR [--config=…], or export WORKDIR FILE [--which=…]

FILE holds weights under their official names: safetensors, or on import a PyTorch .bin, of which nothing is executed.
"""

import argparse

from tim_jax.config.command_line import Parser, failures, user_errors


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.convert", description="Official weights to a workdir, and back.")
    commands = made.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="weights to a workdir")
    importing.add_argument("file", help=".safetensors or .bin; a path, or hf://owner/repository/file")
    importing.add_argument("workdir", help="a new folder")
    importing.add_config(default="", help="what the weights are; default: by the name of a released file")
    exporting = commands.add_parser("export", help="weights of a workdir to a file", epilog="")
    exporting.add_argument("workdir", help="a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000")
    exporting.add_argument("file", help="a new .safetensors file")
    exporting.add_argument("--which", default="", help="online or the name of an EMA; default: what samples use")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    if args.command == "import":
        return import_weights(args, overrides)
    if overrides:
        parser().error(f"--config.{next(iter(overrides))}: exporting changes no configuration")
    export_weights(args)


def import_weights(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Weights to a workdir."""
    from tim_jax.runs import conversion

    with user_errors():
        found = conversion.read_import(args.file, args.workdir, args.config, overrides)
    with failures(conversion.CannotWrite, OSError):
        conversion.write_workdir(found.run, found.params, found.file.name, found.workdir)
    print(f"{found.size:,} parameters of {found.file.name} are step 0 of {args.workdir}")
    print(f"python -m tim_jax.sample --workdir={args.workdir} samples from them")


def export_weights(args: argparse.Namespace) -> None:
    """Weights of a workdir to a file."""
    from tim_jax.system import paths

    with user_errors():
        file = paths.given(args.file, "FILE")
        if file.suffix != ".safetensors":
            raise ValueError(f"{args.file}: must end in .safetensors; other forms are not written")
        if file.exists():
            raise ValueError(f"{args.file}: is there already")
        paths.check_file(file, "FILE")

    from tim_jax.runs import conversion

    with user_errors():
        found = conversion.read_export(args.workdir, args.which, args.dtype)
    with failures(OSError):
        conversion.write_export(found, file)
    print(f"{found.size:,} parameters of {found.checkpoint}, {found.ema}, are in {args.file}")
    if found.rope_order != "official":
        print("note: the published code pairs tokens and positions in an order that these were not trained with")


if __name__ == "__main__":
    main()
