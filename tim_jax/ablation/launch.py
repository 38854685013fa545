"""The commands of an ablation: one for every run, for this machine or for a cluster."""

import re
import shlex
from collections.abc import Collection, Iterable, Sequence

from tim_jax.ablation.settings import Member

KINDS = ("print", "slurm", "kubernetes")
# A job's name, which schedulers, file names and host names take.
NAMES = {"slurm": re.compile(r"[a-z0-9][a-z0-9.-]*"), "kubernetes": re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")}
MAX_NAME = 40  # characters of a JobSet's name, so that those of its hosts stay below the limit of 63


def check(kind: str) -> None:
    """Raises ValueError for a kind that is none of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"--launch is {kind!r}; it must be one of {', '.join(KINDS)}")


def commands(
    kind: str, title: str, arguments: Sequence[str], members: Iterable[Member], together: Collection[str] = ()
) -> list[str]:
    """Writes the lines of a shell script, to be run from the root of the repository.

    Args:
        kind: one of KINDS.
        title: of the ablation, after which jobs are named.
        arguments: of `python -m tim_jax.ablate`, without those that pick runs.
        members: the runs.
        together: variants whose runs are one job, as their learning rate is still to be found.

    Returns:
        A line for every run, then a comment and the command that makes the table.

    Raises:
        ValueError: for an unknown kind, a title that no job can be named after, or a name that is too long for
            Kubernetes.
    """
    check(kind)
    lines = []
    jobs = {member.variant if member.variant in together else str(member): member for member in members}
    for only, member in jobs.items():
        own = shlex.join([*arguments, f"--only={only}"])
        name = f"{title}-{member.variant}" + ("" if member.variant in together else f"-{member.seed}")
        name = name.replace("_", "-").lower()
        if kind in NAMES and not NAMES[kind].fullmatch(name):
            raise ValueError(
                f"--config is {title!r}; it must be of letters, digits, - and _, beginning with a letter, to name jobs"
            )
        if kind == "kubernetes" and len(name) > MAX_NAME:
            raise ValueError(f"variant {member.variant!r}: a JobSet would be {name}; at most {MAX_NAME} characters fit")
        lines.append(
            {
                "print": f"python -m tim_jax.ablate {own}",
                "slurm": f"MODULE=tim_jax.ablate sbatch --job-name={shlex.quote(name)} launch/slurm.sh {own}",
                "kubernetes": f"NAME={shlex.quote(name)} MODULE=tim_jax.ablate bash launch/kubernetes.sh {own}",
            }[kind]
        )
    return [*lines, "# when all have ended:", f"python -m tim_jax.ablate {shlex.join([*arguments, '--report'])}"]
