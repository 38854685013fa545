"""Buckets: tables, which image goes where, and the order of bucketed batches."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.buckets import Sized, made_plan
from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.bucket_shapes import derive, own_shape
from tim_jax.data.buckets import (
    TOO_MUCH_CROPPED,
    TOO_SMALL,
    UNUSABLE,
    Fitting,
    Grid,
    assign,
    check_table,
    ordered,
)
from tim_jax.data.fit import Augmentation, draws, fit, resize_and_crop
from tim_jax.data.interleave import Interleave


def many_sizes(n=200, seed=0, low=16, high=64):
    return tuple(map(tuple, np.random.default_rng(seed).integers(low, high, (n, 2)).tolist()))


TABLE = ordered(((16, 16), (16, 24), (24, 16), (32, 32), (12, 36)))


# Which image goes where.


@pytest.mark.parametrize(
    "size, table, fitting, expected",
    [
        ((100, 100), TABLE, Fitting(), (32, 32)),
        ((20, 20), TABLE, Fitting(), (16, 16)),
        ((100, 150), TABLE, Fitting(), (16, 24)),
        ((150, 100), TABLE, Fitting(), (24, 16)),
        ((100, 320), TABLE, Fitting(), (12, 36)),
        ((12, 100), TABLE, Fitting(max_cropped=0.5), TOO_MUCH_CROPPED),
        ((12, 100), TABLE, Fitting(max_cropped=0.7), (12, 36)),
        ((11, 100), TABLE, Fitting(), TOO_SMALL),
        ((15, 15), TABLE, Fitting(), TOO_SMALL),
        ((15, 15), TABLE, Fitting(enlarge=True), (32, 32)),
        ((20, 20), TABLE, Fitting(enlarge=True), (16, 16)),
        ((0, 0), TABLE, Fitting(), UNUSABLE),
        ((40, 40), TABLE, Fitting(resize=False), (32, 32)),
        ((1000, 1000), TABLE, Fitting(resize=False), TOO_MUCH_CROPPED),
    ],
)
def test_an_image_goes_to_the_bucket_of_nearest_aspect_ratio_that_it_covers(size, table, fitting, expected):
    bucket, share = assign(np.array(size[:1]), np.array(size[1:]), table, fitting)
    assert (table[bucket[0]] if bucket[0] >= 0 else bucket[0]) == expected
    assert 0 <= share[0] <= fitting.max_cropped


@given(st.integers(1, 300), st.integers(1, 300))
def test_no_image_is_stretched_or_enlarged_and_the_cropped_share_is_what_it_loses(h, w):
    bucket, share = assign(np.array([h]), np.array([w]), TABLE, Fitting())
    if bucket[0] < 0:
        return
    H, W = TABLE[bucket[0]]
    scale = max(H / h, W / w)
    assert scale <= 1
    np.testing.assert_allclose(share[0], 1 - (H / scale) * (W / scale) / (h * w), atol=1e-6)
    for H2, W2 in TABLE:
        if H2 <= h and W2 <= w:
            assert abs(np.log(h / w * W / H)) <= abs(np.log(h / w * W2 / H2)) + 1e-8


def test_resizing_keeps_shapes_round_and_crops_the_middle():
    y, x = np.mgrid[:90, :200]
    disc = np.where((y - 44.5) ** 2 + (x - 99.5) ** 2 < 40**2, 255, 0).astype(np.uint8)[..., None]
    small = resize_and_crop(disc, (45, 45), Fitting(max_cropped=0.6))
    assert small.shape == (45, 45, 1)
    inside = small[..., 0] > 127
    assert abs(np.ptp(np.flatnonzero(inside.any(0))) - np.ptp(np.flatnonzero(inside.any(1)))) <= 1
    np.testing.assert_allclose(inside.sum(), np.pi * 20**2, rtol=0.03)
    left = resize_and_crop(disc, (45, 45), Fitting(max_cropped=0.6), at=(0.5, 0.0))
    assert (left[..., 0] > 127).sum() < 0.5 * inside.sum()


@pytest.mark.parametrize("size, shape", [((15, 40), (16, 16)), ((16, 200), (16, 16))])
def test_an_image_that_does_not_fit_its_bucket_is_a_bad_record(size, shape):
    with pytest.raises(BadRecord, match="size"):
        resize_and_crop(np.zeros((*size, 3), np.uint8), shape, Fitting())


def test_latents_are_cropped_but_never_resized():
    latent = np.random.default_rng(0).standard_normal((10, 12, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize_and_crop(latent, (8, 12), Fitting()), latent[1:9])
    with pytest.raises(BadRecord, match="size"):
        resize_and_crop(latent, (12, 12), Fitting(enlarge=True))


# Tables.


@pytest.mark.parametrize(
    "table, grid, message",
    [
        (((16, 20),), Grid(side=8), r"\(16, 20\).*multiples of 8"),
        (((16, 24),), Grid(side=8, tokens_multiple=4), "mesh.sequence, 4, tokens.* has 6"),
        (((16, 16), (16, 16)), Grid(), "each shape once"),
        ((), Grid(), "0 shapes.*1 to 64"),
        (tuple((8, 8 * i) for i in range(1, 66)), Grid(), "65 shapes"),
        (((16, 0),), Grid(), "positive"),
        (((16, 8.0),), Grid(), "positive"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(table, grid, message):
    with pytest.raises(ValueError, match=message) as error:
        check_table(table, grid)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("max_buckets", [1, 3, 10, 64])
@pytest.mark.parametrize("grid", [Grid(), Grid(side=4), Grid(side=4, tokens_multiple=2)])
def test_a_derived_table_stays_in_its_bounds_and_leaves_no_image_too_small(grid, max_buckets):
    sizes = np.array(many_sizes(500))
    table = derive(*sizes.T, grid, area=32 * 32, batch_size=lambda shape: 4, max_buckets=max_buckets)
    check_table(table, grid)
    assert len(table) <= max_buckets
    assert all(h * w <= 32 * 32 for h, w in table)
    bucket, share = assign(*sizes.T, table, Fitting(max_cropped=0.99))
    assert (bucket >= 0).all()
    if max_buckets == 64:
        assert share.mean() < 0.12


def test_thousands_of_sizes_are_merged_without_losing_an_image():
    sizes = 32 * np.stack(np.meshgrid(np.arange(8, 64), np.arange(8, 64)), -1).reshape(-1, 2)
    table = derive(*sizes.T, Grid(side=32), area=1024**2, batch_size=lambda shape: 8)
    assert len(table) == 64
    assert (assign(*sizes.T, table, Fitting(max_cropped=0.99))[0] >= 0).all()


def test_few_sizes_are_a_bucket_each_with_nothing_lost():
    sizes = np.array([(16, 24)] * 10 + [(24, 16)] * 10 + [(64, 64)] * 10)
    table = derive(*sizes.T, Grid(side=8), area=16 * 24, batch_size=lambda shape: 4)
    assert set(table) == {(16, 24), (24, 16), (16, 16)}
    rare = np.concatenate([sizes, [(24, 40)]])
    assert len(derive(*rare.T, Grid(side=8), area=24 * 40, batch_size=lambda shape: 4)) == 3


def test_own_shapes_cover_and_stay_within_the_area():
    sizes = np.array(many_sizes(300, low=8, high=400))
    shapes = own_shape(*sizes.T, Grid(side=8), 64 * 64)
    assert (shapes.prod(1) <= 64 * 64).all() and (shapes <= sizes).all() and not (shapes % 8).any()


# Plans.


def test_rows_follow_the_token_budget_in_multiples_of_what_the_mesh_needs(tmp_path):
    source = Sized(((16, 16),) * 100 + ((32, 32),) * 100 + ((16, 32),) * 9)
    table = ((16, 16), (32, 32), (16, 32))
    grid = Grid(side=4, batch_multiple=4)
    plan = made_plan(source, tmp_path, table=table, tokens=1000, grid=grid)
    found = {bucket.shape: (bucket.batch_size, sum(bucket.images)) for bucket in plan.buckets}
    # 16 tokens: 62 rows, so 60; 64 tokens: 15, so 12; 32 tokens: 31, so 28, but there are 9 images, so 8.
    assert found == {(16, 16): (60, 100), (32, 32): (12, 100), (16, 32): (8, 9)}


def test_every_image_is_in_a_bucket_or_accounted_for(tmp_path):
    sizes = many_sizes(300, low=4, high=200) + (None,) * 7
    source = Sized(sizes)
    plan = made_plan(source, tmp_path, table=TABLE, batch_size=4, grid=Grid(side=4), fitting=Fitting(max_cropped=0.3))
    assert plan.images() + sum(plan.not_used.values()) == len(source)
    assert plan.not_used["unreadable"] == 7 and min(plan.not_used.values()) > 0
    members = [plan.indices(k, 0, np.arange(b.images[0])) for k, b in enumerate(plan.buckets)]
    assert len(np.unique(np.concatenate(members))) == plan.images()
    for bucket, rows in zip(plan.buckets, members, strict=True):
        expected = assign(*np.array([sizes[i] for i in rows]).T, TABLE, Fitting(max_cropped=0.3))
        assert {TABLE[k] for k in expected[0]} == {bucket.shape}
        np.testing.assert_allclose(bucket.cropped, expected[1].mean(), atol=1e-6)


def test_a_bucket_without_images_for_its_smallest_batch_gives_them_to_others(tmp_path):
    source = Sized(((32, 32),) * 20 + ((32, 34),) * 3)
    plan = made_plan(source, tmp_path, table=((32, 32), (32, 34)), batch_size=8, grid=Grid(batch_multiple=8))
    assert [(b.shape, b.batch_size, b.images) for b in plan.buckets] == [((32, 32), 8, (23,))]


def test_a_plan_and_its_sizes_are_made_once(tmp_path, monkeypatch):
    source = Sized(many_sizes(50))
    first = made_plan(source, tmp_path, table=((16, 16),), batch_size=4, fitting=Fitting(max_cropped=0.9))
    monkeypatch.setattr(Sized, "header", lambda source, i: pytest.fail("read again"))
    again = made_plan(source, tmp_path, table=((16, 16),), batch_size=4, fitting=Fitting(max_cropped=0.9))
    assert first == again
    assert not [p for p in tmp_path.iterdir() if "unfinished" in p.name]


@pytest.mark.parametrize(
    "how, message",
    [
        ({"table": ((64, 64),), "batch_size": 4}, "must be smaller, or .*enlarge True: none of 50 images"),
        ({"table": ((4, 16),), "batch_size": 4, "fitting": Fitting(0.01)}, "max_cropped be larger: none of 50 images"),
        ({"table": ((16, 15),), "batch_size": 4, "grid": Grid(side=2)}, "multiples of 2"),
        ({"batch_size": 4}, "data.buckets.area is 0"),
        ({"table": ((16, 16),)}, "data.buckets.tokens is 0.*data.batch_size above 0"),
        (
            {"table": ((16, 16),), "batch_size": 6, "grid": Grid(batch_multiple=4)},
            "data.batch_size is 6.*multiple of 4",
        ),
        ({"table": ((16, 16),), "batch_size": 4, "fitting": Fitting(max_cropped=1.0)}, "max_cropped is 1.0"),
        ({"area": 99, "max_buckets": 65, "batch_size": 4}, "data.buckets.max_buckets is 65"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path, how, message):
    with pytest.raises(ValueError, match=message) as error:
        made_plan(Sized(many_sizes(50)), tmp_path, **how)
    assert "\n" not in str(error.value)


# The order.


@pytest.mark.parametrize("amounts", [("10/3", "7/4", "1/8", "10"), ("1/2", "1/3"), ("5",), ("0", "3/2", "1000/7")])
def test_items_come_at_their_rates_in_order_and_evenly(amounts):
    interleave = Interleave(tuple(map(Fraction, amounts)), seed=3)
    rate = float(sum(interleave.amounts))
    n = min(3000, interleave.visits(40).sum())
    items, ranks = interleave.at(np.arange(n))
    for k, amount in enumerate(interleave.amounts):
        np.testing.assert_array_equal(ranks[items == k], np.arange((items == k).sum()))
        come = np.cumsum(items == k)
        assert np.abs(come - np.arange(1, n + 1) * float(amount) / rate).max() < 3
    for epoch in range(10):
        end = interleave.visits(epoch).sum()
        if end <= n:
            counts = np.bincount(items[:end], minlength=len(amounts))
            np.testing.assert_array_equal(counts, [epoch * a.numerator // a.denominator for a in interleave.amounts])
    some = np.random.default_rng(0).permutation(n)[:50]
    np.testing.assert_array_equal(interleave.at(some)[0], items[some])


@pytest.mark.parametrize("how", [{"tokens": 600}, {"batch_size": 8}])
def test_over_k_epochs_every_image_is_seen_k_times_give_or_take_one(tmp_path, how):
    source = Sized(many_sizes(150))
    how |= {"grid": Grid(side=4, batch_multiple=2), "fitting": Fitting(max_cropped=0.9)}
    plan = made_plan(source, tmp_path, area=24 * 24, max_buckets=7, **how)
    assert len(plan.buckets) > 1 and plan.images() == 150
    order = data.Order(plan, seed=5)
    seen, step = np.zeros(150, int), 0
    for k in (1, 2, 5, 9):
        while step < k * order.steps_per_epoch:
            bucket, first = order.bucket(step)
            seen += np.bincount(
                order.indices(bucket, first + np.arange(plan.buckets[bucket].batch_size)), minlength=150
            )
            step += 1
        assert abs(seen - k).max() <= 1, k


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_bucketed_batches_are_the_same_for_any_number_of_processes(tmp_path, process_count):
    source = Sized(many_sizes(150), broken=(3, 30, 77))
    grid = Grid(side=4, batch_multiple=8)
    plan = made_plan(source, tmp_path, area=24 * 24, tokens=1000, grid=grid, fitting=Fitting(max_cropped=0.9))
    augmentation = Augmentation(flip=0.5, random_crop=True)
    whole = data.global_batches(source, plan, 1, augmentation=augmentation)
    parts = [data.global_batches(source, plan, 1, (p,), process_count, augmentation) for p in range(process_count)]
    shapes = set()
    for step in (0, 1, 2, 50, 51, 1000):
        batch, slices = whole[step], [part[step] for part in parts]
        shapes.add(tuple(batch["bucket"].tolist()))
        assert all(s["x"].shape[1:] == (*batch["bucket"], 3) for s in slices)
        for name in ("x", "label", "index", "bad"):
            np.testing.assert_array_equal(np.concatenate([s[name] for s in slices]), batch[name])
    assert len(shapes) > 1


def test_bad_rows_are_replaced_by_good_ones_of_the_same_bucket_and_reported(tmp_path):
    source = Sized(((16, 16),) * 40 + ((16, 32),) * 40, broken=(3, 4, 50))
    plan = made_plan(source, tmp_path, table=((16, 16), (16, 32)), batch_size=8)
    batches, reported = data.global_batches(source, plan, 0), []
    for step in range(20):
        batch = batches[step]
        assert not np.isin(batch["index"], source.broken).any()
        assert {source.sizes[i] for i in batch["index"]} == {tuple(batch["bucket"].tolist())}
        np.testing.assert_array_equal(np.rint((batch["x"][:, 0, 0, 0] + 1) * 127.5), batch["index"])
        reported += batch["bad"].tolist()
    assert {row[0] for row in reported} == {"3", "4", "50"}
    assert {tuple(row[1:3]) for row in reported} == {(f"row {i}", "truncated") for i in source.broken}


def test_draws_depend_on_seed_step_and_row_alone():
    table = draws(0, 5, np.arange(1000))
    np.testing.assert_array_equal(draws(0, 5, np.array([7, 900])), table[[7, 900]])
    assert 0 < table.min() and table.max() < 1
    assert abs(table.mean() - 0.5) < 0.02
    others = [draws(1, 5, np.arange(1000)), draws(0, 6, np.arange(1000))]
    assert all(abs(np.corrcoef(table.ravel(), other.ravel())[0, 1]) < 0.06 for other in others)
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.12


def test_mirroring_and_caption_follow_the_draw():
    row = {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "label": 1, "index": 0, "captions": ("a", "b", "c")}
    plain = fit(row, (2, 2), Fitting(), Augmentation(flip=0.5), np.array([0.9, 0.0, 0, 0]))
    other = fit(row, (2, 2), Fitting(), Augmentation(flip=0.5), np.array([0.1, 0.99, 0, 0]))
    np.testing.assert_array_equal(plain["image"], row["image"])
    np.testing.assert_array_equal(other["image"], row["image"][:, ::-1])
    assert (plain["caption"], other["caption"]) == ("a", "c")


def test_features_ride_along_on_the_grid_of_tokens():
    image = np.zeros((4, 6, 3), np.uint8)
    features = np.random.default_rng(0).standard_normal((2, 2, 3, 5)).astype(np.float32)  # and of the mirror image
    row = {"image": image, "label": 0, "index": 0, "features": features}
    plain = fit(row, (4, 6), Fitting(), Augmentation(side=2), np.ones(4))
    np.testing.assert_array_equal(plain["features"], features[0].reshape(6, 5))
    mirrored = fit(row, (4, 6), Fitting(), Augmentation(side=2, flip=1.0), np.full(4, 0.5))
    np.testing.assert_array_equal(mirrored["features"], features[1].reshape(6, 5))
    for augmentation, shape in ((Augmentation(side=1), (4, 6)), (Augmentation(side=2), (4, 4))):
        with pytest.raises(BadRecord, match="features"):
            fit(row, shape, Fitting(), augmentation, np.ones(4))
