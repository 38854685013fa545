"""Networks that train beside the student: with gradients, clipping and memory of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tests.helpers.teachers import (  # noqa: F401 (fixtures)
    a_small_teacher,
    a_teacher,
    batch_of,
    buffers,
    make_run,
    three_steps,
    toys,
)
from tim_jax.runs import conversion
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.training import checkpoints, names, warm_start
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer
from tim_jax.types import Auxiliary


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.nightly
def test_a_score_learns_beside_the_student_and_does_not_move_it(teacher):
    run = with_teachers(make_run(objective__name="scored_loudly", teacher__checkpoint=teacher))
    state = run.trainer.create()
    first = jax.device_get(state.params["score"])
    jax.tree.map(np.testing.assert_array_equal, first, state.params["online"])
    end, history = three_steps(run, state)
    run_alone = with_teachers(make_run(teacher__checkpoint=teacher))
    alone, alone_history = three_steps(run_alone, run_alone.trainer.create())
    assert set(end.params) == {"online", "score"} and set(end.emas) == {"slow"}
    assert history[0]["grad_norm_score"] > 100 * history[0]["grad_norm"], "else clipping would have nothing to tell"
    for name in ("grad_norm", "update_norm"):
        assert [told[name] for told in history] == pytest.approx([told[name] for told in alone_history], rel=1e-4)
    assert_close((end.params["online"], end.emas), (alone.params["online"], alone.emas))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), end.params["score"], first)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert history[0]["score"] > 0
    assert "score" not in alone_history[0] and "grad_norm_score" not in alone_history[0]
    places = [[leaf.sharding for leaf in jax.tree.leaves(run.trainer.abstract.params[part])] for part in end.params]
    assert places[0] == places[1]


@pytest.mark.slow
def test_a_score_starts_as_the_student_does(teacher, small, tmp_path):
    run = with_teachers(make_run(objective__name="scored", teacher__checkpoint=teacher, start__checkpoint=small))
    state = first_state(run, epath.Path(tmp_path / "run"))()
    saved, abstract = (
        warm_start.find(str(small), "start.checkpoint"),
        names.by_name(run.trainer.abstract.params["score"]),
    )
    read = warm_start.read_weights(saved, "slow", abstract)
    for tree in (*state.params.values(), state.emas["slow"]):
        jax.tree.map(np.testing.assert_array_equal, names.by_name(tree), read)
    lies = buffers(state)
    assert len(set(lies)) == len(lies), "a step donates all of them"

    # Imported weights, too.
    conversion.write_workdir(run, state.params["online"], "nothing", epath.Path(tmp_path / "imported"))
    with checkpoints.opened(epath.Path(tmp_path / "imported" / "checkpoints"), whole=False) as manager:
        assert set(manager.item_metadata(0)["state"]["params"]) == {"online", "score"}


MATCHED = dict(
    objective__name="distribution_matching", objective__rollout__max_jumps=2, teacher__guidance=1.5,
    data__condition_dropout=0.1, optimizer__warmup_steps=6,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(objective__matching__network__average=0.9, objective__matching__network__learning_rate=2e-4),
        dict(objective__matching__gradient="sim", objective__matching__network__updates=2, optimizer__accumulation=2),
    ],
    ids=["averaged", "implicit"],
)
def test_alternating_updates_are_resumed_exactly_and_the_same_on_a_mesh(changes, teacher, tmp_path):
    """Five updates of the score, averaged; or two, with the student's gradient through both networks."""

    def made(devices, **mesh):
        return with_teachers(make_run(devices, teacher__checkpoint=teacher, **MATCHED, **changes, **mesh))

    def go_on(run, state, count):
        told = []
        for _ in range(count):
            state, metrics = run.trainer(state, batch_of(run))
            told.append([float(metrics[name]) for name in ("loss", "grad_norm", "grad_norm_score", "score_error")])
        return state, np.array(told)

    one = made(1)
    state, first = go_on(one, one.trainer.create(), 2)
    saver = checkpoints.Saver(checkpoints.open_manager(epath.Path(tmp_path), 1))
    saver.save(2, state, {})
    saver.close()
    assert saver.failures == []
    end, whole = go_on(one, state, 2)
    found = warm_start.resume(warm_start.find(str(tmp_path), "checkpoint.resume"), one.trainer.abstract)
    again, told = go_on(one, found, 2)
    np.testing.assert_array_equal(told, whole)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(end))
    assert np.isfinite(whole).all() and min(np.concatenate([first, whole])[:, 1:].ravel()) > 0
    assert ("score_average" in end.emas) == ("objective__matching__network__average" in changes)

    mesh = made(8, mesh__data=2, mesh__fsdp=2, mesh__sequence=2)
    _, told = go_on(mesh, mesh.trainer.create(), 4)
    np.testing.assert_allclose(told, np.concatenate([first, whole]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "settings", [{}, dict(name="muon"), dict(frozen=("b",)), dict(learning_rate_factors=(("a", 2.0),))]
)
def test_every_part_is_optimized_as_if_it_were_alone(settings):
    rng = np.random.default_rng(0)
    settings = OptimizerSettings(**settings, clip=1.0, learning_rate=0.1)

    def tree(scale):
        return {"a": jnp.asarray(scale * rng.standard_normal((2, 3)), jnp.float32), "b": jnp.full(4, scale)}

    params = {"online": tree(1.0), "score": tree(1.0)}
    grads = {"online": tree(10.0), "score": tree(1e5)}
    both = make_optimizer(settings, dict.fromkeys(("online", "score"), Auxiliary()))
    updates, state = both.update(grads, both.init(params), params)
    for part in params:
        alone = make_optimizer(settings, {part: Auxiliary()})
        expected, _ = alone.update({part: grads[part]}, alone.init({part: params[part]}), {part: params[part]})
        jax.tree.map(np.testing.assert_array_equal, updates[part], expected[part])
    rated = optax.tree.norm(updates["online"]["a"]) / optax.tree.norm(updates["score"]["a"])
    assert 0.1 < rated < 10


def test_the_memory_of_the_optimizer_is_where_it_was():
    """As checkpoints of before have it: clipping, then each part."""
    params = {"online": {"a": jnp.zeros(3)}}
    settings = OptimizerSettings(clip=1.0)
    update = optax.adamw(optax.constant_schedule(settings.learning_rate), b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.01)
    before = optax.chain(optax.clip_by_global_norm(1.0), optax.partition({"online": update}, {"online": "online"}))
    found = make_optimizer(settings).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(before.init(params))
