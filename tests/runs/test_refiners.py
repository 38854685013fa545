"""A refiner: what it learns, its place in a run that samples with it, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, answer, random, rows_of, wave
from tests.helpers.workdirs import TINY, told, workdir
from tim_jax import sample as command
from tim_jax.runs.generation import Generator
from tim_jax.runs.interface import load
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions import OBJECTIVES, TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.planning import make_plan, time_grid
from tim_jax.transitions.sampling.sampler import sample


def test_it_learns_the_teachers_prediction_after_a_step(x64):
    """From the last one, which the network is given; by hand for OT-FM."""
    objective, seen = OBJECTIVES["velocity_refiner"](TRANSPORTS["ot_fm"]()), []
    examples, t = rows_of(random(0), random(1)), jnp.linspace(0.1, 0.8, SHAPE[0])

    def online(queries):
        seen.extend(queries)
        return tuple(answer(0 * q.x_t, None) for q in queries)

    def teacher(queries):
        assert all("prediction" not in q.condition for q in queries)
        return tuple(answer(wave(q.x_t, q.t, q.r), None) for q in queries)

    nets = {"online": online, "teacher": teacher}
    losses, _ = objective.loss(nets, examples, t, t, LATE, jax.random.key(0))
    (query,) = seen
    # Its step's length follows from x_t = x_u − (u − t) F_T(x_u, u).
    _, key = jax.random.split(jax.random.key(0))
    u = t + 0.12 * jax.random.uniform(key, t.shape, t.dtype)
    x_u = (1 - u)[:, None, None, None] * examples.x + u[:, None, None, None] * examples.noise
    F = wave(x_u, u, u)
    x_t = x_u - (u - t)[:, None, None, None] * F
    np.testing.assert_allclose(query.condition["prediction"], F, atol=1e-12)
    np.testing.assert_allclose(query.x_t, x_t, atol=1e-12)
    np.testing.assert_allclose(losses, (wave(x_t, t, t) ** 2).mean((1, 2, 3)), rtol=1e-9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = {"model.depth": "1", "model.encoder_depth": "1"}
    refiner = TINY | small | {"objective.name": "velocity_refiner", "teacher.checkpoint": "somewhere"}
    return (
        workdir(folder / "model", "base", **TINY | {"objective.name": "flow_matching"}),
        workdir(folder / "refiner", "base", **refiner),
    )


FLOWTURBO = {"sampler": "flowturbo", "pattern": "H1R"}


@pytest.mark.slow
def test_samples_are_drawn_with_it(folders):
    model, refiner = map(str, folders)
    tim = load(model, sampling=FLOWTURBO | {"refiner": refiner})
    run, labels = tim.run, np.arange(8)
    generator = Generator(run, 8)
    found = generator(tim._weights, labels, steps=4)
    assert generator.nfe == 2  # Heun's; those of the refiner do not count
    plan = make_plan(run.transport, time_grid(run.transport, 4), run.sampling)
    assert plan.refined.tolist() == [-1, -1, 1, 0, 1, 0, 1, 0]
    net, refine = run.net(tim._weights), run.refiner.net(run.refiner.params)
    keys, condition = image_keys(0, jnp.arange(8)), {"label": jnp.asarray(labels)}
    x = jnp.asarray(generator.noise(0, 8))
    with on_mesh(run.mesh):
        expected = sample(net, plan, x, condition, condition, keys, refiner=refine)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Networks from others, of which the programs are shared.
    plain = generator.sampled_by(load(model, sampling={"sampler": "heun"}).run.sampling)
    assert np.abs(plain(tim._weights, labels, steps=4) - found).max() > 1e-3
    np.testing.assert_allclose(plain.sampled_by(run.sampling)(tim._weights, labels, steps=4), found, atol=1e-5)


def test_what_is_refused(folders, capsys, tmp_path):
    model, refiner = map(str, folders)
    given = ["--config.sampling.sampler=flowturbo", "--config.sampling.pattern=H1R"]
    of_model = [f"--workdir={model}", "--steps=2", f"--out={tmp_path}", *given]
    assert "it must be a run of the objective velocity_refiner, and is one of flow_matching" in told(
        command.main, [*of_model, f"--config.sampling.refiner={model}"], capsys
    )
    assert "sampling.refiner is " in told(command.main, [*of_model, "--config.sampling.refiner=/nowhere"], capsys)
    line = told(command.main, [f"--workdir={refiner}", "--steps=2", f"--out={tmp_path}"], capsys)
    assert line.startswith("error: objective.name is 'velocity_refiner'; it must be another for samples"), line
