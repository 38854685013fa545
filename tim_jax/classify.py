"""python -m tim_jax.classify --config=configs/digits.py --out=FILE.safetensors [--steps=1000] [--config.…=…]

Trains a small classifier on the examples of a configuration, images or latents, and writes it to FILE: what
--config.objective.reward.name=classifier and similarity judge by, with --config.objective.reward.classifier=FILE.
"""

import argparse

from tim_jax.config.command_line import MOST, Parser, load_config, user_errors

STEPS = 1000


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.classify", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_config(required=True, help="a configuration of the data, such as configs/digits.py")
    made.add_argument("--out", required=True, help="the file that is written, FILE.safetensors")
    made.add_argument("--steps", type=int, default=STEPS, help="training steps; default: %(default)s")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        if not args.out.endswith(".safetensors"):
            raise ValueError(f"--out is {args.out!r}; it must end in .safetensors")
        if not 1 <= args.steps <= MOST:
            raise ValueError(f"--steps is {args.steps}; it must be at least 1 and at most {MOST}")

    import jax

    from tim_jax.config.build import build
    from tim_jax.runs import classifying
    from tim_jax.runs.counting import counted
    from tim_jax.system import cluster, compilation_cache, devices, paths

    with user_errors():
        cluster.join()
        out = paths.new_file(args.out, "--out")
        run = build(counted(load_config(args.config, overrides)))
        classifying.check(run)
        compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
        devices.announce()
        said = classifying.fit(run, args.steps, out)
    if jax.process_index() == 0:
        print(f"{said}; the classifier is in {out}")


if __name__ == "__main__":
    main()
