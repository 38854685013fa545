"""References, published files, and the command line around them: what fits is used again, what does not is refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg
import scipy.spatial
import sklearn.datasets
import sklearn.metrics
import sklearn.neighbors
from PIL import Image

from tests.evaluation.test_inception import made_up_weights
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import told
from tim_jax import diagnose, evaluate, sample, train
from tim_jax.evaluation import FEATURES, METRICS, pictures, published, references, statistics, summaries
from tim_jax.evaluation.references import Reference
from tim_jax.system import tiles
from tim_jax.training import checkpoints, sharding, warm_start

SMALL = [
    *flags(TINY_NETWORK), "--config.model.patch_size=4", "--config.data.batch_size=32",
    "--config.training.sample_steps=1", "--config.training.sample_every=0", "--config.training.steps=4",
    "--config.training.log_every=1", "--config.optimizer.warmup_steps=0",
]  # fmt: skip
FINGERPRINT = {"data": "digits ab", "split": "train", "images": 30, "size": "8x8x1", "preprocessing": "8 bits",
               "features": "pixels", "rows": 20}  # fmt: skip


def summary(seed=0):
    rng = np.random.default_rng(seed)
    outputs = {"features": rng.standard_normal((30, 5)), "logits": rng.standard_normal((30, 4))}
    needs = (("features", "moments"), ("features", "raw"), ("logits", "splits"))
    return summaries.summarise(outputs, summaries.shuffled_places(30), needs, 20)


def test_a_reference_is_read_as_it_was_written(tmp_path):
    path, reference = tmp_path / "new" / "reference.npz", Reference(FINGERPRINT, summary())
    references.write(path, reference)
    found = references.read(path)
    assert found.fingerprint == FINGERPRINT and found.summary.keys() == reference.summary.keys()
    for need, value in reference.summary.items():
        assert type(found.summary[need]) is type(value)
        for a, b in zip(found.summary[need], value, strict=True):
            np.testing.assert_array_equal(a, b)
    assert found.summary["features", "moments"].count == 30
    with np.load(path) as stored:  # by the names that references of earlier versions have
        assert {"features/moments/count", "features/rows/values", "logits/shuffled_splits/sums"} < set(stored.files)
    old = FINGERPRINT | {"preprocessing": "none"}
    references.write(tmp_path / "old.npz", Reference(old, reference.summary))
    assert references.read(tmp_path / "old.npz").fingerprint == FINGERPRINT, "pixels of data sets always had 8 bits"
    latents = old | {"size": "8x8x4"}
    references.write(tmp_path / "latents.npz", Reference(latents, reference.summary))
    assert references.read(tmp_path / "latents.npz").fingerprint == latents
    needs = list(reference.summary)
    assert references.cached(path, FINGERPRINT, needs) is not None
    assert references.cached(path, FINGERPRINT, [*needs, ("spatial", "moments")]) is None
    assert references.cached(path, FINGERPRINT | {"rows": 21}, needs) is None
    assert references.cached(tmp_path / "none.npz", FINGERPRINT, needs) is None


@pytest.mark.parametrize("key", FINGERPRINT)
def test_what_differs_is_named(key):
    references.check_same(FINGERPRINT, dict(FINGERPRINT), "x")
    with pytest.raises(ValueError, match=f"x is of {key} 'other', not {FINGERPRINT[key]!r}"):
        references.check_same(FINGERPRINT | {key: "other"}, FINGERPRINT, "x")
    assert references.name_of(FINGERPRINT) != references.name_of(FINGERPRINT | {key: "other"})


def test_a_damaged_reference_is_refused(tmp_path):
    references.write(tmp_path / "whole.npz", Reference(FINGERPRINT, summary()))
    data = (tmp_path / "whole.npz").read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], b"x" * 50):
        (tmp_path / "cut.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="cut.npz: not a reference, or damaged") as error:
            references.read(tmp_path / "cut.npz")
        assert "\n" not in str(error.value)
        assert references.cached(tmp_path / "cut.npz", FINGERPRINT, []) is None


def images_of(seed, count=20, side=8):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_published_images_are_what_numpy_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PART", 7)
    images, labels, path = images_of(0), np.arange(20) % 10, tmp_path / "samples.npz"
    published.write_images(path, iter(np.split(images, [3, 4, 15])), images.shape, labels)
    with np.load(path) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(stored["arr_0"], images)
        np.testing.assert_array_equal(stored["arr_1"], labels)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
    np.savez(tmp_path / "numpy.npz", arr_0=images)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=images)
    for name in ("samples.npz", "numpy.npz", "compressed.npz"):
        assert published.image_shape(tmp_path / name) == (20, 8, 8, 3)
        parts = list(published.read_images(tmp_path / name))
        assert [len(part) for part in parts] == [7, 7, 6]
        np.testing.assert_array_equal(np.concatenate(parts), images)
    with pytest.raises(ValueError, match="3 were given; shape says 20"):
        published.write_images(tmp_path / "few.npz", [images[:3]], images.shape, labels)
    assert not (tmp_path / "few.npz").exists()


def test_published_moments(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 6))
    np.savez(tmp_path / "batch.npz", mu=x.mean(0), sigma=np.cov(x.T), mu_s=x.mean(0)[:3], sigma_s=np.cov(x.T)[:3, :3])
    found = published.read_moments(tmp_path / "batch.npz")
    assert found.keys() == {("features", "moments"), ("spatial", "moments")}
    np.testing.assert_array_equal(found["features", "moments"].covariance, np.cov(x.T))
    np.testing.assert_array_equal(found["features", "moments"].mean, x.mean(0))
    np.testing.assert_allclose(found["features", "moments"].covariance, statistics.of(x).covariance, rtol=1e-12)
    assert published.image_shape(tmp_path / "batch.npz") is None
    np.savez(tmp_path / "wrong.npz", mu=x.mean(0), sigma=np.eye(3))
    with pytest.raises(ValueError, match="sigma.*must be"):
        published.read_moments(tmp_path / "wrong.npz")


# A run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of four steps on one device, its data beside it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
        train.main(["--config=digits", f"--workdir={folder / 'plain'}", *SMALL, where(folder)])
        yield folder


def where(folder):
    return f"--config.loader.directory={folder / 'data'}"


def run(place, *arguments):
    evaluate.main([f"--workdir={place / 'plain'}", where(place), "--seeds=1", "--steps=2", "--count=40", *arguments])
    return json.loads((place / "plain" / "any_step.json").read_text())


def fails(place, capsys, *arguments, seen=()):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    capsys.readouterr()
    error = told(lambda words: run(place, *words), arguments, capsys)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    for word in seen:
        assert word in error, error


def stored(place):
    return {path: path.stat().st_mtime_ns for path in (place / "data").glob("reference-*.npz")}


@pytest.mark.slow
def test_references_are_computed_once_and_again_where_they_do_not_fit(place):
    first = run(place)
    kept_files = stored(place)
    assert len(kept_files) == 2, "of the training part and of the held-out part"
    assert run(place)["rows"][0]["frechet"] == first["rows"][0]["frechet"] and stored(place) == kept_files
    fewer = run(place, "--config.evaluation.max_images=100")
    assert len(stored(place)) == 4 and fewer["reference"]["rows"] == 100
    assert fewer["rows"][0]["frechet"] == first["rows"][0]["frechet"], "all images count where no rows are needed"
    assert fewer["rows"][0]["kernel"] != first["rows"][0]["kernel"]
    for path in kept_files:
        path.write_bytes(path.read_bytes()[:500])
    assert run(place)["rows"][0]["frechet"] == pytest.approx(first["rows"][0]["frechet"], rel=1e-12)
    assert first["reference"]["split"] == "train" and first["reference"]["images"] == 1442


@pytest.mark.slow
def test_a_reference_by_name_must_fit(place, capsys):
    whole = run(place)
    (training,) = (path for path in stored(place) if references.read(path).fingerprint == whole["reference"])
    assert run(place, f"--config.evaluation.reference={training}")["rows"][0]["frechet"] == whole["rows"][0]["frechet"]
    found = references.read(training)
    for key, value in (("data", "photos cd"), ("size", "64x64x3"), ("features", "inception 01"), ("split", "held_out")):
        other = place / "other.npz"
        references.write(other, Reference(found.fingerprint | {key: value}, found.summary))
        fails(place, capsys, f"--config.evaluation.reference={other}", seen=[key, value, "cannot be compared"])
        other.unlink()


def frechet(x, y):
    """|μ₁ − μ₂|² + tr (Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½), by eigenvalues."""
    values, vectors = scipy.linalg.eigh(np.cov(x.T))
    root = vectors * np.sqrt(np.maximum(values, 0))[None, :] @ vectors.T
    overlap = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ np.cov(y.T) @ root), 0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * overlap


def kernel(x, y):
    def means(a, b):
        return sklearn.metrics.pairwise.polynomial_kernel(a, b, degree=3, gamma=1 / x.shape[1], coef0=1)

    def within(a):
        return (means(a, a).sum() - np.trace(means(a, a))) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * means(x, y).mean()


def precision(x, y):
    distances, _ = sklearn.neighbors.NearestNeighbors(n_neighbors=4).fit(y).kneighbors(y)
    return (scipy.spatial.distance.cdist(x, y) <= distances[None, :, 3]).any(axis=1).mean()


@pytest.mark.slow
def test_figures_are_those_of_the_files_that_are_written(place):
    """From the PNG files of the same samples and the digits of scikit-learn, by scipy and scikit-learn."""
    table, of_run = run(place), [f"--workdir={place / 'plain'}", where(place), "--steps=2"]
    evaluate.main([*of_run, "--count=40", f"--export={place / 'l.npz'}"])
    labels = ",".join(map(str, np.load(place / "l.npz")["arr_1"]))
    sample.main([*of_run, f"--labels={labels}", f"--out={place / 'png'}"])
    files, (drawn,) = sorted((place / "png").glob("*_steps2/*.png")), (place / "png").glob("*.npz")
    seen = np.stack([np.asarray(Image.open(file).convert("L"), np.float64).ravel() for file in files]) / 127.5 - 1
    of, digits = sklearn.datasets.load_digits(), {"": [], "_held_out": []}
    for label in range(10):
        for i, image in enumerate(of.data[of.target == label], 1):
            digits["" if i % 5 else "_held_out"].append(np.rint(image * 255 / 16) / 127.5 - 1)
    (row,) = table["rows"]
    for part, images in digits.items():
        for name, figure in (("frechet", frechet), ("kernel", kernel), ("precision", precision)):
            assert row[name + part] == pytest.approx(figure(seen, np.stack(images)), rel=1e-5), name
        assert row["recall" + part] == pytest.approx(precision(np.stack(images), seen), rel=1e-5)
    floats = np.load(drawn)["steps2"].reshape(40, -1)
    assert abs(frechet(floats, np.stack(digits[""])) / row["frechet"] - 1) > 1e-3, "which are others"


def test_the_nearest_image_is_that_of_the_file(monkeypatch):
    samples, training = np.full((1, 4, 4, 1), 1.6, np.float32), np.stack([np.ones((4, 4, 1)), np.full((4, 4, 1), 0.0)])
    written = []
    monkeypatch.setattr(tiles.ImageDraw.ImageDraw, "text", lambda self, at, text, **_: written.append(text))
    pictures.neighbours_picture(samples, [training.astype(np.float32)])
    assert written[-1] == "0.00", "what lies beyond white is white"


@pytest.mark.slow
def test_samples_are_exported_and_a_published_batch_is_a_reference(place, capsys):
    """Samples against the file that they were written to are the same images."""
    path = place / "samples.npz"
    evaluate.main([f"--workdir={place / 'plain'}", where(place), "--steps=2", "--count=40", f"--export={path}"])
    assert published.image_shape(path) == (40, 8, 8, 3)
    labels = np.load(path)["arr_1"]
    assert set(np.bincount(labels)) <= {3, 4, 5}, "of classes that are nearly as large"
    table = run(place, f"--config.evaluation.reference={path}", "--config.evaluation.held_out=")
    (row,) = table["rows"]
    assert "frechet_held_out" not in row and table["reference"]["images"] == 40
    assert row["frechet"] < 1e-9 and row["precision"] == row["recall"] == 1
    sample.main([f"--workdir={place / 'plain'}", where(place), "--steps=2", f"--out={place / 'drawn'}",
                 f"--labels={','.join(map(str, labels))}"])  # fmt: skip
    ((drawn,), written) = (place / "drawn").glob("*.npz"), np.load(path)["arr_0"]
    samples, seen = np.load(drawn)["steps2"], written[..., :1] / 127.5 - 1
    np.testing.assert_allclose(np.clip(samples, -1, 1), seen, atol=1 / 255 + 1e-6)
    for name, arrays, seen in (
        ("nothing", {"other": np.zeros(3)}, ["arr_0", "mu"]),
        ("size", {"arr_0": images_of(0, 8, 16)}, ["16x16", "8x8"]),
        ("floats", {"arr_0": images_of(0).astype(np.float32)}, ["float32", "uint8"]),
        ("few", {"arr_0": images_of(0, 3)}, ["3 images", "at least 4"]),
    ):
        np.savez(place / f"{name}.npz", **arrays)
        fails(
            place, capsys, f"--config.evaluation.reference={place / f'{name}.npz'}", seen=[name, *seen][name == "few" :]
        )
    (place / "cut.npz").write_bytes(path.read_bytes()[:300])
    fails(place, capsys, f"--config.evaluation.reference={place / 'cut.npz'}", seen=["cut.npz", "damaged"])


@pytest.mark.parametrize(
    "arguments, seen",
    [
        (["--config.evaluation.reference=none.npz"], ["evaluation.reference", "none.npz"]),
        (["--config.evaluation.features=inception"], ["evaluation.inception", "pt_inception-2015-12-05", "github.com"]),
        (["--config.evaluation.metrics=('fid',)"], ["evaluation.metrics", "'fid'", "frechet"]),
        (["--config.evaluation.metrics=('sfid',)"], ["evaluation.metrics", "'sfid'", "spatial"]),
        (["--config.evaluation.features=dino"], ["evaluation.features", "dino", "inception"]),
        (["--config.evaluation.held_out=nowhere"], ["nowhere"]),
        (["--config.evaluation.max_images=3"], ["evaluation.max_images", "3", "4"]),
        (["--count=3"], ["--count", "3", "4"]),
        (["--nearest=-1"], ["--nearest", "-1"]),
        (["--export=x.npz", "--steps=1,2"], ["--steps", "1,2", "--export"]),
        (["--export=x.png"], ["--export", "x.png", ".npz"]),
        (["--export=x.npz", "--steps=1", "--metrics=frechet"], ["--metrics is frechet; it must be left out"]),
        (["--export=x.npz", "--steps=1", "--nearest=0"], ["--nearest is 0; it must be left out with --export"]),
        (["--export=x.npz", "--config.evaluation.max_images=9"], ["evaluation.max_images is 9; it must be left out"]),
    ],
)
def test_wrong_evaluations_are_named(arguments, seen, place, capsys):
    fails(place, capsys, *arguments, seen=seen)


@pytest.mark.nightly
def test_the_table_by_inception_features(place):
    """Samples against themselves and others, as a published batch: every metric of FID's network, the floor, names."""
    weights = place / "inception.safetensors"
    safetensors.numpy.save_file(made_up_weights(), weights)
    evaluate.main(
        [f"--workdir={place / 'plain'}", where(place), "--steps=2", "--count=8", f"--export={place / 's.npz'}"]
    )
    options = [f"--config.evaluation.inception={weights}", "--config.evaluation.features=inception", "--count=8",
               "--config.evaluation.held_out=", "--config.evaluation.batch_size=8"]  # fmt: skip
    (row,) = run(place, *options, f"--config.evaluation.reference={place / 's.npz'}")["rows"]
    assert row["frechet"] < 1e-6 and row["sfid"] < 1e-6 and row["precision"] == row["recall"] == 1
    assert 1 <= row["inception_score"] <= 8
    text = (place / "plain" / "any_step.md").read_text().splitlines()[0]
    assert [title in text for title in ("FID", "sFID", "KID", "Inception score", "precision", "recall")] == [True] * 6
    np.savez(place / "o.npz", arr_0=images_of(1, 8))
    (other,) = run(place, *options, f"--config.evaluation.reference={place / 'o.npz'}")["rows"]
    assert other["frechet"] > 0.1 and other["inception_score"] == row["inception_score"]
    # Of a batch that holds statistics only, FID alone.
    plug = FEATURES["inception"](str(weights))
    levels = images_of(1, 8).astype(np.float32) / np.float32(127.5) - 1
    features = np.asarray(jax.jit(plug.apply)(plug.variables, levels[..., :1])["features"], np.float64)
    np.savez(place / "m.npz", mu=features.mean(0), sigma=np.cov(features.T))
    table = run(place, *options, f"--config.evaluation.reference={place / 'm.npz'}")
    assert set(table["rows"][0]) & set(METRICS) == {"frechet", "inception_score"} and "frechet" not in table["floor"]
    assert table["rows"][0]["frechet"] == pytest.approx(other["frechet"], rel=1e-4)


def test_a_run_that_cannot_be_written_to_is_measured_elsewhere(place, capsys, monkeypatch):
    """And nothing is drawn where the result has no place."""
    before = {path: path.stat().st_mtime_ns for path in (place / "plain").rglob("*")}
    measure = [f"--workdir={place / 'plain'}", where(place), "--seeds=1", "--steps=2", "--count=20"]
    evaluate.main([*measure, f"--out={place / 'new' / 'elsewhere'}"])
    written = {path.name for path in (place / "new" / "elsewhere").iterdir()}
    assert written == {"any_step.json", "any_step.md", "any_step.png", "any_step_samples.png", "nearest.png"}
    assert {path: path.stat().st_mtime_ns for path in (place / "plain").rglob("*")} == before
    monkeypatch.setattr(warm_start, "read_network", None)  # no weights are read
    nowhere = place / "data" / "x.npz"
    nowhere.write_text("a file")
    capsys.readouterr()
    for main, arguments, option in (
        (evaluate.main, [*measure, f"--out={nowhere}"], "--out"),
        (evaluate.main, [*measure, f"--export={nowhere / 'x.npz'}"], "--export"),
        (sample.main, [*measure[:2], f"--out={nowhere}"], "--out"),
        (diagnose.main, [*measure[:2], f"--out={nowhere}"], "--out"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err.strip()
        assert stop.value.code == 2 and error.startswith(f"error: {option} is ") and "\n" not in error, error
    with pytest.raises(SystemExit):
        evaluate.main([*measure, "--out=x", "--export=x.npz"])
    assert "--out is 'x'; it must be left out with --export" in capsys.readouterr().err
    nowhere.unlink()


def test_a_run_knows_the_labels_of_its_data(place):
    counts = json.loads((place / "plain" / "labels.json").read_text())["counts"]
    whole = np.bincount(sklearn.datasets.load_digits().target)
    assert counts == (whole - whole // 5).tolist()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_evaluation_while_training_changes_no_number_of_it(place):
    every = ["--config.evaluation.periodic.every=2", "--config.evaluation.periodic.steps=1,2",
             "--config.evaluation.periodic.num_samples=20",
             "--config.evaluation.periodic.emas=('online', 'slow')"]  # fmt: skip
    train.main(["--config=digits", f"--workdir={place / 'measured'}", *SMALL, where(place), *every])
    plain, found = lines(place / "plain"), lines(place / "measured")
    figures = [line for line in found if "loss" not in line]
    assert [line["step"] for line in figures] == [2, 4]
    names = {f"evaluation/{weights}/{steps}/{name}{part}" for weights in ("online", "slow") for steps in (1, 2)
             for name in ("frechet", "kernel", "precision", "recall") for part in ("", "_held_out")}  # fmt: skip
    for line in figures:
        assert set(line) == names | {"step", "time"}
    assert figures[0]["evaluation/online/2/frechet"] != figures[1]["evaluation/online/2/frechet"]
    trained = [line for line in found if "loss" in line]
    assert [line["loss"] for line in trained] == [line["loss"] for line in plain]
    states = [checkpoint_arrays(place / name) for name in ("plain", "measured")]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 20
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])
    events = b"".join(path.read_bytes() for path in (place / "measured" / "events").iterdir())
    assert b"evaluation/slow/2/frechet" in events
    # What the command measures with the same weights, samples and reference is the same figure.
    evaluate.main([f"--workdir={place / 'measured'}", where(place), "--seeds=1", "--steps=2", "--count=20"])
    (row,) = json.loads((place / "measured" / "any_step.json").read_text())["rows"]
    assert row["frechet"] == pytest.approx(figures[1]["evaluation/slow/2/frechet"], rel=1e-9)


def checkpoint_arrays(folder):
    from etils import epath

    manager = checkpoints.open_manager(epath.Path(folder), 2, read_only=True)
    state = manager.restore(4)["state"]
    manager.close()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if hasattr(leaf, "shape")}


def test_samples_that_are_not_finite_do_not_end_training(place, capsys, monkeypatch):
    from tim_jax.runs.generation import Generator

    monkeypatch.setattr(Generator, "batches", lambda *given, **_: iter([np.full((len(given[3]), 8, 8, 1), np.nan)]))
    more = [
        "--config.evaluation.periodic.every=4",
        "--config.evaluation.periodic.steps=1",
        "--config.evaluation.periodic.num_samples=20",
    ]
    train.main(["--config=digits", f"--workdir={place / 'broken'}", *SMALL, where(place), *more,
                "--config.model.condition=class"])  # fmt: skip
    assert "20 of 20" in capsys.readouterr().err
    assert [line["step"] for line in lines(place / "broken") if "loss" in line] == [1, 2, 3, 4]
