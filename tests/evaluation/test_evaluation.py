"""Statistics, distances, the any-step table and pictures, against closed forms, scipy and naive loops."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tim_jax.evaluation import (
    FEATURES,
    METRICS,
    distances,
    metrics,
    neighbours,
    score,
    statistics,
    summaries,
    yardstick,
)
from tim_jax.evaluation.references import Reference

DISTANCES = ("frechet", "sfid", "kernel", "mmd")
SHARES = ("precision", "recall")


def gaussian(mean, covariance):
    """The Gaussian whose mean and covariance are exactly the given ones."""
    moments = statistics.Statistics(1001, np.asarray(mean, float), 1000 * np.asarray(covariance, float))
    return distances.gaussian(moments)


def random_covariance(rng, width):
    a = rng.standard_normal((width, 3 * width))
    return a @ a.T / (3 * width)


def rotated(rng, *spectra):
    """Matrices with the given eigenvalues in one random common basis."""
    q = np.linalg.qr(rng.standard_normal((len(spectra[0]), len(spectra[0]))))[0]
    return [(q * np.asarray(s, float)[None, :]) @ q.T for s in spectra]


# Statistics


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_are_the_mean_and_covariance(offset):
    x = np.random.default_rng(0).standard_normal((200, 7)) + offset
    s = statistics.of(x)
    np.testing.assert_allclose(s.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(s.covariance, np.cov(x.T), rtol=0, atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_merged_equals_unmerged(seed, offset):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 9)) + offset
    cuts = np.sort(rng.integers(1, 300, size=4))
    merged = statistics.empty(9)
    for part in np.split(x, np.unique(cuts)):
        merged = statistics.merge(merged, statistics.of(part))
    whole = statistics.of(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=0, atol=1e-10)


def test_merge_does_not_depend_on_order():
    rng = np.random.default_rng(1)
    a, b, c = (statistics.of(rng.standard_normal((n, 4)) + n) for n in (1, 20, 300))
    left, right = statistics.merge(statistics.merge(a, b), c), statistics.merge(c, statistics.merge(b, a))
    np.testing.assert_allclose(left.scatter, right.scatter, rtol=1e-10)
    empty = statistics.empty(4)
    assert statistics.merge(empty, empty).count == 0
    np.testing.assert_array_equal(statistics.merge(a, empty).mean, a.mean)


@given(cuts=st.lists(st.integers(0, 60), max_size=6), most=st.integers(1, 70), seed=st.integers(0, 9))
def test_summaries_of_any_split_merge_to_that_of_the_whole(cuts, most, seed):
    """Every kind of summary, parts without images among them, merged from the left and from the right."""
    rng = np.random.default_rng(seed)
    outputs = {"features": rng.standard_normal((60, 5)) + 100, "logits": 4 * rng.standard_normal((60, 7))}
    needs = (("features", "moments"), ("features", "raw"), ("logits", "splits"))
    first = 3 * summaries.SPLIT - 30  # over the border of a split
    places, most = first + summaries.shuffled_places(60), first + most
    whole = summaries.summarise(outputs, places, needs, most)
    bounds = [0, *sorted(cuts), 60]
    parts = []
    for low, high in zip(bounds, bounds[1:]):
        some = {name: x[low:high] for name, x in outputs.items()}
        parts.append(summaries.summarise(some, places[low:high], needs, most) if high > low else {})
    forwards, backwards = {}, {}
    for part in parts:
        forwards = summaries.merge(forwards, part)
    for part in reversed(parts):
        backwards = summaries.merge(part, backwards)
    for merged in (forwards, backwards):
        assert merged.keys() == whole.keys()
        assert merged["features", "moments"].count == 60
        np.testing.assert_array_equal(merged["features", "raw"].values, outputs["features"][places < most])
        assert merged["logits", "splits"].counts.tolist() == [0, 0, 30, 30]
        for need in (("features", "moments"), ("logits", "splits")):
            for a, b in zip(merged[need], whole[need], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-10)


def test_places_are_a_shuffle_that_is_always_the_same():
    for count in (1, 10, 1000):
        assert sorted(summaries.shuffled_places(count)) == list(range(count))
        np.testing.assert_array_equal(summaries.shuffled_places(count), summaries.shuffled_places(count))
    first = np.flatnonzero(summaries.shuffled_places(1000) < 100)
    for order in (np.arange(1000) % 10, np.arange(1000) // 100):  # labels in turn, and class by class
        assert set(order[first]) == set(range(10)), "all are among the first"


# Distances


@pytest.mark.parametrize("width", [1, 3, 16, 64])
def test_frechet_equals_scipy(width):
    rng = np.random.default_rng(width)
    means, covariances = rng.standard_normal((2, width)), [random_covariance(rng, width) for _ in range(2)]
    product = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * product.real)
    measured = distances.frechet_distance(*(gaussian(m, c) for m, c in zip(means, covariances)))
    assert abs(measured - expected) < 1e-8


@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0, 2.0, 3.0], [4.0, 1.0, 9.0]),
        ([1.0, 0.0, 3.0], [4.0, 1.0, 9.0]),
        ([1.0, 0.0, 3.0], [0.0, 2.0, 3.0]),
        ([0.0, 0.0, 0.0], [0.0, 2.0, 3.0]),
        ([1e6, 1.0, 0.0], [1e6, 4.0, 0.0]),
    ],
)
def test_frechet_of_covariances_that_commute(a, b):
    """|μ₁ − μ₂|² + Σ (√a − √b)², also where eigenvalues are zero."""
    rng = np.random.default_rng(0)
    shift = rng.standard_normal(3)
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    # Rounding a rotated matrix moves its zero eigenvalues by 1e-15, and so the distance by the root of that.
    for (first, second), bound in (((np.diag(a), np.diag(b)), 1e-9), (rotated(rng, a, b), 1e-6)):
        measured = distances.frechet_distance(gaussian(np.zeros(3), first), gaussian(shift, second))
        np.testing.assert_allclose(measured, expected, rtol=bound)


def test_frechet_of_singular_covariances_is_the_limit():
    rng = np.random.default_rng(3)
    a, b = (x @ x.T for x in rng.standard_normal((2, 20, 5)))
    singular = distances.frechet_distance(gaussian(np.zeros(20), a), gaussian(np.zeros(20), b))
    gaps = []
    for epsilon in (1e-4, 1e-6, 1e-8):
        near = [gaussian(np.zeros(20), c + epsilon * np.eye(20)) for c in (a, b)]
        gaps.append(abs(distances.frechet_distance(*near) - singular))
    assert np.isfinite(singular) and gaps[0] > gaps[1] > gaps[2] and gaps[2] < 5e-3


@pytest.mark.parametrize("ranks", [(5, 5), (3, 20), (1, 2)])
def test_frechet_of_singular_covariances_equals_scipy_on_their_factors(ranks):
    """tr (AAᵀBBᵀ)^½ is the sum of the singular values of AᵀB, which needs no root of anything singular."""
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((20, rank)) for rank in ranks)
    shift = rng.standard_normal(20)
    expected = (shift**2).sum() + (a**2).sum() + (b**2).sum() - 2 * scipy.linalg.svdvals(a.T @ b).sum()
    measured = distances.frechet_distance(gaussian(np.zeros(20), a @ a.T), gaussian(shift, b @ b.T))
    assert abs(measured - expected) < 1e-8


@pytest.mark.parametrize("rank", [2, 30])
def test_frechet_of_equal_statistics_is_zero(rank):
    rng = np.random.default_rng(4)
    s = statistics.of(rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 30)))
    g = distances.gaussian(s)
    assert 0 <= distances.frechet_distance(g, g) < 1e-11 * np.trace(s.covariance)


def test_kernel_equals_naive_loops(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((13, 5)) + 0.3

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b)) / 5 + 1) ** 3

    def within(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert abs(METRICS["kernel"](x, y) - expected) < 1e-12


def test_mmd_equals_naive_loops_and_scipy(monkeypatch):
    """The biased estimate of a Gaussian kernel with σ = 10, times 1000 (Jayasumana et al. 2024)."""
    monkeypatch.setattr(distances, "BLOCK", 7)
    rng = np.random.default_rng(0)
    x, y = 3 * rng.standard_normal((20, 5)), 3 * rng.standard_normal((13, 5)) + 0.3

    def mean(a, b):
        return np.mean([math.exp(-sum((p - q) ** 2 for p, q in zip(u, v)) / 200) for u in a for v in b])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert METRICS["mmd"](x, y) == pytest.approx(expected, rel=1e-9)
    k = [np.exp(-scipy.spatial.distance.cdist(a, b, "sqeuclidean") / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert METRICS["mmd"](x, y) == pytest.approx(1000 * (k[0] + k[1] - 2 * k[2]), rel=1e-9)
    assert METRICS["mmd"](x, x) == pytest.approx(0, abs=1e-9)


def test_mmd_of_gaussians_is_the_closed_form():
    """E k(x, y) of x, y ~ N(0, s² I), shifted by δ: (σ²/(σ² + 2 s²))^{d/2} exp(−δ²/(2 (σ² + 2 s²)))."""
    rng, d, s, shift = np.random.default_rng(0), 4, 2.0, 6.0
    x, y = s * rng.standard_normal((2, 2000, d))
    y[:, 0] += shift
    same = (100 / (100 + 2 * s**2)) ** (d / 2)
    expected = 1000 * 2 * same * (1 - np.exp(-(shift**2) / (2 * (100 + 2 * s**2))))
    assert METRICS["mmd"](x, y) == pytest.approx(expected, rel=0.05)


def test_kernels_look_at_blocks_only(monkeypatch):
    """No matrix of all pairs: 50,000 samples fit into memory."""
    monkeypatch.setattr(distances, "BLOCK", 10)
    seen = []
    monkeypatch.setattr(distances, "_gaussian", lambda x, y: seen.append((len(x), len(y))) or np.zeros((1, 1)))
    distances.mmd_set(summaries.RawFeatures(np.zeros((35, 2))))
    assert len(seen) == 16 and max(max(sizes) for sizes in seen) == 10


def test_kernel_is_unbiased():
    rng = np.random.default_rng(0)
    draws = [METRICS["kernel"](rng.standard_normal((30, 4)), rng.standard_normal((20, 4))) for _ in range(2000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3 * error
    assert min(draws) < 0 < max(draws)
    # With the diagonal the bias would be far outside that band.
    assert 8 * (1 / 30 + 1 / 20) > 30 * error


@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance_is_symmetric_and_sees_a_shift(name):
    rng = np.random.default_rng(0)
    a, b, far = rng.standard_normal((3, 400, 6)) + np.array([0.0, 0.0, 1.0])[:, None, None]
    metric = METRICS[name]
    np.testing.assert_allclose(metric(a, far), metric(far, a), rtol=1e-9)
    assert metric(a, far) > 10 * abs(metric(a, b))


def test_precision_and_recall_equal_naive_loops(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((31, 3)), 1.5 * rng.standard_normal((22, 3)) + 0.5

    def radius(z, i):
        return sorted(np.linalg.norm(z - z[i], axis=1))[3]  # the first is the point itself

    def share(points, support):
        radii = [radius(support, i) for i in range(len(support))]
        return np.mean([any(np.linalg.norm(p - q) <= r for q, r in zip(support, radii)) for p in points])

    assert METRICS["precision"](x, y) == share(x, y) and METRICS["recall"](x, y) == share(y, x)
    assert 0 < share(x, y) != share(y, x)


@pytest.mark.parametrize("name", SHARES)
def test_shares_of_known_sets(name):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 4))
    assert METRICS[name](a, a) == 1 and METRICS[name](a, a + 100) == 0
    twice = np.repeat(a, 5, axis=0)  # balls of no width
    assert METRICS[name](twice + 1e6, twice + 1e6) == 1
    # Samples of half the data are precise, and recall half of it.
    halves = np.concatenate([a, a + 100])
    assert METRICS["precision"](a, halves) == 1 and METRICS["recall"](a, halves) == 0.5
    assert METRICS[name].higher_is_better and not METRICS["frechet"].higher_is_better


@pytest.mark.parametrize("classes", [1, 4, 10])
def test_inception_score_of_known_predictions(classes):
    uniform = np.zeros((40, classes))
    assert METRICS["inception_score"].of(uniform) == pytest.approx(1, abs=1e-12)
    certain = 1000 * np.eye(classes)[np.arange(10 * classes) % classes]
    assert METRICS["inception_score"].of(certain) == pytest.approx(classes, rel=1e-12)


def test_inception_score_is_the_published_mean_over_splits(monkeypatch):
    """Against the formula written out, with a last split that is not full."""
    monkeypatch.setattr(summaries, "SPLIT", 8)
    logits = 3 * np.random.default_rng(0).standard_normal((20, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for part in (p[:8], p[8:16], p[16:]):
        divergence = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    assert score.inception_score(summaries.splits_of(logits, np.arange(20))) == pytest.approx(
        np.mean(scores), rel=1e-12
    )


def test_metrics_are_those_that_features_can_serve():
    assert set(metrics.chosen(("features",))) == {"frechet", "kernel", "precision", "recall"}
    assert set(metrics.chosen(("features", "spatial", "logits", "embedding"))) == set(METRICS)
    assert list(metrics.chosen(("features",), ("recall", "frechet"))) == ["frechet", "recall"]
    for names, message in ((("fid",), "'fid'.*frechet"), (("sfid",), "'sfid'.*'spatial'")):
        with pytest.raises(ValueError, match=message):
            metrics.chosen(("features",), names)


@pytest.mark.parametrize("name", [*DISTANCES, *SHARES])
@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "widths [34] and [34]"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "5 of 5 vectors are not finite"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least [24]"),
        (np.zeros((5, 3, 1)), np.zeros((5, 3)), "expected \\(n, d\\)"),
    ],
)
def test_every_metric_refuses_bad_features(name, a, b, message):
    with pytest.raises(ValueError, match=message) as error:
        METRICS[name](a, b)
    assert "\n" not in str(error.value)


def test_pixels_are_the_pixels():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 3)).astype(np.float32)
    plug = FEATURES["pixels"]("")
    outputs = plug.apply(plug.variables, images)
    assert tuple(outputs) == plug.outputs
    np.testing.assert_array_equal(outputs["features"], images.reshape(3, 60))


@pytest.mark.parametrize("classes, count", [(20, 10_000), (20, 12_345), (1000, 10_000)])
def test_the_floor_of_the_inception_score_does_not_depend_on_the_order(classes, count):
    """A data set that is stored class by class, each image known for certain: its score is its number of classes."""
    labels = np.sort(np.arange(count) % classes)
    chosen = metrics.chosen(("logits",))
    floors = []
    for order in (labels, np.random.default_rng(1).permutation(labels)):
        logits = (({"logits": 50.0 * np.eye(classes)[order[i : i + 512]]}, np.arange(count)[i : i + 512])
                  for i in range(0, count, 512))  # fmt: skip
        summary = yardstick.gather(logits, yardstick.needs_of(chosen, reference=True), count, 100)
        floors.append(yardstick.Yardstick(chosen, {"": Reference({}, summary)}, 100).floor([0])["inception_score"])
    # Of numpy and scipy: exp of the entropy of the classes in splits of 5,000 at random.
    at_random = np.array_split(np.random.default_rng(2).permutation(labels), range(5000, count, 5000))
    expected = np.mean([np.exp(scipy.stats.entropy(np.bincount(part, minlength=classes))) for part in at_random])
    assert floors == pytest.approx([expected] * 2, rel=0.01)
    if classes == 20:
        assert floors == pytest.approx([20, 20], rel=0.01)
