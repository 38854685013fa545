"""Diagnostics: every number against a network whose derivative is known, the command on a real run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import workdirs
from tests.helpers.configs import TINY_NETWORK
from tim_jax import diagnose
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import diagnostics
from tim_jax.runs import diagnosis
from tim_jax.types import Output

TINY = {
    **TINY_NETWORK,
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.sample_steps": "1", "training.sample_every": "0",
    "training.steps": "2", "model.dtype": "bfloat16",
}  # fmt: skip


def known(params):
    """F = (2 + 3 t²) x_t + r, in float32."""

    def net(queries):
        expand = lambda t: t[:, None, None, None]  # noqa: E731
        return tuple(Output((2 + 3 * expand(q.t) ** 2) * q.x_t + expand(q.r)) for q in queries)

    return net


def own(params):
    """The same with F turned into 1.01 F, as if by rounding."""

    def net(queries):
        return tuple(Output(1.01 * output.F) for output in known(params)(queries))

    return net


@pytest.fixture
def run():
    """A run on OT-FM with the known network in the place of its own."""
    run = build(load_config("digits", TINY), jax.devices()[:4])
    nets = {"float32": known, "ema": own}
    step = dataclasses.replace(run.trainer.step, nets=nets)
    return dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, step=step))


def test_every_number_is_that_of_a_known_network(run):
    rng = np.random.default_rng(3)
    x, labels, epsilon = rng.standard_normal((6, 8, 8, 1)).astype(np.float32), np.arange(6, dtype=np.int32), 0.05
    found = diagnosis.diagnose(run, None, x, labels, nodes=3, epsilons=[epsilon])
    times, noise = found["times"], np.random.default_rng(1).standard_normal(x.shape)
    np.testing.assert_allclose(times, [0, 0.5, 1], atol=1e-6)

    def F(t, r):
        return (2 + 3 * t**2) * ((1 - t) * x + t * noise) + r

    for i, j in zip(*diagnostics.pairs(3), strict=True):
        t, r, v = times[i], times[j], noise - x
        dF_dt = 6 * t * ((1 - t) * x + t * noise) + (2 + 3 * t**2) * v
        target = v - (t - r) * dF_dt
        above, below = min(t + epsilon, 1), max(t - epsilon, 0)
        difference = (F(above, r) - F(below, r)) / (above - below)
        for name, expected in {
            "error": np.mean((F(t, r) - target) ** 2),
            "square": np.mean(dF_dt**2),
            "tangent": np.sqrt(np.mean(dF_dt**2)),
        }.items():
            np.testing.assert_allclose(found[name][i, j], expected, rtol=1e-4)
        by_type = found["difference"]
        np.testing.assert_allclose(
            by_type["float32"][epsilon][i, j], np.mean((difference - dF_dt) ** 2), rtol=1e-3, atol=1e-7
        )
        np.testing.assert_allclose(
            by_type["bfloat16"][epsilon][i, j], np.mean((1.01 * difference - dF_dt) ** 2), rtol=1e-3, atol=1e-7
        )
        np.testing.assert_allclose(by_type["bfloat16"]["exact"][i, j], 1e-4 * np.mean(dF_dt**2), rtol=1e-2)
    for name in ("error", "tangent"):
        assert np.isnan(found[name][np.triu_indices(3, 1)]).all()


def test_relative_errors_add_squares_before_the_ratio():
    nodes = 4
    t, r = diagnostics.pairs(nodes)
    rng = np.random.default_rng(0)
    difference, size = (diagnostics.matrix(nodes, rng.uniform(1, 2, len(t))) for _ in range(2))
    for by, group in (("interval", lambda i, j: i - j), ("time", lambda i, j: i)):
        expected = []
        for k in range(nodes):
            cells = [(i, j) for i in range(nodes) for j in range(i + 1) if group(i, j) == k]
            expected.append(np.sqrt(sum(difference[c] for c in cells) / sum(size[c] for c in cells)))
        np.testing.assert_allclose(diagnostics.relative(difference, size, by), expected)


def test_the_tables_in_text_hold_what_numpy_says():
    rng, levels = np.random.default_rng(1), np.linspace(0, 1, 5)
    error, square, off = (diagnostics.matrix(5, rng.uniform(1, 2, 15)) for _ in range(3))
    found = {"levels": levels, "error": error, "square": square, "difference": {"float32": {0.01: off}}}
    text = diagnostics.as_text(found).splitlines()
    for title, group in (("By noise level", lambda i, j: i), ("By interval", lambda i, j: i - j)):
        start = next(i for i, line in enumerate(text) if line.startswith(title))
        assert text[start + 1].split("  ")[-1] == "eps 0.01"
        for k, line in enumerate(text[start + 2 : start + 7]):
            cells = [(i, j) for i in range(5) for j in range(i + 1) if group(i, j) == k]
            means = [np.mean([values[cell] for cell in cells]) for values in (error, square, off)]
            expected = [levels[k], means[0], np.sqrt(means[1]), np.sqrt(means[2] / means[1])]
            np.testing.assert_allclose([float(cell) for cell in line.split()], expected, rtol=6e-3)
    many = {"levels": np.linspace(0, 1, 100), **{name: np.ones((100, 100)) for name in ("error", "square")}}
    assert len(diagnostics.as_text(many | {"difference": {}}).splitlines()) <= 2 * (diagnostics.MAX_LINES + 3) + 2


def test_json_has_no_word_for_what_is_not_finite():
    given = {"a": np.array([1.0, np.nan]), "b": [np.float32(np.inf), 2], "c": {"d": np.int64(3)}}
    assert diagnostics.plain(given) == {"a": [1.0, None], "b": [None, 2], "c": {"d": 3}}


@pytest.mark.parametrize("name", ["trigflow", "vp", "ve", "edm"])
def test_nodes_are_equal_noise_levels_of_every_transport(name):
    run = build(load_config("digits_small", TINY | {"transport.name": name, "objective.weight.kernel": "constant"}))
    step = dataclasses.replace(run.trainer.step, nets={"float32": known, "ema": own})
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, step=step))
    x = np.ones((2, 8, 8, 1), np.float32)
    found = diagnosis.diagnose(run, None, x, np.zeros(2, np.int32), nodes=5, epsilons=[0.001])
    times = jnp.array(found["times"], jnp.float32)
    assert (times[0], times[-1]) == (np.float32(run.transport.T_min), np.float32(run.transport.T_max))
    np.testing.assert_allclose(run.transport.level(times)[1:-1], found["levels"][1:-1], atol=1e-3)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with workdirs.one_device():
        yield workdirs.workdir(tmp_path_factory.mktemp("run") / "run", "digits", **TINY)


@pytest.mark.slow
def test_the_command_writes_numbers_and_pictures(workdir, capsys):
    diagnose.main([f"--workdir={workdir}", "--examples=4", "--nodes=3", "--epsilons=0.01,0.001"])
    said = capsys.readouterr().out
    assert "By noise level of t" in said and "eps 0.001 float32" in said and "forward bfloat16" in said
    found = json.loads((workdir / "diagnostics.json").read_text())
    assert f"{found['error'][0][0]:.3g}" in said  # alone at its time
    assert found["step"] == 0 and found["rows"] == 4 and found["transport"] == "ot_fm"
    assert len(found["error"]) == 3 and found["error"][0][1] is None and found["error"][2][0] > 0
    assert found["tangent"][2][0] > 0 and found["derivative"]["time"]["float32"]["0.001"][2] > 0
    assert set(found["derivative"]["time"]) == {"float32", "bfloat16"}
    assert set(found["derivative"]["interval"]["bfloat16"]) == {"0.001", "0.01", "exact"}
    for name in diagnostics.NAMES[1:]:
        with Image.open(workdir / name) as picture:
            assert picture.size[0] > 500


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--examples=0"], ["--examples", "0"]),
        (["--examples=100000"], ["--examples", "100000", "held-out"]),
        (["--nodes=1"], ["--nodes", "1", "2"]),
        (["--epsilons=a"], ["--epsilons", "a"]),
        (["--epsilons=0.6"], ["--epsilons", "0.6", "0.5"]),
        (["--config.model.depth=3"], ["model.depth", "3", "1"]),
    ],
)
def test_wrong_arguments_are_named(arguments, named, workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        diagnose.main([f"--workdir={workdir}", *arguments])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(error) == 1
    for word in named:
        assert word in error[0]
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_predictions_that_are_drawn_are_not_diagnosed():
    run = build(
        load_config("base", TINY_NETWORK | {"objective.name": "difference_transition_matching"}), jax.devices()[:1]
    )
    with pytest.raises(ValueError, match="^objective.name is 'difference_transition_matching'; it must be one whose"):
        diagnosis.check_predicts(run)
