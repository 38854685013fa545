"""An update with a loss or gradient that is not finite is left out, on all devices alike, counted and listed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.system import int64
from tim_jax.training import sharding
from tim_jax.training.nonfinite import NonFinite, TooManyNonFinite

SMALL = {
    **TINY_NETWORK,
    "model.remat": "dots",  # as by default, which most other tests are without
    "model.patch_size": "4", "data.batch_size": "16", "optimizer.warmup_steps": "0",
}  # fmt: skip


def make_run(devices=1, **changes):
    overrides = SMALL | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return build(load_config("digits", overrides), jax.devices()[:devices])


def after(run, state, rows):
    """State and account of one step; the state that was given is spent."""
    state, metrics, per_example = run.trainer.detailed(state, sharding.put_batch(run.mesh, rows))
    return state, {name: float(value) for name, value in metrics.items()}, jax.device_get(per_example)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(devices=4, mesh__data=2, mesh__fsdp=2),
        pytest.param(dict(optimizer__accumulation=2), marks=pytest.mark.slow),
    ],
    ids=["4 devices", "microbatches"],
)
def test_a_row_that_is_not_finite_changes_nothing_but_the_step(changes):
    run = make_run(**changes)
    good = made_up_batch(run.config, 16)
    bad = good | {"x": good["x"].copy()}
    bad["x"][5, 2, 3] = np.nan
    state, metrics, per_example = after(run, run.trainer.create(), good)
    assert metrics["nonfinite"] == 0 and np.isfinite(per_example["loss"]).all()
    before = jax.device_get(state)
    state, metrics, per_example = after(run, state, bad)
    assert metrics["nonfinite"] == 1 and int(state.step) == int(before.step) + 1
    assert np.flatnonzero(~np.isfinite(per_example["loss"])).tolist() == [5], "rows are in the batch's order"
    assert (per_example["t"] >= per_example["r"]).all() and per_example["t"].shape == (16,)
    kept = (state.params, state.emas, state.opt_state)
    assert same(jax.device_get(kept), (before.params, before.emas, before.opt_state))
    for leaf in jax.tree.leaves(kept):  # every device's own copy, not only the one that device_get takes
        whole = np.asarray(leaf)
        assert all(np.array_equal(part.data, whole[part.index]) for part in leaf.addressable_shards)
    state, metrics, _ = after(run, state, good)
    assert metrics["nonfinite"] == 0 and np.isfinite(metrics["loss"])
    assert not same(jax.device_get(state.params), before.params)


def test_an_update_that_is_not_finite_is_left_out_though_loss_and_gradient_are():
    """Such as by a learning rate that is none, which the settings refuse."""
    run = make_run()
    tx = optax.chain(run.trainer.step.tx, optax.scale(np.inf))
    trainer = dataclasses.replace(run.trainer, step=dataclasses.replace(run.trainer.step, tx=tx))
    state = trainer.create()
    before = jax.device_get(state)
    state, metrics = trainer(state, sharding.put_batch(run.mesh, made_up_batch(run.config, 16)))
    assert np.isfinite(float(metrics["loss"])) and np.isfinite(float(metrics["grad_norm"]))
    assert float(metrics["nonfinite"]) == 1 and int(state.step) == 1
    assert same(
        jax.device_get((state.params, state.emas, state.opt_state)), (before.params, before.emas, before.opt_state)
    )


@pytest.mark.nightly
def test_a_gradient_that_is_not_finite_is_seen_though_the_loss_is():
    run = make_run()
    objective = run.trainer.step.objective

    def kinked(*args):
        loss, metrics = objective(*args)
        return loss + jnp.sqrt(0.0 * jnp.abs(loss)), metrics  # 0 with a gradient of 0/0

    trainer = dataclasses.replace(run.trainer, step=dataclasses.replace(run.trainer.step, objective=kinked))
    state = trainer.create()
    before = jax.device_get(state)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 16))
    state, metrics = trainer(state, batch)
    assert np.isfinite(float(metrics["loss"])) and not np.isfinite(float(metrics["grad_norm"]))
    assert float(metrics["nonfinite"]) == 1 and int(state.step) == 1
    assert same(jax.device_get(state.params), before.params) and same(jax.device_get(state.opt_state), before.opt_state)


@pytest.mark.nightly
def test_the_rate_that_is_told_is_the_one_that_is_used():
    """Without a gradient, an update of AdamW is −rate · decay · parameters."""
    changes = dict(optimizer__weight_decay=0.5, optimizer__learning_rate=0.5, training__steps=4)
    run = make_run(**changes)
    nothing = made_up_batch(run.config, 16) | {"weight": np.zeros(16, np.float32)}
    bad = nothing | {"x": np.full_like(nothing["x"], np.nan)}
    state, told, used = run.trainer.create(), [], []
    for rows in (nothing, bad, nothing, nothing):
        before = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params))])
        state, metrics, _ = after(run, state, rows)
        now = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params))])
        told.append(metrics["learning_rate"])
        used.append(float((before - now) @ before / (before @ before)) / 0.5)
        assert metrics["nonfinite"] == (rows is bad)
    assert used[1] == 0
    np.testing.assert_allclose(np.delete(told, 1), np.delete(used, 1), rtol=1e-5)
    np.testing.assert_allclose(told, [0.5, 0.375, 0.375, 0.25], rtol=1e-6)


def step_of(bad):
    """What a step of 4 rows gives, those in `bad` not finite."""
    loss = np.array([np.nan if i in bad else 1.0 for i in range(4)], np.float32)
    metrics = {"loss": float(loss.mean()), "grad_norm": 1.0, "nonfinite": float(bool(bad))}
    return (
        metrics,
        {"t": np.full(4, 0.75), "r": np.full(4, 0.25), "loss": loss},
        int64.to_halves(np.array([40, 41, 42, 43])),
    )


def test_left_out_updates_are_counted_and_listed_until_there_are_too_many(tmp_path, caplog):
    folder = epath.Path(tmp_path)
    account = NonFinite(folder, max_streak=3)
    account.see(2, *step_of((1, 2)))
    account.streak = 0  # step 3 is made
    account.see(4, *step_of((0,)))
    account.see(5, *step_of((3,)))
    assert (account.count, account.streak) == (3, 2)
    with pytest.raises(TooManyNonFinite, match="3 updates in a row, up to step 6"):
        account.see(6, *step_of((0, 1, 2, 3)))
    lines = [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6]
    assert [row["index"] for row in lines[0]["rows"]] == [41, 42]
    assert lines[0]["rows"][0] == {"t": 0.75, "r": 0.25, "loss": None, "index": 41} and lines[0]["loss"] is None
    said = caplog.text
    assert "step 2" in said and "41 (t 0.75, t − r 0.5)" in said
    assert NonFinite(folder, max_streak=3, start=4).count == 2, "a run that goes on from step 4 has left out two"


def test_rows_are_all_listed_where_only_the_gradient_is_not_finite(tmp_path):
    folder = epath.Path(tmp_path)
    metrics, per_example, index = step_of(())
    NonFinite(folder, max_streak=3).see(1, metrics | {"nonfinite": 1.0, "grad_norm": np.inf}, per_example, index)
    (line,) = (folder / "nonfinite.jsonl").read_text().splitlines()
    assert [row["index"] for row in json.loads(line)["rows"]] == [40, 41, 42, 43]
    assert json.loads(line)["grad_norm"] is None
