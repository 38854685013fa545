"""Statistics, distances, the any-step table and pictures, against closed forms, scipy and naive loops."""

import json

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from tim_jax.evaluation import FEATURES, METRICS, anystep, distances, pictures, statistics


def gaussian(mean, covariance):
    """Statistics whose mean and covariance are exactly the given ones."""
    return statistics.Statistics(1001, np.asarray(mean, float), 1000 * np.asarray(covariance, float))


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


@pytest.mark.parametrize("rank", [2, 30])
def test_frechet_of_equal_statistics_is_zero(rank):
    rng = np.random.default_rng(4)
    s = statistics.of(rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 30)))
    assert 0 <= distances.frechet_distance(s, s) < 1e-11 * np.trace(s.covariance)


def test_kernel_equals_naive_loops(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((13, 5)) + 0.3

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b)) / 5 + 1) ** 3

    def within(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert abs(distances.KERNEL(x, y) - expected) < 1e-12


def test_kernel_is_unbiased():
    rng = np.random.default_rng(0)
    draws = [distances.KERNEL(rng.standard_normal((30, 4)), rng.standard_normal((20, 4))) for _ in range(2000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3 * error
    assert min(draws) < 0 < max(draws)
    # With the diagonal kept, the bias would be far outside that band.
    assert 8 * (1 / 30 + 1 / 20) > 30 * error


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_symmetric_and_sees_a_shift(name):
    rng = np.random.default_rng(0)
    a, b, far = rng.standard_normal((3, 400, 6)) + np.array([0.0, 0.0, 1.0])[:, None, None]
    metric = METRICS[name]
    np.testing.assert_allclose(metric(a, far), metric(far, a), rtol=1e-9)
    assert metric(a, far) > 10 * abs(metric(a, b))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "widths 3 and 4"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "5 of 5 rows are not finite"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least 2"),
        (np.zeros((5, 3, 1)), np.zeros((5, 3)), "expected \\(n, d\\)"),
    ],
)
def test_every_metric_refuses_bad_features(name, a, b, message):
    with pytest.raises(ValueError, match=message) as error:
        METRICS[name](a, b)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FEATURES)
def test_features_have_one_row_per_image(name):
    images = np.linspace(-1, 1, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8, 1)
    features = FEATURES[name](images)
    assert features.ndim == 2 and len(features) == 3 and np.issubdtype(features.dtype, np.floating)


def test_pixels_are_the_pixels():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 3)).astype(np.float32)
    features = FEATURES["pixels"](images)
    assert features.dtype == np.float64
    np.testing.assert_array_equal(features, images.reshape(3, 60))


# The any-step table

SHAPE = (4, 4, 1)


def data(seed, n):
    return np.tanh(np.random.default_rng(seed).standard_normal((n, *SHAPE))).astype(np.float32)


def sampler(error):
    """A sampler off by error(steps) in every pixel, from the same noise at every step count."""
    return lambda steps, seed, count: (data(1000 + seed, count) + np.float32(error(steps)), 0.01 * count * steps)


@pytest.fixture(scope="module")
def table():
    calls = []
    arguments = (data(0, 300), data(1, 100), FEATURES["pixels"])
    result = anystep.any_step_table(
        sampler(lambda s: 0.5 / s),
        [4, 1, 2],
        [0, 1, 2],
        200,
        *arguments,
        lambda steps: 2 * steps,
        lambda *call: calls.append(call),
    )
    assert [call[:2] for call in calls] == [(i, 9) for i in range(1, 10)]
    return result


def test_table_fields(table):
    assert [row["steps"] for row in table["rows"]] == [1, 2, 4]
    assert [row["nfe"] for row in table["rows"]] == [2, 4, 8]
    assert table["samples"] == 200 and table["seeds"] == [0, 1, 2]
    names = {f"{metric}{part}" for metric in METRICS for part in ("", "_held_out")}
    assert set(table["floor"]) == names
    fields = {"steps", "nfe", "seconds_per_image"} | {n + s for n in names for s in ("", "_spread", "_seeds")}
    for row in table["rows"]:
        assert set(row) == fields
        assert row["seconds_per_image"] == pytest.approx(0.01 * row["steps"])
        for name in names:
            assert row[name] == pytest.approx(np.mean(row[f"{name}_seeds"]))
            assert row[f"{name}_spread"] == pytest.approx(np.std(row[f"{name}_seeds"], ddof=1))
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_table_numbers(table):
    """The mean shift alone gives 16 · (0.5 / steps)², and each entry is the metric on the samples."""
    row = table["rows"][1]
    images = sampler(lambda s: 0.5 / s)(2, 1, 200)[0]
    for name, metric in METRICS.items():
        for suffix, part in (("", data(0, 300)), ("_held_out", data(1, 100))):
            expected = metric(images.reshape(200, -1), part.reshape(len(part), -1))
            assert row[f"{name}{suffix}_seeds"][1] == pytest.approx(expected, rel=1e-6)
    gain = table["rows"][0]["frechet"] - table["rows"][2]["frechet"]
    assert gain == pytest.approx(16 * (0.5**2 - 0.125**2), rel=0.15)
    x, y = data(0, 300).reshape(300, -1), data(1, 100).reshape(100, -1)
    for name, metric in METRICS.items():
        assert table["floor"][f"{name}_held_out"] == pytest.approx(metric(x, y), rel=1e-6, abs=1e-9)
    assert 0 < table["floor"]["frechet"] < table["rows"][0]["frechet"]


def test_one_seed_has_no_spread():
    arguments = ([1], [5], 50, data(0, 60), data(1, 60), FEATURES["pixels"])
    row = anystep.any_step_table(sampler(lambda s: 0), *arguments)["rows"][0]
    assert row["nfe"] == 1 and row["frechet_spread"] == 0 and len(row["frechet_seeds"]) == 1


@pytest.mark.parametrize(
    "values, rises",
    [
        ([0.5, 0.4, 0.4], []),
        ([0.5, 0.4, 0.42], []),
        ([0.5, 0.4, 0.44], [[2, 4, 1.1]]),
        ([0.5, 0.6, 0.9], [[1, 2, 1.2], [2, 4, 1.5]]),
        ([0.0, 0.0, 0.0], []),
        ([0.5], []),
    ],
)
def test_monotone(values, rises):
    result = anystep.monotone([{"steps": s, "frechet": v} for s, v in zip((1, 2, 4), values)])
    assert [r[:2] for r in result["rises"]] == [r[:2] for r in rises]
    np.testing.assert_allclose([r[2] for r in result["rises"]], [r[2] for r in rises])
    assert ("nowhere" in result["verdict"]) == (not rises) and result["verdict"].endswith(".")
    assert all(f"{a} to {b} steps" in result["verdict"] for a, b, _ in rises)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": [0, 1]}, "steps"),
        ({"steps": []}, "steps"),
        ({"seeds": []}, "seeds"),
        ({"count": 1}, "count 1"),
        ({"sample": lambda steps, seed, count: (np.zeros((count, 2, 2, 1)), 1.0)}, "expected \\(20, 4, 4, 1\\)"),
        ({"sample": sampler(lambda s: np.nan)}, "samples at 1 steps, seed 0: 20 of 20 are not finite"),
    ],
)
def test_table_refuses(change, message):
    arguments = dict(sample=sampler(lambda s: 0), steps=[1], seeds=[0], count=20)
    arguments |= dict(reference=data(0, 30), held_out=data(1, 30), features=FEATURES["pixels"])
    with pytest.raises(ValueError, match=message) as error:
        anystep.any_step_table(**(arguments | change))
    assert "\n" not in str(error.value)


def test_markdown(table):
    text = anystep.to_markdown(table | {"step": 1234})
    lines = text.splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| 1 | 2 | ") and lines[5].startswith("| floor |")
    assert table["monotone"]["verdict"] in text and "200 samples" in text and "training step 1234" in text


def test_write_keeps_what_was_there(table, tmp_path):
    anystep.write(table, tmp_path)
    anystep.write(table, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["any_step.json", "any_step.md", "any_step.png"]
    assert json.loads((tmp_path / "any_step.json").read_text()) == table
    assert (tmp_path / "any_step.md").read_text() == anystep.to_markdown(table)
    for step in (1, 2):
        anystep.write(table | {"step": step}, tmp_path)
    assert json.loads((tmp_path / "any_step.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "any_step.1.json").read_text()) == table
    assert json.loads((tmp_path / "any_step.2.json").read_text())["step"] == 1
    assert Image.open(tmp_path / "any_step.png").size == (1050, 675)


def test_plot_of_several_tables(table, tmp_path):
    other = table | {"floor": table["floor"] | {"frechet": 0.3}}
    for name, tables in (("same", {"a": table, "b": table}), ("differ", {"a": table, "b": other})):
        anystep.plot(tables, tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


# Pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size, scale, side", [(8, None, 64), (4, 3, 12), (80, None, 80), (80, 1, 80)])
def test_grid_shapes_and_pixels(channels, size, scale, side, tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (5, size, size, channels)).astype(np.float32)
    picture = pictures.grid(images, 3, tmp_path / "grid.png", scale)
    step = side + pictures.GAP
    assert picture.size == (3 * step + pictures.GAP, 2 * step + pictures.GAP)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(pixels, np.asarray(picture))
    factor = side // size
    fourth = pixels[pictures.GAP + step :, pictures.GAP :][:side:factor, :side:factor]
    np.testing.assert_array_equal(fourth, pictures.to_uint8(images[3]))
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_grey_levels():
    images = np.array([-1, 1, 0, -5, 5, np.nan], np.float32).reshape(1, 6, 1)
    assert pictures.to_uint8(images)[0, :, 0].tolist() == [0, 255, 128, 0, 255, 128]


def test_labels_take_a_margin_and_leave_the_images():
    images = data(0, 6)
    plain, labelled = pictures.grid(images, 3), pictures.grid(images, 3, row_labels=["1 step", "32 steps"])
    margin = labelled.width - plain.width
    assert margin > 20 and labelled.height == plain.height
    np.testing.assert_array_equal(np.asarray(labelled)[:, margin:], np.asarray(plain))
    for half in np.split(np.asarray(labelled)[: plain.height // 2 * 2, :margin], 2):
        assert half.min() < 100


def test_any_step_grid():
    by_steps = {1: data(0, 3), 2: data(1, 3)}
    expected = pictures.grid(np.concatenate([data(0, 3), data(1, 3)]), 3, row_labels=["1 step", "2 steps"])
    np.testing.assert_array_equal(np.asarray(pictures.any_step_grid(by_steps)), np.asarray(expected))


def test_nearest():
    training = data(0, 3000)
    chosen = np.random.default_rng(0).permutation(3000)[:1500]
    samples = training[chosen] + np.float32(0.01)
    indices, gaps = pictures.nearest(samples, training)
    np.testing.assert_array_equal(indices, chosen)
    np.testing.assert_allclose(gaps, 0.04, rtol=1e-5)
    indices, gaps = pictures.nearest(training, training, 5)
    assert indices.tolist() == [0, 1, 2, 3, 4] and (gaps == 0).all()


def test_neighbours_picture(tmp_path):
    picture = pictures.neighbours_picture(data(2, 10), data(0, 50), 7, 4, tmp_path / "near.png")
    assert Image.open(tmp_path / "near.png").size == picture.size
    assert picture.width == 4 * (2 * 64 + pictures.GAP + 12) + 12


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pictures.grid(np.zeros((2, 8, 8, 4)), 2), "1 or 3 channels"),
        (lambda: pictures.grid(np.zeros((8, 8, 1)), 2), "expected \\(n, h, w, C\\)"),
        (lambda: pictures.grid(np.zeros((0, 8, 8, 1)), 2), "n at least 1"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 0), "columns 0"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 2, scale=0), "scale 0"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 1, row_labels=["a"]), "1 for 2 rows"),
        (lambda: pictures.any_step_grid({1: data(0, 2), 2: data(0, 3)}), "same number"),
        (lambda: pictures.nearest(np.zeros((2, 8, 8, 1)), np.zeros((2, 4, 4, 1))), "expected that of training"),
    ],
)
def test_pictures_refuse(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
