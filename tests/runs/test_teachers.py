"""Frozen teachers: never changed, saved or donated; the same on every mesh; known again; refused if they do not fit."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import unflatten_dict

from tests.helpers.teachers import (  # noqa: F401 (fixtures)
    TEACHER,
    TOYS,
    a_data_folder,
    a_small_teacher,
    a_teacher,
    batch_of,
    buffers,
    changed,
    copied,
    make_run,
    refused,
    three_steps,
    toys,
    train,
)
from tests.helpers.workdirs import contents, one_device, workdir
from tim_jax import sample
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.network import initialiser
from tim_jax.plan import __main__ as planner
from tim_jax.plan import job
from tim_jax.plan.memory import Memory, shard_bytes
from tim_jax.runs.teachers import check_same, record, with_teachers
from tim_jax.system.topologies import topology
from tim_jax.training import checkpoints, checksums, names, warm_start
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Query


def asked(run, name="teacher"):
    """F of a frozen network of the run on made-up rows, on the host."""
    batch = batch_of(run)
    time = jnp.full(len(batch["x"]), 0.4)
    net = run.trainer.step.nets[name]
    with jax.set_mesh(run.mesh):
        ask = jax.jit(lambda params: net(params)((Query(batch["x"], time, time, {"label": batch["label"]}),))[0].F)
        return jax.device_get(ask(run.trainer.frozen_params[name]))


@pytest.fixture(scope="module")
def after_three_steps(teacher):
    """A run with a teacher, its state after three steps and their metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "taught", TOYS["taught"])
        run = with_teachers(make_run(teacher__checkpoint=teacher))
        params = run.trainer.frozen_params["teacher"]
        before, lies = jax.device_get(params), buffers(params)
        end, history = three_steps(run, run.trainer.create())
    assert run.trainer.frozen_params["teacher"] is params and buffers(params) == lies
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), before)
    return run, end, history


@pytest.mark.slow
def test_a_teacher_is_asked_and_never_changed_or_saved(teacher, after_three_steps, tmp_path, data, capsys):
    run, end, history = after_three_steps
    assert len({told["loss"] for told in history}) == 3 and history[0]["loss"] > 0
    assert set(end.params) == {"online"} and set(end.emas) == {"slow"}
    before, batch = jax.device_get(run.trainer.frozen_params["teacher"]), batch_of(run)

    # What is asked is the network of the teacher's own run, with the weights of its average.
    saved = warm_start.find(str(teacher), "start.checkpoint")
    with one_device():
        own = build(load_config("digits_flow_matching", TEACHER))
    abstract = names.by_name(own.trainer.abstract.emas["slow"])
    weights = warm_start.read_weights(saved, "slow", abstract)
    kept = names.by_name(before)
    left_out = {name for name in abstract if name.startswith("projector")}
    assert kept.keys() == abstract.keys() - left_out and left_out, "what training alone needed is not read"
    for name in kept:
        np.testing.assert_array_equal(kept[name], weights[name])
    time, tree = jnp.full(16, 0.4), unflatten_dict(weights, sep="/")
    (output,) = own.network.apply({"params": tree}, (Query(batch["x"], time, time, {"label": batch["label"]}),))
    assert np.abs(asked(run)).max() > 0.1
    np.testing.assert_allclose(asked(run), output.F, atol=1e-5)

    # Nor does a checkpoint hold any of it, while it says what it was.
    train(tmp_path / "run", data, teacher__checkpoint=teacher)
    found = warm_start.find(str(tmp_path / "run"), "--workdir")
    with checkpoints.opened(found.directory, whole=False) as manager:
        tree = manager.item_metadata(found.step)["state"]
    shapes = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
    assert shapes == sorted(leaf.shape for leaf in jax.tree.leaves(run.trainer.abstract))
    record = warm_start.record(found)["teachers"]["teacher"]
    assert record["path"] == f"{teacher}/checkpoints/0" and record["which"] == "slow"
    starts = (tmp_path / "run" / "starts.jsonl").read_text()
    assert json.loads(starts)["teachers"]["teacher"] == record

    train(tmp_path / "nothing", data, "--check", teacher__checkpoint=teacher)
    assert "one step of 16 examples" in capsys.readouterr().out and not (tmp_path / "nothing").exists()

    # A student is sampled without its teacher.
    moved = workdir_without(tmp_path / "run", "nowhere")
    with one_device():
        sample.main([f"--workdir={moved}", "--steps=1", "--labels=1", f"--out={tmp_path / 'out'}"])
    assert list((tmp_path / "out").iterdir())


def workdir_without(folder, path):
    """The workdir with a configuration whose teacher is not there."""
    config = json.loads((folder / "config.json").read_text())
    config["teacher"]["checkpoint"] = path
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_a_teacher_is_sharded_like_the_student_and_says_the_same(teacher, after_three_steps):
    one, _, history = after_three_steps
    eight = with_teachers(make_run(8, mesh__data=1, mesh__fsdp=8, teacher__checkpoint=teacher))
    np.testing.assert_allclose(asked(eight), asked(one), atol=1e-5)
    _, metrics = eight.trainer(eight.trainer.create(), batch_of(eight))
    assert float(metrics["loss"]) == pytest.approx(history[0]["loss"], rel=1e-5)
    params = names.by_name(eight.trainer.frozen_params["teacher"])
    boxed = nn.get_partition_spec(jax.eval_shape(initialiser(one.config, one.network), jax.random.key(0)))
    embedded = {name for name, spec in names.by_name(boxed).items() if "embed" in spec}
    for name, leaf in params.items():
        split = 8 if name in embedded else 1
        assert [shard.data.nbytes for shard in leaf.addressable_shards] == [leaf.nbytes // split] * 8, name
    assert sum(leaf.nbytes for name, leaf in params.items() if name in embedded) > 5e4


@pytest.mark.slow
def test_a_teacher_in_half_the_bytes(teacher, after_three_steps):
    whole, _, _ = after_three_steps
    half = with_teachers(
        make_run(2, mesh__data=1, mesh__fsdp=2, teacher__checkpoint=teacher, teacher__dtype="bfloat16")
    )
    params = half.trainer.frozen_params["teacher"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b).astype(jnp.bfloat16)),
        params,
        whole.trainer.frozen_params["teacher"],
    )
    a, b = asked(half), asked(whole)
    assert a.dtype == np.float32 and 1e-4 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


@pytest.mark.slow
def test_a_network_that_is_told_its_guidance_is_told_that_there_is_none(tmp_path):
    told = TEACHER | {"objective.name": "improved_mean_flow", "data.features_width": "0"}
    folder = workdir(tmp_path / "told", "digits_flow_matching", **told)
    run = with_teachers(make_run(teacher__checkpoint=folder))
    with one_device():
        own = build(load_config("digits_flow_matching", told))
    assert own.network.guidance_input and own.network.output_heads
    batch, time = batch_of(run), jnp.full(16, 0.4)
    saved = warm_start.find(str(folder), "start.checkpoint")
    weights = warm_start.read_weights(saved, "slow", names.by_name(own.trainer.abstract.emas["slow"]))
    condition = {"label": batch["label"], "guidance": jnp.tile(jnp.array([[1.0, 0.0, 1.0]]), (16, 1))}
    tree = unflatten_dict(weights, sep="/")
    (output,) = own.network.apply({"params": tree}, (Query(batch["x"], time, time, condition),))
    np.testing.assert_allclose(asked(run), output.F, atol=1e-5)


@pytest.mark.nightly
def test_a_run_knows_its_teacher_again(teacher, tmp_path, data, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(teacher, moved)
    copied(teacher, other, training__steps=7)  # another byte in one file
    train(tmp_path / "run", data, teacher__checkpoint=teacher)
    before = contents(tmp_path / "run")

    said = refused(tmp_path / "run", data, capsys, teacher__checkpoint=other, training__steps=3)
    one, two = (checksums.fingerprint(epath.Path(folder) / "checkpoints" / "0")[:12] for folder in (other, teacher))
    assert f"teacher.checkpoint is {other}/checkpoints/0 (fingerprint {one})" in said and one != two
    assert f"{teacher}/checkpoints/0 (fingerprint {two})" in said and "workdir" in said
    given = dict(checkpoint__resume=tmp_path / "run", training__steps=3)
    assert one in refused(tmp_path / "new", data, capsys, teacher__checkpoint=other, **given)
    assert contents(tmp_path / "run") == before and not (tmp_path / "new").exists()

    # The same at another place, which is recorded from then on.
    train(tmp_path / "run", data, teacher__checkpoint=moved, training__steps=3)
    saved = warm_start.find(str(tmp_path / "run"), "--workdir")
    assert saved.step == 3 and warm_start.record(saved)["teachers"]["teacher"]["path"] == f"{moved}/checkpoints/0"
    train(tmp_path / "new", data, teacher__checkpoint=moved, **given | dict(training__steps=4))
    assert warm_start.find(str(tmp_path / "new"), "--workdir").step == 4

    # The teacher trains on: a workdir then means another checkpoint, and the one from before has to be named.
    shutil.copytree(other / "checkpoints" / "0", moved / "checkpoints" / "5")
    said = refused(tmp_path / "run", data, capsys, teacher__checkpoint=moved, training__steps=4)
    assert f"{moved}/checkpoints/5" in said and f"{moved}/checkpoints/0" in said and "trained on" in said
    train(tmp_path / "run", data, teacher__checkpoint=moved / "checkpoints" / "0", training__steps=4)
    assert warm_start.find(str(tmp_path / "run"), "--workdir").step == 4


def test_a_fingerprint_does_not_depend_on_who_wrote_the_manifests(tmp_path):
    found = []
    for count in (1, 3):
        folder = epath.Path(tmp_path / str(count))
        folder.mkdir()
        for name in "abcde":
            (folder / name).write_text(name)
        for process in range(count):
            checksums.write(folder, process, count)
        found.append(checksums.fingerprint(folder))
    assert found[0] == found[1] is not None
    (tmp_path / "3" / "manifest-1-of-3.sha256").unlink()
    assert checksums.fingerprint(folder) is None


@pytest.mark.nightly
def test_a_weaker_teacher_is_one_more(teacher, small, data, tmp_path):
    given = dict(objective__name="taught_away", teacher__checkpoint=teacher, teacher__guidance=2.0)
    given |= dict(teacher__weak_checkpoint=small, teacher__weak_ema="online")
    train(tmp_path / "run", data, **given)
    saved = warm_start.find(str(tmp_path / "run"), "--workdir")
    recorded = warm_start.record(saved)["teachers"]
    assert {name: (about["path"], about["which"]) for name, about in recorded.items()} == {
        "teacher": (f"{teacher}/checkpoints/0", "slow"), "weaker": (f"{small}/checkpoints/0", "online"),
    }  # fmt: skip
    # One less, or one more, is another teaching.
    one, two = with_teachers(make_run(teacher__checkpoint=teacher)), with_teachers(make_run(**given))
    with pytest.raises(
        ValueError, match=f"^teacher.weak_checkpoint is '', but {saved} learnt from {small}/checkpoints/0 "
    ):
        check_same(one, {"teachers": recorded}, saved)
    with pytest.raises(
        ValueError, match=f"^teacher.weak_checkpoint is {small}/checkpoints/0 .*, but {saved} learnt from ''"
    ):
        check_same(two, record(one), saved)
    check_same(two, {"teachers": recorded}, saved)
    check_same(two, {}, saved)  # weights that were imported have learnt from none


@pytest.mark.nightly
def test_the_planner_counts_what_a_teacher_needs(teacher, capsys, tmp_path):
    small = changed(dict(mesh__data=2, mesh__fsdp=4, teacher__checkpoint=teacher))
    run = with_teachers(build(load_config("digits_flow_matching", small), jax.local_devices()))
    leaves = jax.tree.leaves(run.trainer.frozen_params)
    here = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device.id == 0)
    assert shard_bytes(run.trainer.abstract_frozen) == here < sum(leaf.nbytes for leaf in leaves)

    # A configuration in the place of weights that are not there.
    file = tmp_path / "teacher.py"
    file.write_text(
        "from tim_jax.config import command_line\n"
        f"def get_config():\n    return command_line.load_config('digits_flow_matching', {TEACHER!r})\n"
    )
    flags = [f"--config.{name}={text}" for name, text in small.items() if name != "teacher.checkpoint"]
    main = ["--config=digits_flow_matching", "--topology=cpu:8,cpu:8", *flags]
    assert planner.main([*main, f"--teacher={file}", f"--json={tmp_path / 'plan.json'}"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"  teachers     {here / 2**30:9.3f}\n") == 2
    assert any("EMAs" in line and "teachers" in line for line in out.splitlines()), "the table of comparison"
    plan = json.loads((tmp_path / "plan.json").read_text())[0]
    assert plan["memory"]["teachers"] == here
    assert plan["memory"]["total"] == sum(plan["memory"][field.name] for field in dataclasses.fields(Memory))

    for arguments, words in (
        ([], ["--teacher: missing", "'taught' learns from a teacher"]),
        ([f"--teacher={file}", "--config.objective.name=flow_matching"], ["learns from no teacher", "--teacher is"]),
        ([f"--teacher={file}", "--config.data.channels=3"], ["--teacher is", "data.channels, 3, and has 1"]),
    ):
        with pytest.raises(SystemExit) as stop:
            planner.main(main + arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        for word in words:
            assert word in error, error
    found = job.models_of(run.config, None, topology("cpu:8"))
    assert found["teacher"].config.model.width == 32, "the weights' own configuration where there is no other"
