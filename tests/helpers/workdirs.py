"""Workdirs that tests sample from: tiny networks with random weights that no training has made."""

import contextlib
import re

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import conversion
from tim_jax.training import sharding

TINY = {
    **TINY_NETWORK,
    "model.patch_size": "4", "data.height": "16", "data.width": "16",
}  # fmt: skip
PROGRESS = re.compile(r"\[\d\d:\d\d<.*\]$| … \d+ s$| …$")  # a line of tim_jax.system.progress
TEXT = TINY | {"data.buckets.area": "256", "data.buckets.tokens": "256"}


@contextlib.contextmanager
def one_device():
    """Within it there is one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
        yield


def workdir(folder, name, **changes):
    """Makes `folder` a workdir of the configuration `name` at step 0, with weights that all inputs matter to."""
    with one_device():
        run = build(load_config(name, changes))
        rng = np.random.default_rng(0)
        shapes = run.trainer.abstract.params["online"]
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
        conversion.write_workdir(run, params, "nothing", epath.Path(folder))
    return folder


def told(main, arguments, capsys):
    """The one line in which a command tells a user's mistake, beside lines of progress, which a slow machine writes."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line and not PROGRESS.search(line)]
    assert stop.value.code == 2 and len(lines) == 1, error
    return lines[0]


def contents(folder):
    """{path: when it was last written} of all below a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
