"""The console command `tim-jax NAME …`, the same as `python -m tim_jax NAME …` and `python -m tim_jax.NAME …`.

It imports nothing but the command that is asked for, so that `tim-jax --help` answers at once.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from tim_jax.system import streams
from tim_jax.system.exit_codes import DONE, USER_ERROR

# Every command and what it does, in the order in which a newcomer meets them.
COMMANDS = {
    "train": "trains a model in a workdir, or goes on with its training",
    "sample": "draws images from a trained run at several step counts, from labels, prompts or images",
    "evaluate": "measures a trained run at every step count, or exports samples for published evaluations",
    "diagnose": "shows errors and derivatives of a trained run by time and interval",
    "report": "makes one HTML page of a run or of an ablation: samples, curves, tables",
    "grid": "finds the step grids that suit a trained run best, or learns a plan of sampling for it",
    "inspect": "shows the buckets and the first batches of a data set",
    "encode": "encodes a data set once, to shards that training reads",
    "pairs": "samples pairs of noise and image from a trained run, for rectified flow's reflow",
    "classify": "trains a small classifier of a data set, by which rewards judge samples",
    "prefer": "says which of pairs of samples a reward prefers, to train on them or to compare two runs",
    "search": "shows what searches for samples of a high reward are worth, by network evaluations",
    "convert": "imports official weights into a workdir, and exports a workdir's weights",
    "ablate": "trains variants of one configuration at equal cost and compares them",
    "plan": "plans a run for devices that are not there: memory, speed, largest batch",
    "bench": "measures speed: of steps, sampling, compilation, attention, data, faults",
    "verify": "says whether this machine trains rightly, and how fast",
}


def module_of(name: str) -> str:
    """The module whose `main(argv)` is the command: one beside the rooms, or the `__main__` of a room."""
    rooms = ("report", "plan", "bench")
    return f"tim_jax.{name}.__main__" if name in rooms else f"tim_jax.{name}"


def help_text() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tim-jax NAME …, the same as python -m tim_jax.NAME …",
            "",
            *lines,
            "",
            "tim-jax NAME --help lists a command's arguments.",
        ]
    )


def main(argv: list[str] | None = None) -> int | None:
    """Runs the command that `argv` begins with on the arguments that follow.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        What the command returns: an exit code, or None for 0.

    Raises:
        SystemExit: with code 2 for a name that is no command, and as the command raises it.
    """
    streams.keep_going()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a line goes on
        from tim_jax.config import completion

        completion.answer(COMMANDS, lambda name: importlib.import_module(module_of(name)).parser())
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"error: {name}: no such command; did you mean {near}? tim-jax --help lists them", file=sys.stderr)
        raise SystemExit(USER_ERROR)
    command: Callable[[list[str]], int | None] = importlib.import_module(module_of(name)).main
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
