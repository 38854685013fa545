"""Ablations of networks that take seconds, as files and command lines."""

from tests.helpers.configs import TINY_NETWORK, tiny_config
from tests.helpers.workdirs import told
from tim_jax import ablate

TINY = {
    **TINY_NETWORK,
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.steps": "4", "optimizer.decay_steps": "4",
    "evaluation.num_samples": "16", "checkpoint.every": "4", "training.log_every": "4",
}  # fmt: skip
FILE = """
from tim_jax.config import loading
from tim_jax.ablation import Ablation


def get_ablation():
    base = loading.load("digits").get_config()
    return Ablation(base, {variants}, equal="{equal}", seeds={seeds}, sampler_steps=(1, 2), baselines={baselines})
"""


def tiny(**more):
    return tiny_config(changes=TINY | {name.replace("__", "."): value for name, value in more.items()})


def write_file(folder, variants, equal="steps", seeds=1, baselines=None):
    path = folder / "tiny.py"
    path.write_text(FILE.format(variants=variants, equal=equal, seeds=seeds, baselines=baselines or {}))
    return path


def arguments(folder, **more):
    values = TINY | {"loader.directory": folder / "data"} | more
    return [f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'runs'}"] + [
        f"--config.{key}={value}" for key, value in values.items()
    ]


def fails(words, capsys):
    return told(ablate.main, words, capsys)


# What a file says.
