"""The launch scripts, run with stand-ins for what they book and start."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
STAND_INS = ROOT / "tests" / "stand_ins"


def bash(script, *arguments, timeout=120, **environ):
    """A launch script's run, with the stand-ins first on PATH and no variable of a real cluster."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COORD", "JAX_PRO"))}
    own |= {"PATH": f"{STAND_INS}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=own | environ, capture_output=True, text=True, timeout=timeout
    )
