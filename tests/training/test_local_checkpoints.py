"""The second tier of checkpoints: what is believed, in one process; real processes of which one has lost its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers.configs import TINY_NETWORK, flags, tiny_config
from tests.helpers.devices import for_devices
from tests.helpers.launch import ROOT
from tests.helpers.workdirs import told
from tim_jax import train
from tim_jax.bench import faults
from tim_jax.config.build import build
from tim_jax.training import checkpoints, local_checkpoints, loop, parts
from tim_jax.training.local_checkpoints import LocalCheckpoints, Tier
from tim_jax.training.settings import CheckpointSettings

VALUES = {
    "half": jnp.arange(16, dtype=jnp.bfloat16).reshape(8, 2) - 7.5,
    "zero": jnp.array([-0.0, 0.0] * 4),
    "step": jnp.int32(7),
    "flags": jnp.arange(8) % 3 == 0,
}
SPECS = {"half": ("fsdp",), "zero": (), "step": (), "flags": ("data",)}


def on(data, fsdp, first=0):
    """The state of `VALUES` on a mesh of these sizes, from the first device on, and its abstract tree."""
    devices = np.array(jax.devices()[first : first + data * fsdp]).reshape(data, fsdp)
    mesh = Mesh(devices, ("data", "fsdp"))
    shardings = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in SPECS.items()}
    state = {name: jax.device_put(value, shardings[name]) for name, value in VALUES.items()}
    return state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def saved(folder, *steps, base=0):
    """Local checkpoints of these steps, on a mesh of 2 × 2."""
    local = LocalCheckpoints(folder)
    for step in steps:
        local.save(step, on(2, 2)[0], base, 1.5)
        local.wait()
    assert not local.failures and local.saved == steps[-1] and local.seconds >= local.proof_seconds > 0
    return local


def folders(folder):
    return sorted(path.name for path in (folder / "0").iterdir()) if (folder / "0").exists() else []


def test_a_state_comes_back_bit_for_bit_on_devices_that_cut_it_alike(tmp_path):
    local = saved(tmp_path, 7)
    there, abstract = on(2, 2, first=4)
    state, about = LocalCheckpoints(tmp_path).restore(abstract, 0, 0)
    assert bits(state) == bits(VALUES) and about["productive_seconds"] == 1.5
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, there)))
    assert local.restore(on(1, 4)[1], 0, 0) is None and folders(tmp_path) == [], "parts of another size"


def test_each_part_is_written_once_however_many_devices_hold_it():
    here = parts.held(on(2, 2)[0])
    assert sorted(here) == ["flags[0:4]", "flags[4:8]", "half[0:4,0:2]", "half[4:8,0:2]", "step[]", "zero[0:8]"]


def test_the_step_before_stays_until_all_have_the_new_one(tmp_path):
    local = saved(tmp_path, 3, 5, 7)
    assert folders(tmp_path) == ["5", "7"]
    for path in ("0/9.new", "1/5", "1/7", "1/9.new"):  # of a save that was killed, and of another process
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    local.save(11, on(2, 2)[0], None, 0.0)
    local.wait()
    assert folders(tmp_path) == ["11", "7"] and sorted(path.name for path in tmp_path.glob("1/*")) == ["7", "9.new"]
    local.clear()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "9.new"], "what another process is writing stays"
    shutil.rmtree(tmp_path / "1" / "9.new")
    local.clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("damage", ["short", "altered", "gone", "unread"])
def test_what_is_torn_is_not_believed(damage, tmp_path, caplog):
    saved(tmp_path, 5, 7)
    file = tmp_path / "0" / "7" / (local_checkpoints.ABOUT if damage == "unread" else local_checkpoints.PARTS)
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "altered":
        content[3] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-1])
    local = LocalCheckpoints(tmp_path)
    state, _ = local.restore(on(2, 2)[1], 0, 0)
    assert bits(state) == bits(VALUES) and local.saved == 5 and folders(tmp_path) == ["5"]
    assert "7 not used" in caplog.text


def test_a_checkpoint_of_the_workdir_that_is_newer_or_has_been_removed_counts(tmp_path):
    saved(tmp_path, 7, base=4)
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    for folder, after, known, found in ((tmp_path, 7, 7, False), (tmp_path.with_name("copy"), 2, 2, False)):
        assert (LocalCheckpoints(folder).restore(on(2, 2)[1], after, known) is not None) == found
        assert folders(folder) == [], "the run has gone another way"
    saved(tmp_path, 7, base=4)
    assert LocalCheckpoints(tmp_path).restore(on(2, 2)[1], 2, 4) is not None, (
        "the one of step 4 is damaged, not removed"
    )


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    local = LocalCheckpoints(tmp_path)
    local.save(3, on(2, 2)[0] | {"zero": jnp.array([1.0, jnp.nan])}, 0, 0.0)
    assert local.failures == ["the local checkpoint of step 3 could not be written: zero is not finite"]
    assert local.saved is None and folders(tmp_path) == []


def test_none_is_begun_before_all_have_written_the_last_one(tmp_path):
    """With several processes what others say comes one step late; then what was said before a save does not count."""
    tier = Tier(LocalCheckpoints(tmp_path), CheckpointSettings(local="/x", local_every=2))
    due = []
    for step, busy in enumerate([False, False, False, True, True, False, False], 1):
        due.append(tier.due(step, False, busy))
        if due[-1]:
            tier.save(step, on(2, 2)[0], None, 0.0)
    assert due == [False, True, False, False, False, True, False]
    assert Tier(None, CheckpointSettings()).flags(1) == (False, False)


def both_tiers(root, workdir, damaged, local, base):
    """A run whose workdir has checkpoints of these steps, of which some are damaged, and hosts one of another step.

    Values tell the steps apart: "step" is that of the state.
    """
    manager = checkpoints.open_manager(epath.Path(root / "run"), 100)
    with contextlib.closing(checkpoints.Saver(manager)) as saver:
        for step in workdir:
            saver.save(step, on(2, 2)[0] | {"step": jnp.int32(step)}, {})
        saver.wait()
        assert saver.failures == [] and checkpoints.latest_good(manager) == (max(workdir), {})
    for step in damaged:
        (kept,) = (root / "run" / "checkpoints" / str(step)).glob("manifest-*")
        kept.write_text(kept.read_text().replace("a", "b", 1))
    here = LocalCheckpoints(root / "local")
    for step in local:
        here.save(step, on(2, 2)[0] | {"step": jnp.int32(step)}, base, 1.5)
        here.wait()
    assert here.failures == []


def begun(root, local=True):
    """The step that a start goes on from, 0 for a first state."""
    state, abstract = on(2, 2)
    trainer = types.SimpleNamespace(abstract=abstract)
    with contextlib.closing(checkpoints.open_manager(epath.Path(root / "run"), 100)) as manager:
        own = LocalCheckpoints(root / "local") if local else None
        found, _ = loop.latest_state(trainer, manager, lambda: state | {"step": jnp.int32(0)}, own)
    assert bits({**found, "step": VALUES["step"]}) == bits(VALUES)
    return int(found["step"])


def entries(folder):
    return sorted(int(path.name) for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    "workdir, damaged, local, base, step",
    [
        ([4, 6], [4, 6], [9], 6, 9),  # after all of the workdir's
        ([4, 6], [4, 6], [5], 4, 5),  # between them
        ([4], [4], [2], 0, 2),  # before them
        ([4], [4], [2, 3], 0, 3),
        ([4, 6], [6], [9], 6, 9),  # where the workdir has an older good one
        ([4, 6], [6], [3], 0, 4),  # which is later than the local one
    ],
)
def test_a_start_goes_on_from_the_newest_good_state_of_both_tiers(
    workdir, damaged, local, base, step, tmp_path, caplog, capsys
):
    both_tiers(tmp_path, workdir, damaged, local, base)
    assert begun(tmp_path) == step
    for each in damaged:
        assert f"checkpoint of step {each} not used: manifest-0-of-1.sha256 is altered; now in" in caplog.text
    assert (f"the state is that of the local checkpoint of step {step}\n" in capsys.readouterr().out) == (step in local)
    assert entries(tmp_path / "run" / "damaged") == damaged
    assert entries(tmp_path / "run" / "checkpoints") == sorted({*workdir} - {*damaged})
    assert begun(tmp_path) == step, "also where that start was killed before it had saved anything"


def test_where_all_of_both_tiers_are_damaged_nothing_is_touched(tmp_path, caplog):
    both_tiers(tmp_path, [4, 6], [4, 6], [9], 6)
    file = tmp_path / "local" / "0" / "9" / local_checkpoints.PARTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    for has_local, said in ((True, "nor is there a local checkpoint"), (False, r"step 4: .* is altered\)$")):
        with pytest.raises(checkpoints.DamagedCheckpoints, match=said) as error:
            begun(tmp_path, has_local)
        assert sorted(error.value.wrong) == [4, 6]
    assert f"{file.parent} not used: {file.name} is altered" in caplog.text
    assert entries(tmp_path / "run" / "checkpoints") == [4, 6] and not (tmp_path / "run" / "damaged").exists()
    file.write_bytes(whole)  # as a host that comes back
    assert begun(tmp_path) == 9


def test_a_run_that_somebody_has_taken_back_does_not_go_on_from_what_came_later(tmp_path):
    both_tiers(tmp_path, [4, 6], [], [9], 6)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert begun(tmp_path) == 4 and folders(tmp_path / "local") == []


@pytest.mark.parametrize(
    "local, said",
    [
        ("gs://bucket/local", "must be a path on a disk of this machine"),
        ("{here}/file", "must be a folder, and {here}/file is none"),
        (
            "./local",
            "must be a path from the root, such as '{here}/local', which is the same wherever a process is started",
        ),
    ],
)
def test_a_folder_that_is_not_the_same_one_of_this_host_is_refused(local, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    local, said = (text.format(here=tmp_path) for text in (local, said))
    words = ["--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.checkpoint.local={local}"]
    assert told(train.main, words, capsys) == f"error: checkpoint.local is {local!r}; it {said}"
    assert told(train.main, [*words, "--check"], capsys) == f"error: checkpoint.local is {local!r}; it {said}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def hosts(root, data, fsdp, do):
    """What two processes say that save, until they are killed, or that restore."""
    logs, running = [root / f"{do}{index}.txt" for index in range(2)], []
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    for index, path in enumerate(logs):
        words = [address, str(index), str(root / f"local{index}"), str(data), str(fsdp), do]
        command = [sys.executable, "-m", "tests.helpers.host_process", *words]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": for_devices(2)}
        with path.open("w") as log:
            running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    end = time.monotonic() + 600
    while do == "save" and not all("ready []" in path.read_text() for path in logs) and time.monotonic() < end:
        time.sleep(0.02)
    for process in running if do == "save" else ():
        process.send_signal(signal.SIGKILL)
    codes = [process.wait(600) for process in running]
    said = [path.read_text() for path in logs]
    assert codes == ([-signal.SIGKILL] * 2 if do == "save" else [0, 0]), said
    return said


@pytest.mark.slow
def test_a_host_that_has_lost_its_own_is_sent_the_parts_that_the_other_holds(tmp_path):
    """With data parallelism over hosts each has all; with parameters spread over hosts some are gone."""
    for data, fsdp, result in ((2, 2, "bit-equal"), (1, 4, "nothing")):
        root = tmp_path / result
        root.mkdir()
        hosts(root, data, fsdp, "save")
        shutil.rmtree(root / "local1")
        torn = root / "local0" / "0" / "9"
        shutil.copytree(torn.with_name("7"), torn)
        os.truncate(torn / local_checkpoints.PARTS, 20)
        lead, other = hosts(root, data, fsdp, "restore")
        assert lead.splitlines()[-1] == other.splitlines()[-1] == result
        assert f"{torn} not used: {local_checkpoints.PARTS} is altered" in lead
        if result == "bit-equal":
            assert "that of the local checkpoint of step 7; 0.0 MB were sent to processes that lacked them" in lead
        else:
            assert "the local checkpoint of step 7 is not used: 2 of the 6 parts of the state are on no host" in lead


SMALL = TINY_NETWORK | {
    "data.batch_size": 8, "optimizer.warmup_steps": 0, "optimizer.schedule": "constant", "training.sample_every": 0,
    "training.sample_steps": 1, "training.log_every": 1, "checkpoint.every": 1000000, "checkpoint.local_every": 2,
    "mesh.data": 2, "mesh.fsdp": 2,
}  # fmt: skip


class Two:
    """Two processes of two devices each, which have hosts of their own: folders local0 and local1."""

    def __init__(self, root, data, name, steps):
        with socket.create_server(("127.0.0.1", 0)) as found:
            address = f"127.0.0.1:{found.getsockname()[1]}"
        self.logs = [root / f"{name}-{steps}-{index}.txt" for index in range(2)]
        common = ["--config=digits", f"--workdir={root / name}", *flags(SMALL | {"loader.directory": data})]
        self.running = []
        for index, path in enumerate(self.logs):
            own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
            own |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": for_devices(2)}
            own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            words = [f"--config.training.steps={steps}", f"--config.checkpoint.local={root / f'local{index}'}"]
            with path.open("w") as log:
                command = [sys.executable, "-m", "tim_jax.train", *common, *words]
                self.running.append(subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log))

    def said(self):
        return "\n".join(path.read_text()[-4000:] for path in self.logs)

    def end(self):
        assert [process.wait(1800) for process in self.running] == [0, 0], self.said()
        return self.said()

    def kill(self):
        for process in self.running:
            process.send_signal(signal.SIGKILL)
        for process in self.running:
            process.wait()


@pytest.mark.nightly
def test_of_two_killed_processes_one_has_lost_its_host_and_both_go_on_from_the_local_step(tmp_path, data_directory):
    Two(tmp_path, data_directory, "run", 4).end()  # the workdir's checkpoint is that of step 4
    assert not list(tmp_path.glob("local*/*")), "nothing stays of a run that has ended"

    def steps(index):
        found = tmp_path.glob(f"local{index}/*/*/*")
        return {int(path.name) for path in found if path.name.isdigit()}

    killed = Two(tmp_path, data_directory, "run", 1000000)
    try:
        end = time.monotonic() + 1800
        while not all(max(steps(index), default=0) >= 8 for index in range(2)):
            assert all(process.poll() is None for process in killed.running), killed.said()
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        killed.kill()
    latest = max(steps(0))
    assert min(steps(0) & steps(1)) >= 6, "they have a step in common, whenever they are killed"

    shutil.rmtree(tmp_path / "local1")
    (own,) = tmp_path.glob("local0/*/0")
    torn = own / str(latest + 2)
    shutil.copytree(own / str(latest), torn)
    os.truncate(torn / local_checkpoints.PARTS, os.path.getsize(torn / local_checkpoints.PARTS) - 1)
    total = latest + 4
    said = Two(tmp_path, data_directory, "run", total).end()
    assert f"{torn} not used: {local_checkpoints.PARTS} is altered" in said
    assert f"the state is that of the local checkpoint of step {latest}; " in said and "MB were sent" in said
    assert f"going on from step {latest} of {total}" in said

    Two(tmp_path, data_directory, "whole", total).end()
    abstract = build(
        tiny_config(changes={k: str(v) for k, v in SMALL.items() if "mesh" not in k and "local" not in k}),
        jax.devices()[:1],
    )
    ends = [faults.state_leaves(tmp_path / name, abstract.trainer.abstract, total)[1] for name in ("run", "whole")]
    assert ends[0] == ends[1] and len(ends[0]) > 20
