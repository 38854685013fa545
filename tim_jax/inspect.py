"""python -m tim_jax.inspect --config=configs/photos.py [--out=DIR] [--batch-multiple=8] [--config.data.…=…]

Prints the bucket plan of a configuration as a table, and writes it as plan.png together with a contact sheet for each
bucket, which shows the bucket's first batch in training as the network will see it.
"""

import argparse
import sys
from pathlib import Path

from tim_jax.config.command_line import Parser, load_config, user_errors


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.inspect", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_config(required=True, help="a configuration, such as configs/photos.py")
    made.add_argument("--out", default="inspect", help="the folder that pictures are written to; default: %(default)s")
    made.add_argument(
        "--batch-multiple",
        type=int,
        default=1,
        help="number that batch sizes must be a multiple of; default: %(default)s",
    )
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        if args.batch_multiple < 1:
            raise ValueError(f"--batch-multiple is {args.batch_multiple}; it must be at least 1")

    import jax

    from tim_jax.codecs.settings import CodecSettings
    from tim_jax.config import automatic, values
    from tim_jax.config.build import checked
    from tim_jax.config.examples import make_inputs
    from tim_jax.config.sections import read
    from tim_jax.data.sections import DataSettings, LoaderSettings
    from tim_jax.data.settings import open_data
    from tim_jax.data.summary import layout, summary, table, write
    from tim_jax.runs.counting import counted
    from tim_jax.runs.workdir import check_outside_data
    from tim_jax.system import paths

    with user_errors():
        config = load_config(args.config, overrides)
        folder = paths.given(args.out, "--out", ())
        paths.check_folder(folder, "--out")
        check_outside_data(folder, "--out", config)
        checked(config)
        config = counted(config)
        config = automatic.with_size(values.checked(config))
        if config.data.batch_size == automatic.AUTO:
            config.data.batch_size = automatic.batch_size(config, jax.devices(), args.batch_multiple)
        examples, loader = read(DataSettings, config.data), read(LoaderSettings, config.loader)
        examples.check(config.model.patch_size, config.model.condition)
        loader.check()
        codecs = read(CodecSettings, config.codecs)
        settings = make_inputs(config, examples, loader, codecs, batch_multiple=args.batch_multiple)
        source, plan = open_data(settings)
        print(layout(table(plan, settings.augmentation.side)))
        print(summary(source, plan))
        written = write(source, plan, settings.augmentation, config.seed, Path(folder))
    print(f"{written[0].name} and {len(written) - 1} contact sheets are in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
