"""Shapes that are too rare for a batch, held against distributions of aspect ratios as they are found."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.buckets import Sized, made_plan
from tim_jax.config import identity
from tim_jax.config.command_line import load_config
from tim_jax.data import summary
from tim_jax.data.bucket_shapes import derive
from tim_jax.data.buckets import Fitting, Grid, assign


def repeated(counts):
    """{(h, w): number} as sizes (n, 2)."""
    return np.repeat(np.array(list(counts)), list(counts.values()), axis=0)


def photographs(n):
    """Sizes as cameras and telephones make them: seven aspect ratios, upright and lying."""
    rng = np.random.default_rng(0)
    shares = {1: 0.2, 4 / 3: 0.25, 3 / 4: 0.15, 3 / 2: 0.2, 2 / 3: 0.08, 16 / 9: 0.08, 9 / 16: 0.04}
    ratio = rng.choice(list(shares), n, p=list(shares.values()))
    longest = rng.choice([1024, 2048, 3000, 4032], n)
    return np.stack([longest * np.minimum(1, 1 / ratio), longest * np.minimum(1, ratio)], 1).round().astype(int)


def extremes(n):
    """Sizes of panoramas and of screenshots of whole pages, half of each."""
    rng = np.random.default_rng(1)
    sizes = np.stack([rng.integers(200, 600, n), rng.integers(4000, 9000, n)], 1)
    return np.where(np.arange(n)[:, None] % 2, sizes, sizes[:, ::-1])


def expected_share(size, shape):
    """The share of an image that covering a shape crops away: the longer side is cut to the shape's aspect ratio."""
    ratio = (size[0] / size[1]) / (shape[0] / shape[1])
    return 1 - min(ratio, 1 / ratio)


@pytest.mark.parametrize(
    "extreme, left_out",
    [
        ({(48, 1500): 1, (1500, 48): 1}, {"too small": 2}),
        ({(60, 1200): 1}, {"too small": 1}),
        ({(1200, 96): 1, (96, 1200): 1, (70, 71): 1}, {"cropped too much": 2}),
        ({(100, 128): 3, (100, 129): 2}, {}),
    ],
)
def test_a_few_extreme_images_leave_the_buckets_of_others_alone(extreme, left_out, tmp_path):
    source = Sized(tuple(map(tuple, repeated({(64, 64): 400} | extreme).tolist())))
    plan = made_plan(source, tmp_path, area=64 * 64, batch_size=16, grid=Grid(side=4))
    moved = sum(extreme.values()) - sum(left_out.values())
    assert [(bucket.shape, sum(bucket.images)) for bucket in plan.buckets] == [((64, 64), 400 + moved)]
    assert plan.not_used == left_out
    losses = [number * expected_share(size, (64, 64)) for size, number in extreme.items()]
    if not left_out:
        np.testing.assert_allclose(plan.buckets[0].cropped, sum(losses) / (400 + moved), rtol=1e-6)
    said = summary.summary(source, plan)
    assert said.startswith(f"sized: {400 + moved:,} of {len(source):,} images in 1 bucket of 64x64, ")
    assert all(f"{why} {count}" in said for why, count in left_out.items())


def test_twenty_extreme_images_among_twenty_thousand_change_nothing_for_the_others(tmp_path):
    ordinary, few = photographs(20_000), extremes(20)
    how = {"area": 256 * 256, "batch_size": 256, "grid": Grid(side=16)}
    alone = made_plan(Sized(tuple(map(tuple, ordinary.tolist()))), tmp_path, **how)
    source = Sized(tuple(map(tuple, np.concatenate([ordinary, few]).tolist())))
    plan = made_plan(source, tmp_path, **how)
    assert [bucket.shape for bucket in plan.buckets] == [bucket.shape for bucket in alone.buckets]
    # Each ratio at the area of a bucket, rounded down to the grid.
    scaled = ordinary * np.sqrt(256 * 256 / ordinary.prod(1, keepdims=True))
    shapes = np.unique(np.floor(scaled / 16 + 1e-9).astype(int) * 16, axis=0)
    assert {bucket.shape for bucket in plan.buckets} == set(map(tuple, shapes.tolist())) and len(shapes) == 7
    # An extreme image loses more than half in every bucket, by hand for each of them.
    assert min(expected_share(size, shape) for size in few for shape in shapes) > 0.5
    assert plan.not_used == {"cropped too much": 20}
    for bucket in plan.buckets:
        rows = plan.indices(plan.buckets.index(bucket), 0, np.arange(bucket.images[0]))
        by_hand = np.mean([expected_share(ordinary[i], bucket.shape) for i in rows])
        np.testing.assert_allclose(bucket.cropped, by_hand, rtol=1e-5, atol=1e-12)
        assert bucket.cropped >= 0


def test_extreme_images_that_fill_a_batch_have_a_bucket_of_their_own(tmp_path):
    sizes = repeated({(64, 64): 400, (48, 1500): 16, (1500, 48): 15})
    table = derive(*sizes.T, Grid(side=4), 64 * 64, lambda shape: 16)
    assert set(table) == {(64, 64), (8, 356)}


@pytest.mark.parametrize("keep_rare, table", [(False, ((64, 64),)), (True, ((28, 64),))])
def test_rare_shapes_shrink_others_where_that_is_asked_for(keep_rare, table):
    sizes = repeated({(64, 64): 400, (64, 300): 1})
    assert derive(*sizes.T, Grid(side=4), 64 * 64, lambda shape: 16, keep_rare=keep_rare) == table


@pytest.mark.parametrize("area, table, kept", [(64, (), True), (0, (), False), (64, ((8, 8),), False)])
def test_runs_from_before_keep_their_buckets(area, table, kept):
    recorded = json.loads(load_config("photos", {}).to_json())
    recorded["data"]["buckets"] |= {"area": area, "table": table}
    assert not identity.completed(recorded)["data"]["buckets"]["keep_rare"]
    del recorded["data"]["buckets"]["keep_rare"]
    assert identity.completed(recorded)["data"]["buckets"]["keep_rare"] == kept


COUNTS = st.dictionaries(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(1, 40), min_size=1, max_size=12)


@given(COUNTS, st.integers(1, 20))
def test_a_shape_with_images_for_a_batch_is_a_bucket(counts, batch_size):
    """Nothing that too few images need shrinks it."""
    table = derive(*repeated(counts).T, Grid(), 10**6, lambda shape: batch_size)
    assert {shape for shape, number in counts.items() if number >= batch_size} <= set(table)


def total_loss(counts, table, limit=0.5):
    """Images lost to cropping, shrinking or being left out, and images in each bucket, in plain loops."""
    lost, members = 0.0, dict.fromkeys(table, 0)
    for (h, w), number in counts.items():
        best = None
        for H, W in table:
            cropped = expected_share((h, w), (H, W))
            if H <= h and W <= w:
                key = (round(abs(np.log(h / w * W / H)), 9), -H * W, (H, W))
                best = min(best, (key, cropped, (H, W))) if best else (key, cropped, (H, W))
        if best is None or best[1] > limit:
            lost += number
        else:
            lost += number * (1 - np.prod(best[2]) / (h * w))
            members[best[2]] += number
    return lost, members


def partitions(items):
    """All ways to put items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for k in range(len(groups)):
            yield [*groups[:k], [first, *groups[k]], *groups[k + 1 :]]


def least_loss(counts, batch_size, max_buckets):
    """The least loss of all tables whose buckets are what groups of shapes have in common, by trying each of them."""
    kept = {shape for shape, number in counts.items() if number >= batch_size}
    found = [sum(counts.values())]
    for chosen in itertools.chain.from_iterable(itertools.combinations(counts, k) for k in range(1, len(counts) + 1)):
        for groups in partitions(list(chosen)):
            table = {(min(h for h, _ in group), min(w for _, w in group)) for group in groups}
            if len(table) > max_buckets or (len(kept) <= max_buckets and not kept <= table):
                continue
            lost, members = total_loss(counts, sorted(table))
            if len(table) == 1 or min(members.values()) >= batch_size:
                found.append(lost)
    return min(found)


def made_up(seed):
    """Counts of five shapes around two ordinary ones, and an extreme one."""
    rng = np.random.default_rng(seed)
    shapes = {tuple((np.array(base) + rng.integers(-4, 5, 2)).tolist()) for base in [(20, 30)] * 3 + [(30, 20)] * 2}
    return {shape: int(rng.integers(1, 40)) for shape in [*shapes, (3, 60)]}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("max_buckets, share", [(2, 0.13), (64, 0.01)])
def test_the_table_loses_hardly_more_than_the_best_of_all_tables(seed, max_buckets, share):
    counts = made_up(seed)
    table = derive(*repeated(counts).T, Grid(), 10**6, lambda shape: 16, max_buckets)
    lost, members = total_loss(counts, table)
    assert lost <= least_loss(counts, 16, max_buckets) + share * sum(counts.values())
    # The plan assigns images as the loops above do.
    bucket, _ = assign(*repeated(counts).T, table, Fitting())
    assert np.bincount(bucket[bucket >= 0], minlength=len(table)).tolist() == list(members.values())
