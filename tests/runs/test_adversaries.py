"""Runs with an adversary: its heads are made, kept, sharded, planned and taken up again; sampling needs none of it."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from tests.helpers.teachers import (  # noqa: F401 (fixtures)
    TEACHER,
    a_data_folder,
    a_small_teacher,
    a_teacher,
    buffers,
    changed,
    make_run,
    refused,
    three_steps,
    toys,
    train,
)
from tests.helpers.workdirs import one_device, told
from tim_jax import convert, evaluate, sample
from tim_jax.plan import __main__ as planner
from tim_jax.plan.memory import shard_bytes
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.training import warm_start

LADD = dict(
    objective__name="flow_matching", objective__adversary__weight=0.5, objective__adversary__blocks="(1, 2)",
    objective__adversary__width=8, objective__adversary__loss="hinge", objective__adversary__network__average=0.9,
)  # fmt: skip
DMD2 = dict(
    objective__name="rcm", objective__adversary__weight=0.5, objective__adversary__trunk="score",
    objective__adversary__trunk_weight=0.1, objective__adversary__blocks="(1,)", objective__adversary__width=8,
    objective__adversary__r1_weight=1.0, objective__rollout__from_noise=0.5,
)  # fmt: skip


@pytest.mark.slow
def test_heads_are_as_wide_as_the_trunk_and_stay_where_the_student_starts_from_weights(teacher, small, tmp_path):
    run = with_teachers(make_run(**LADD, teacher__checkpoint=teacher, start__checkpoint=small))
    first, state = jax.device_get(run.trainer.create()), first_state(run, epath.Path(tmp_path / "run"))()
    heads = state.params["discriminator"]
    assert heads.keys() == {"head_0", "head_1"} and heads["head_1"]["in"]["kernel"].shape == (32, 8)
    assert np.abs(heads["head_0"]["in"]["kernel"] - heads["head_1"]["in"]["kernel"]).max() > 0.1
    for tree in (heads, state.emas["discriminator_average"]):
        jax.tree.map(np.testing.assert_array_equal, tree, first.params["discriminator"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params["online"], state.params["online"])
    assert max(jax.tree.leaves(moved)) > 0.1
    assert len(set(buffers(state))) == len(buffers(state)), "a step donates all of them"


def test_a_teacher_without_these_blocks_is_refused(teacher, data, tmp_path, capsys):
    given = LADD | dict(objective__adversary__blocks="(2, 3)", teacher__checkpoint=teacher)
    said = refused(tmp_path / "run", data, capsys, **given)
    assert "objective.adversary.blocks is (2, 3); it must be ascending numbers of blocks in 1 … 2" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_is_taken_up_again_and_sampled_without_its_teacher(teacher, data, tmp_path, capsys):
    there = tmp_path / "teacher"
    shutil.copytree(teacher, there)
    given = LADD | dict(
        objective__adversary__network__updates=2, teacher__checkpoint=there,
        optimizer__decay_steps=4,  # 0 follows training.steps, which is another schedule for the first half
    )  # fmt: skip
    train(tmp_path / "whole", data, **given, training__steps=4)
    train(tmp_path / "run", data, **given, training__steps=2)
    train(tmp_path / "run", data, **given, training__steps=4)
    trainer = with_teachers(make_run(**given)).trainer
    first = jax.device_get(trainer.create())
    whole, again = (
        jax.device_get(warm_start.resume(warm_start.find(str(tmp_path / name), "--workdir"), trainer.abstract))
        for name in ("whole", "run")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    for here, before in (
        (whole.params, first.params),
        (whole.emas["discriminator_average"], first.params["discriminator"]),
    ):
        moved = traverse_util.flatten_dict(jax.tree.map(lambda a, b: np.abs(a - b).max(), here, before), sep="/")
        # While all logits lie within the hinges, data and samples pull the last biases equally.
        assert min(moved[name] for name in moved if not name.endswith("out/bias")) > 0

    shutil.rmtree(there)
    with one_device():
        sample.main([f"--workdir={tmp_path / 'run'}", "--steps=1", "--labels=1", f"--out={tmp_path / 'pictures'}"])
        few = ["--steps=1", "--seeds=1", "--config.evaluation.num_samples=10"]
        evaluate.main([f"--workdir={tmp_path / 'run'}", *few])
        convert.main(["export", str(tmp_path / "run"), str(tmp_path / "export")])
        capsys.readouterr()
        importing = ["import", str(tmp_path / "export"), str(tmp_path / "imported")]
        said = told(convert.main, importing, capsys)  # an export names no places
        assert said.startswith("error: teacher.checkpoint is 'teacher'; it must be a workdir with a checkpoint")
        assert not (tmp_path / "imported").exists()
        convert.main([*importing, f"--config.teacher.checkpoint={teacher}"])
    imported = warm_start.resume(warm_start.find(str(tmp_path / "imported"), "--workdir"), trainer.abstract)
    jax.tree.map(np.testing.assert_array_equal, imported.params["discriminator"], first.params["discriminator"])
    jax.tree.map(np.testing.assert_array_equal, imported.params["online"], whole.emas["slow"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LADD, DMD2], ids=["ladd", "dmd2"])
def test_a_mesh_gives_the_numbers_of_one_device(kind, teacher):
    given = kind | dict(teacher__checkpoint=teacher, model__patch_size=2)
    sizes = dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=1, mesh__sequence=2)
    (one, told_one), (eight, told_eight) = (
        three_steps(run, run.trainer.create())
        for run in (with_teachers(make_run(**given)), with_teachers(make_run(8, **given, **sizes)))
    )
    for a, b in zip(told_one, told_eight, strict=True):
        for name in ("loss", "adversary", "discriminator", "logit_data", "grad_norm_discriminator", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name
    assert told_one[-1]["grad_norm_discriminator"] > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3),
        one.params["discriminator"],
        eight.params["discriminator"],
    )


@pytest.mark.slow
def test_the_planner_knows_the_heads(teacher, tmp_path):
    here = changed(LADD | dict(mesh__data=2, mesh__fsdp=4))
    run = with_teachers(make_run(8, **LADD, mesh__data=2, mesh__fsdp=4, teacher__checkpoint=teacher))
    state = run.trainer.create()
    file = tmp_path / "teacher.py"
    file.write_text(
        "from tim_jax.config import command_line\n"
        f"def get_config():\n    return command_line.load_config('digits_flow_matching', {TEACHER!r})\n"
    )
    flags = [f"--config.{name}={text}" for name, text in here.items()]
    plan = [f"--teacher={file}", "--topology=cpu:8", f"--json={tmp_path / 'plan.json'}"]
    assert planner.main(["--config=digits_flow_matching", *flags, *plan]) == 0
    memory = json.loads((tmp_path / "plan.json").read_text())[0]["memory"]
    for part, tree in (("parameters", state.params), ("emas", state.emas), ("optimizer", state.opt_state)):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        assert memory[part] == sum(shard.data.nbytes for shard in shards if shard.device.id == 0)
    assert memory["parameters"] > shard_bytes(run.trainer.abstract_online)
