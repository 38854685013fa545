"""An ablation as commands that can be typed: one for every run, here or on a cluster."""

import shlex
from collections.abc import Iterable, Sequence

from tim_jax.ablation.settings import Member

KINDS = ("print", "slurm", "kubernetes")
LONGEST = 40  # of a JobSet's name, so that those of its hosts stay below the limit of 63


def commands(kind: str, title: str, arguments: Sequence[str], members: Iterable[Member]) -> list[str]:
    """Lines of a shell script, to be run from the root of the repository.

    title: of the ablation; jobs are named after it. arguments: of `python -m tim_jax.ablate`, without those that pick
    runs. Raises ValueError for a kind that is not there, or a name that is too long for Kubernetes.
    """
    if kind not in KINDS:
        raise ValueError(f"--launch is {kind!r}; it must be one of {', '.join(KINDS)}")
    lines = []
    for member in members:
        own = shlex.join([*arguments, f"--only={member}"])
        name = f"{title}-{member.variant}-{member.seed}".replace("_", "-").lower()
        if kind == "kubernetes" and len(name) > LONGEST:
            raise ValueError(f"variant {member.variant!r}: a JobSet would be {name}; at most {LONGEST} characters fit")
        lines.append(
            {
                "print": f"python -m tim_jax.ablate {own}",
                "slurm": f"MODULE=tim_jax.ablate sbatch --job-name={name} launch/slurm.sh {own}",
                "kubernetes": f"NAME={name} MODULE=tim_jax.ablate bash launch/kubernetes.sh {own}",
            }[kind]
        )
    return [*lines, "# when all have ended:", f"python -m tim_jax.ablate {shlex.join([*arguments, '--report'])}"]
