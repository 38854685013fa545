"""Accumulation: weights, gradients and shares of times are those of the whole batch, however it is divided."""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.helpers.configs import tiny_config
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.training import sharding


@functools.cache  # tests share the programs of a run
def make_run(devices=1, **changes):
    changes = {name.replace("__", "."): str(value) for name, value in changes.items()}
    return build(tiny_config("digits", changes | {"model.patch_size": "4"}), jax.devices()[:devices])


# Times are drawn by microbatch; with all of them at r = t = T_max, a whole batch and its parts have the same ones.
SAME_TIMES = dict(
    times__share_equal=1.0, times__share_min=0.0, times__distribution="logit_normal", times__P_mean=30.0,
    objective__velocity="data", data__condition_dropout=0.0, data__batch_size=8, optimizer__clip=0.0,
)  # fmt: skip


def gradients(state):
    """The gradients of the first step, from Adam's first moment, (1 − b1) g."""
    (moments,) = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))[:1]
    return jax.tree.map(lambda m: m / np.float32(1 - 0.9), moments.mu)


@pytest.fixture(scope="module")
def by_microbatches():
    """(weights, number of microbatches) → metrics, state and arrays of examples of the first step."""

    @functools.cache
    def first_step(weights, accumulation):
        run = make_run(**SAME_TIMES, optimizer__accumulation=accumulation)
        rows = made_up_batch(run.config, 8) | {"weight": np.array(weights, np.float32)}
        state, metrics, per_example = run.trainer.detailed(run.trainer.create(), sharding.put_batch(run.mesh, rows))
        return jax.device_get((metrics, state, per_example))

    return first_step


WEIGHTS = [
    (1, 0, 1, 0, 1, 0, 1, 0), (1, 1, 1, 1, 0, 0, 0, 0), (0.02, 0, 0.01, 0, 0, 0.03, 0, 0), (3, 1, 4, 1, 5, 9, 2, 6),
    (0,) * 8,
]  # fmt: skip


@pytest.mark.parametrize(
    "weights",
    [pytest.param(each, marks=[] if i in (0, 4) else pytest.mark.slow) for i, each in enumerate(WEIGHTS)],
    ids=str,
)
@pytest.mark.parametrize("accumulation", [pytest.param(2, marks=pytest.mark.nightly), 4])
def test_microbatches_give_the_weighted_mean_of_the_whole_batch(weights, accumulation, by_microbatches):
    """Σ w·loss / Σ w in float64, and loss and gradient without microbatches."""
    whole, state, _ = by_microbatches(weights, 1)
    parts, state_of_parts, per_example = by_microbatches(weights, accumulation)
    loss, w = per_example["loss"].astype(np.float64), np.array(weights)
    mean = (w * loss).sum() / w.sum() if any(weights) else 0.0
    for metrics in (whole, parts):
        assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
        assert metrics["error_equal"] == pytest.approx((w * per_example["error"]).sum() / (w.sum() or 1), rel=1e-5)
        assert metrics["error_moving"] == 0
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(gradients(state)))
    assert (largest > 0) == any(weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        gradients(state), gradients(state_of_parts),
    )  # fmt: skip


def test_the_gradient_is_that_of_single_rows(by_microbatches):
    """Each row by itself, weighted and summed in numpy."""
    weights = WEIGHTS[3]
    single = [gradients(by_microbatches(tuple(float(i == k) for i in range(8)), 1)[1]) for k in range(8)]
    mean = jax.tree.map(lambda *g: sum(w * x.astype(np.float64) for w, x in zip(weights, g, strict=True)), *single)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(mean)) / sum(weights)
    for accumulation in (1, 4):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b / sum(weights), rtol=1e-3, atol=1e-4 * largest),
            gradients(by_microbatches(weights, accumulation)[1]), mean,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rows, accumulation, devices", [pytest.param(8, 8, 1, marks=pytest.mark.nightly), (8, 4, 2)])
def test_a_run_has_the_shares_that_it_asks_for(rows, accumulation, devices):
    """Counted over steps, microbatches and rows."""
    shares = dict(times__share_equal=0.5, times__share_min=0.1)
    run = make_run(devices, **shares, data__batch_size=rows, optimizer__accumulation=accumulation)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, rows))
    state, equal, minimal, steps = run.trainer.create(), [], [], 25
    for _ in range(steps):
        state, metrics, per_example = run.trainer.detailed(state, batch)
        t, r, error = (np.asarray(per_example[name]) for name in ("t", "r", "error"))
        for name, some in (("error_equal", t == r), ("error_moving", t != r)):
            assert metrics[name] == pytest.approx(error[some].astype(np.float64).mean(), rel=1e-5)
        equal.append(t == r)
        minimal.append((r == run.transport.T_min) & (t != r))
    for found, share in ((equal, 0.5), (minimal, 0.1)):
        assert abs(np.sum(found) - steps * rows * share) < 4
    assert len(run.trainer._compiled) == 1
