"""What perfect samples would score, against truth: distributions from which fresh samples can be drawn."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.special

from tim_jax.evaluation import METRICS, anystep, floors, metrics
from tim_jax.evaluation.references import Reference
from tim_jax.evaluation.yardstick import HELD_OUT, Yardstick, gather, needs_of

WIDTH = 24


def gaussian(rng, n, width=WIDTH):
    """A spectrum that falls as that of images does."""
    return rng.standard_normal((n, width)) / np.sqrt(np.arange(1, width + 1))[None, :]


def mixture(rng, n, width=WIDTH):
    """Ten classes of their own means and widths, cut off as pixels are."""
    about = np.random.default_rng(99)
    means, widths = 1.5 * gaussian(about, 10, width), about.uniform(0.3, 1.2, 10)
    label = rng.integers(0, 10, n)
    return np.tanh(means[label] + widths[label, None] * gaussian(rng, n, width))


def frechet(x, y):
    """|μ₁ − μ₂|² + tr (Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½), by eigenvalues."""
    values, vectors = scipy.linalg.eigh(np.cov(x.T))
    root = (vectors * np.sqrt(np.maximum(values, 0))[None, :]) @ vectors.T
    overlap = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ np.cov(y.T) @ root), 0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * overlap


def kernel(x, y):
    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        return (k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * k(x, y).mean()


def precision(x, y):
    near = np.sort(scipy.spatial.distance.cdist(y, y), axis=1)[:, 3]
    return (scipy.spatial.distance.cdist(x, y) <= near[None, :]).any(axis=1).mean()


TRUTH = {"frechet": frechet, "kernel": kernel, "precision": precision, "recall": lambda x, y: precision(y, x)}


def yardstick(training, held_out=None, max_images=10_000):
    chosen, references = metrics.chosen(("features",)), {}
    for suffix, x in {"": training, **({} if held_out is None else {HELD_OUT: held_out})}.items():
        stream = [({"features": x}, np.arange(len(x)))]
        summary = gather(stream, needs_of(chosen, reference=True), len(x), max_images)
        references[suffix] = Reference({}, summary)
    return Yardstick(chosen, references, max_images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw, images, count", [(mixture, 300, 300), (gaussian, 300, 60), (gaussian, 200, 1000), (mixture, 200, 1000)]
)
def test_floors_are_what_fresh_samples_score(draw, images, count):
    """Over references of their own, the means of the estimates are those of samples that are drawn anew."""
    found, true, halves = {}, {}, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        reference, held_out, samples = (draw(rng, n) for n in (images, 150, count))
        measured = yardstick(reference, held_out)
        halves.append(measured.floor([0, 1, 2])["frechet"])
        for name, value in measured.floor_at(count, [0, 1, 2]).items():
            found.setdefault(name, []).append(value)
        for suffix, other in (("", reference), (HELD_OUT, held_out)):
            for name, figure in TRUTH.items():
                true.setdefault(name + suffix, []).append(figure(samples, other))
    assert found.keys() == true.keys() | {"kernel_spread"}
    error = {name: np.hypot(np.std(found[name]), np.std(true[name])) / np.sqrt(12) for name in true}
    for name in true:
        # A share within more samples than there are images is that within as many as there are.
        room = 0.03 if name.startswith("recall") and count > images else 0.0
        tolerance = 3.5 * error[name] + room + 0.02 * abs(np.mean(true[name]))
        assert abs(np.mean(found[name]) - np.mean(true[name])) < tolerance, name
    assert error["frechet"] < 0.08 * np.mean(true["frechet"]), "so that this says something"
    if count >= images:
        assert np.mean(halves) > 1.8 * np.mean(found["frechet"])
    assert np.mean(found["kernel"]) == 0


@pytest.mark.parametrize("draw", [gaussian, mixture])
def test_the_spread_of_the_kernel_distance(draw):
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    true = np.std([kernel(draw(rng, 60), draw(rng, 150)) for rng in rngs])
    found = [yardstick(draw(rng, 150)).floor_at(60, [0, 1, 2])["kernel_spread"] for rng in rngs[:10]]
    assert np.mean(found) == pytest.approx(true, rel=0.4), "cubes of features have heavy tails"


def test_more_dimensions_than_images():
    """Covariances of less than full rank, where the bias is no line in 1/n: a line would be 15% off."""
    found, true = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        reference, samples = (gaussian(rng, 120, 160) for _ in range(2))
        found.append(yardstick(reference).floor_at(120, [0, 1])["frechet"])
        true.append(frechet(samples, reference))
    assert np.mean(found) == pytest.approx(np.mean(true), rel=0.03)


def test_more_images_than_are_stored():
    """Of 2,000 images the features of 400 are stored: their splits tell what sets of 2,000 score."""
    found, true = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference, samples = (mixture(rng, 2000, 12) for _ in range(2))
        found.append(yardstick(reference, max_images=400).floor_at(2000, [0, 1, 2])["frechet"])
        true.append(frechet(samples, reference))
    assert abs(np.mean(found) - np.mean(true)) < 3.5 * np.hypot(np.std(found), np.std(true)) / np.sqrt(20)
    assert np.std(found) < 0.4 * np.mean(true)


def test_the_bias_is_a_curve_through_what_was_measured():
    rng = np.random.default_rng(0)
    x = mixture(rng, 200)
    given = floors.Given(METRICS["frechet"], x, None, 50, 200, [3, 4])
    levels = floors.split_figures(given, 2)
    assert [h for h, _ in levels] == pytest.approx([k * (1 / 50 + 1 / 150) for k in (1, 2, 4)])
    assert [len(figures) for _, figures in levels] == [2, 4, 8]
    order = np.random.default_rng(4).permutation(200)
    assert levels[0][1][1] == pytest.approx(frechet(x[order[:50]], x[order[50:]]), rel=1e-6)
    assert levels[1][1][3] == pytest.approx(frechet(x[order[25:50]], x[order[125:]]), rel=1e-6)
    for h, figures in levels:
        assert given.bias(h) == pytest.approx(figures.mean())
    assert given.bias(0) == 0


def test_references_that_are_too_small_or_of_unknown_size_have_no_floor():
    small = yardstick(np.random.default_rng(0).standard_normal((4, 3)))
    assert small.floor_at(4, [0]) == {}
    five = yardstick(np.random.default_rng(0).standard_normal((5, 3)))
    assert five.floor_at(5, [0]).keys() == {"frechet", "kernel", "kernel_spread", "precision", "recall"}
    x = np.random.default_rng(0).standard_normal((50, 3))
    measured = yardstick(x)
    summary = measured.references[""].summary
    moments = summary["features", "moments"]
    summary["features", "moments"] = moments._replace(
        count=2, scatter=moments.covariance
    )  # as published files are read
    assert "frechet" not in measured.floor_at(50, [0]) and "precision" in measured.floor_at(50, [0])


def test_the_inception_score_of_as_many_images():
    """Few samples of many classes score less; the floor is the mean over subsets, by the formula written out."""
    logits = 50.0 * np.eye(40)[np.random.default_rng(0).permutation(np.arange(800) % 40)]
    chosen = metrics.chosen(("logits",))
    summary = gather([({"logits": logits}, np.arange(800))], needs_of(chosen, reference=True), 800, 1000)
    measured = Yardstick(chosen, {"": Reference({}, summary)}, 1000)

    def score(some):
        p = scipy.special.softmax(some, axis=1)
        return np.exp(scipy.special.rel_entr(p, p.mean(axis=0, keepdims=True)).sum(axis=1).mean())

    rng = np.random.default_rng(1)
    expected = np.mean([score(logits[rng.permutation(800)[:30]]) for _ in range(300)])
    assert expected < 25
    assert measured.floor_at(30, range(60))["inception_score"] == pytest.approx(expected, rel=0.03)
    assert measured.floor_at(800, [0])["inception_score"] == pytest.approx(40, rel=1e-6)


def test_both_floors_are_in_the_table_and_its_words(tmp_path):
    rng = np.random.default_rng(0)
    measured = yardstick(mixture(rng, 120), mixture(rng, 40))
    samples = [({"features": mixture(rng, 60)}, np.arange(60))]
    table = anystep.any_step_table(lambda *_: (measured.figures(samples, 60), 1.0), [1], [0], 60, measured.floor([0]))
    assert "floor, halves" in anystep.to_markdown(table) and "60 samples |" not in anystep.to_markdown(table)
    table["floor_at_count"] = measured.floor_at(60, [0])
    text = anystep.to_markdown(table)
    (line,) = [line for line in text.splitlines() if line.startswith("| floor, 60 samples |")]
    cells = [cell.strip() for cell in line.split("|")[3:-2]]
    assert cells[0] == f"{table['floor_at_count']['frechet']:.3g}" and cells[1] == (
        f"0 ± {table['floor_at_count']['kernel_spread']:.1g}"
    )
    assert cells[4] == f"{table['floor_at_count']['frechet_held_out']:.3g}" and all(cells)
    for said in ("60 samples: what as many perfect samples", "1/samples + 1/images", "no bias", "in place of samples"):
        assert said in text
    anystep.write(table, tmp_path)


def test_the_floor_of_halves_is_what_scipy_says():
    rng = np.random.default_rng(0)
    x, held_out = mixture(rng, 90), mixture(rng, 40)
    found, expected = yardstick(x, held_out).floor([0, 5]), {}
    for seed in (0, 5):
        order = np.random.default_rng(seed).permutation(90)
        for name, figure in TRUTH.items():
            expected.setdefault(name, []).append(figure(x[order[:45]], x[order[45:]]))
    expected = {name: np.mean(values) for name, values in expected.items()}
    expected |= {name + HELD_OUT: figure(x, held_out) for name, figure in TRUTH.items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_sfid_is_the_frechet_distance_of_its_features():
    x, y = (gaussian(np.random.default_rng(seed), 60) for seed in (0, 1))
    assert METRICS["sfid"](x, y) == pytest.approx(frechet(x, y), rel=1e-6)
