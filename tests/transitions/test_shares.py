"""Shares of r = t and r = T_min, counted against exact fractions over many batches of every size."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.objectives.contrastive import Contrast
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.shares import left_over, one_more, spread
from tim_jax.transitions.times import Times

BATCHES = 3000
# As they are typed, so that the expected fractions are not those of the code.
SHARES = [("0.5", "0.1"), ("0.8", "0.05"), ("0.75", "0"), ("0", "1"), ("1", "0"), ("0.5", "0.5"), ("0.9", "0.1"),
          ("0.3", "0.6"), ("0.00001", "0.123"), ("0.123456789", "0.4")]  # fmt: skip


def flags(times, count, batches=BATCHES):
    """Which examples of each batch have r = t and which r = T_min, both (batches, count)."""
    each = jax.jit(jax.vmap(lambda batch: tuple(map(jnp.asarray, times.flags(count, batch)))))
    return tuple(map(np.asarray, each(jnp.arange(batches))))


@pytest.mark.parametrize("equal, minimal", SHARES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 16])
def test_shares_are_exact_over_all_batches(equal, minimal, count):
    times = Times(share_equal=float(equal), share_min=float(minimal))
    found = flags(times, count)
    assert not (found[0] & found[1]).any()
    for here, always, share in zip(found, times.assign(count), map(Fraction, (equal, minimal)), strict=True):
        whole = int(count * share)
        assert here[:, always].all() and always.sum() == whole
        assert set(np.unique(here.sum(axis=1))) <= {whole, whole + 1}
        counted, right = here.sum(axis=1).cumsum(), [n * count * share for n in range(1, BATCHES + 1)]
        # Multiples of the golden ratio have a discrepancy of the order of ln(n).
        assert max(abs(int(a) - b) for a, b in zip(counted, right, strict=True)) < 4


def test_what_is_left_over_goes_to_all_free_examples_alike():
    equal, minimal = flags(Times(share_equal=0.1, share_min=0.1), 4)
    np.testing.assert_allclose(equal.mean(axis=0), 0.1, atol=0.005)
    np.testing.assert_allclose(minimal.mean(axis=0), 0.1, atol=0.005)


@pytest.mark.parametrize("count, equal, minimal", [(20, 0.5, 0.1), (40, 0.8, 0.05), (8, 7 / 8, 0.0)])
def test_whole_shares_are_the_same_in_every_batch_and_static(count, equal, minimal):
    times = Times(share_equal=equal, share_min=minimal)
    for here, always in zip(times.flags(count, jnp.int32(7)), times.assign(count), strict=True):
        assert isinstance(here, np.ndarray)
        np.testing.assert_array_equal(here, always)


def test_times_have_the_shares_of_their_flags():
    transport, times = TRANSPORTS["ot_fm"](), Times("uniform", share_equal=0.5, share_min=0.1)
    draw = jax.jit(lambda batch: times.draw(transport, jax.random.key(0), 3, batch=batch))
    for batch in range(20):
        t, r = draw(batch)
        equal, minimal = times.flags(3, batch)
        np.testing.assert_array_equal(t == r, equal)
        np.testing.assert_array_equal(r == transport.T_min, minimal)


@pytest.mark.parametrize("share, count", [(0.125, 20), (0.3, 9), (0.5, 8)])
def test_the_share_of_little_noise_is_exact(share, count):
    objective = OBJECTIVES["low_noise_contrastive"](TRANSPORTS["ot_fm"]())
    objective = dataclasses.replace(objective, contrast=Contrast(share=share))
    draw = jax.jit(jax.vmap(lambda batch: objective.draw(jax.random.key(0), count, 4, batch)[0]))
    low = np.asarray(draw(jnp.arange(1000)) < objective.edge)
    assert abs(low.sum() - 1000 * count * share) < 4
    always, sometimes = objective.below(count)
    assert low[:, always].all() and not low[:, ~(always | sometimes)].any()


def test_groups_of_a_trajectory_keep_their_shares():
    objective = OBJECTIVES["tbcm"](TRANSPORTS["trigflow"]())
    objective = dataclasses.replace(objective, times=Times("uniform", share_equal=0.3, share_min=0.1))
    draw = jax.jit(jax.vmap(lambda batch: objective.draw(jax.random.key(0), 8, 4, batch)))
    t, r = draw(jnp.arange(500))
    assert abs(int((t == r).sum()) - 0.3 * 500 * 8) < 4
    assert abs(int((r == objective.transport.T_min).sum()) - 0.1 * 500 * 8) < 4


def test_one_more_is_that_of_a_float64_sequence():
    """The fractional parts of n/φ, in float64, below f."""
    n, excess = np.arange(5000), Fraction(3, 10)
    found = np.asarray(one_more(excess, jnp.arange(5000)))
    multiples = n * (np.sqrt(5) - 1) / 2 % 1
    clear = abs(multiples - 0.3) > 1e-4
    np.testing.assert_array_equal(found[clear], (multiples < 0.3)[clear])
    assert spread(0.3, 10).sum() == 3 and left_over(0.3, 9) == Fraction(7, 10)


@pytest.mark.parametrize(
    "times, draws",
    [
        (Times("uniform", share_equal=1.0, share_min=0.0), 1),  # flow matching
        (Times("uniform", share_equal=0.0, share_min=1.0), 1),  # consistency models
        (Times("uniform", share_equal=0.75, share_min=0.0), 2),  # MeanFlow and TiM, as published
        (Times("uniform", share_equal=0.75, share_min=0.0, single_equal=True), 1),
        (Times("uniform", share_equal=0.75, share_min=0.0, intervals="dyadic"), 1),
    ],
    ids=["flow matching", "consistency", "as published", "single_equal", "dyadic"],
)
def test_of_how_many_draws_t_is_the_larger_where_it_has_a_partner(times, draws):
    """Of n uniform draws the largest has the distribution u^n; where an example has an r of its own, n is 2."""
    transport = TRANSPORTS["ot_fm"]()
    t, r = (np.asarray(time) for time in times.draw(transport, jax.random.key(5), 20_000))
    alone = r == t if times.share_equal else r == transport.T_min
    assert stats.kstest(t[alone], lambda u: u**draws).pvalue > 0.01
    if times.intervals == "independent" and not alone.all():
        assert stats.kstest(t[~alone], lambda u: u**2).pvalue > 0.01
        assert (r[~alone] < t[~alone]).all()
