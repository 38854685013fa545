"""A toy objective that learns from teachers, and runs that train with it, for the tests of both."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device, workdir
from tim_jax import train as command
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import training
from tim_jax.training import checksums, sharding
from tim_jax.transitions.derivative import query
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Auxiliary

STUDENT = {
    "objective.name": "taught", **TINY_NETWORK, "model.patch_size": "4", "data.batch_size": "16", "training.steps": "2",
    "training.log_every": "1", "training.sample_steps": "(1,)", "optimizer.warmup_steps": "0",
    "optimizer.weight_decay": "0.0", "ema.slow": "0.5",
}  # fmt: skip
# Another width, depth and patch size than the student's.
TEACHER = STUDENT | {
    "objective.name": "flow_matching", "model.width": "32", "model.depth": "2", "model.patch_size": "2",
    "model.dropout": "0.5", "data.features_width": "3", "model.remat": "full",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Taught(Objective):
    """F is drawn to the teacher's, less a tenth of the weaker's; that of the score to the row itself, `scale` times."""

    asks: tuple[str, ...] = ("teacher",)
    beside: tuple[str, ...] = ()
    group: int = 1
    scale: float = 1.0
    teachers = property(lambda self: self.asks)
    auxiliary = property(lambda self: dict.fromkeys(self.beside, Auxiliary()))
    batch_multiple = property(lambda self: self.group)

    def loss(self, nets, rows, t, r, step, key=None):
        asked = (query(self.transport, interpolate(self.transport, rows.x, rows.noise, t), t, t, rows.condition),)
        told = {name: nets[name](asked)[0].F for name in ("online", *self.asks, *self.beside)}

        def distance(F, target):
            return jnp.mean((F - jax.lax.stop_gradient(target)) ** 2, axis=(1, 2, 3))

        target = told["teacher"] - 0.1 * told.get("weaker", 0.0)
        error, zero = distance(told["online"], target), jnp.zeros_like(t)
        loss, level = error, self.transport.level(t)
        metrics = dict(error=error, denoising=error, alignment=zero, tangent=zero, t=t, r=t)
        metrics |= dict(level_t=level, level_r=level)
        for part in self.beside:
            metrics[part] = distance(told[part], rows.x)
            loss = loss + self.scale * metrics[part]
        return loss, metrics


def taught(**fields):
    return lambda transport: Taught(transport, OBJECTIVES["flow_matching"](transport).times, **fields)


# By name, as tests put them into OBJECTIVES.
TOYS = {
    "taught": taught(),
    "taught_away": taught(asks=("teacher", "weaker")),
    "in_fours": taught(group=4),
    "scored": taught(beside=("score",)),
    "scored_loudly": taught(beside=("score",), scale=1e4),
}


# Fixtures, for the files that import them.


@pytest.fixture(autouse=True, name="objectives")
def toys(monkeypatch):
    for name, make in TOYS.items():
        monkeypatch.setitem(OBJECTIVES, name, make)


@pytest.fixture(scope="module", name="teacher")
def a_teacher(tmp_path_factory):
    """A workdir with a teacher at step 0."""
    return workdir(tmp_path_factory.mktemp("teacher") / "run", "digits_flow_matching", **TEACHER)


@pytest.fixture(scope="module", name="small")
def a_small_teacher(tmp_path_factory):
    """One with the student's own network."""
    made = STUDENT | {"objective.name": "flow_matching"}
    return workdir(tmp_path_factory.mktemp("small") / "run", "digits_flow_matching", **made)


@pytest.fixture(scope="module", name="data")
def a_data_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def changed(changes):
    return STUDENT | {name.replace("__", "."): str(value) for name, value in changes.items()}


def make_run(devices=1, **changes):
    config = load_config("digits_flow_matching", changed(changes))
    return build(config, jax.local_devices()[:devices])


def batch_of(run):
    return sharding.put_batch(run.mesh, made_up_batch(run.config, run.config.data.batch_size))


def train(folder, data, *arguments, **changes):
    """The real command, on one device."""
    flags = [f"--config.{name}={text}" for name, text in changed(changes).items()]
    with one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "can_draw", lambda run: False)
        command.main(
            ["--config=digits_flow_matching", f"--workdir={folder}", f"--config.loader.directory={data}", *flags]
            + list(arguments)
        )


def refused(folder, data, capsys, *arguments, **changes):
    """The one line of the command's error; warnings may come before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(folder, data, *arguments, **changes)
    said = capsys.readouterr().err
    lines = [line for line in said.strip().splitlines() if not line.startswith("warning: ")]
    assert stop.value.code == 2 and len(lines) == 1, said
    return lines[0]


def buffers(tree):
    return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for shard in x.addressable_shards]


def copied(source, to, step=0, **changes):
    """A copy of a workdir whose checkpoint, which gets a manifest again, records other values of its configuration."""
    shutil.copytree(source, to)
    folder = to / "checkpoints" / "0"
    (file,) = (path for path in (folder / "record").rglob("*") if path.is_file() and b'"config"' in path.read_bytes())
    record = json.loads(file.read_text())
    for key, value in changes.items():
        section, name = key.split("__")
        assert record["config"][section][name] != value
        record["config"][section][name] = value
    file.write_text(json.dumps(record))
    (folder / "manifest-0-of-1.sha256").unlink()
    checksums.write(epath.Path(folder))
    folder.rename(folder.with_name(str(step)))
    return to


def three_steps(run, state):
    """The state after three steps, on the host, and their metrics."""
    history = []
    for _ in range(3):
        state, metrics = run.trainer(state, batch_of(run))
        history.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), history
