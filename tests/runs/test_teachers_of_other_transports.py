"""Teachers of another transport than the student's, as runs ask them; one of the same is asked as it is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.teachers import (  # noqa: F401 (fixtures)
    TEACHER,
    a_data_folder,
    a_teacher,
    batch_of,
    changed,
    copied,
    make_run,
    toys,
    train,
)
from tests.helpers.workdirs import workdir
from tim_jax.config.command_line import load_config
from tim_jax.config.objective import resolved
from tim_jax.plan import __main__ as planner
from tim_jax.runs import teachers
from tim_jax.runs.teachers import TeacherSource, make_teacher, with_teachers
from tim_jax.training import warm_start
from tim_jax.transitions import TRANSPORTS
from tim_jax.types import Query


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_an_edm_teacher_is_asked_as_its_paper_does(devices, teacher, tmp_path):
    """By the preconditioning of Karras et al. (arXiv 2206.00364, table 1), for a student with x_t = (1 − t) x + t ε."""
    sigma_d, t = 0.7, 0.4
    folder = copied(teacher, tmp_path / "edm", transport__name="edm", transport__sigma_d=sigma_d)
    run = with_teachers(make_run(devices, mesh__data=1, mesh__fsdp=devices, teacher__checkpoint=folder))
    model, batch = run.trainer.frozen["teacher"], batch_of(run)
    own = teachers.make_network(run, model.source.config)

    def at(time):
        return jnp.full(len(batch["x"]), time)

    with jax.set_mesh(run.mesh):
        here = Query(batch["x"], at(t), at(t), {"label": batch["label"]})
        (found,) = jax.device_get(jax.jit(lambda params: model.net(params)((here,)))(model.params))
    batch, weights = jax.device_get((batch, model.params))
    sigma = t / (1 - t)
    y = batch["x"] / (1 - t)  # the data and σ of noise
    c_skip, c_out = sigma_d**2 / (sigma**2 + sigma_d**2), sigma * sigma_d / np.hypot(sigma, sigma_d)
    c_in, c_noise = 1 / np.hypot(sigma, sigma_d), np.log(sigma) / 4
    query = Query(c_in * y, at(c_noise), at(c_noise), {"label": batch["label"]})
    (F,) = jax.jit(lambda params: own.apply({"params": params}, (query,)))(weights)
    x = c_skip * y + c_out * F.F
    np.testing.assert_allclose(found.F, (y - x) / sigma - x, atol=1e-4)
    assert np.abs(found.F).max() > 1


@pytest.mark.parametrize(
    "here, there, same",
    [
        ({}, {}, True),
        ({}, {"prediction": "x"}, True),
        ({"name": "edm"}, {"name": "edm"}, True),
        ({"shared_below": 0.1}, {"shared_below": 0.1}, True),
        ({}, {"name": "vp"}, False),
        ({}, {"shared_below": 0.1}, False),
        ({"name": "edm"}, {"name": "edm", "sigma_d": 0.7}, False),
    ],
)
def test_one_of_the_same_transport_is_asked_as_it_is(here, there, same, monkeypatch):
    """The function that a step calls is `frozen_net`'s own, so that nothing is added to the program."""

    as_it_is = lambda params: lambda queries: ()  # noqa: E731
    monkeypatch.setattr(teachers, "frozen_net", lambda *_: as_it_is)
    changes = {f"transport__{name}": value for name, value in here.items()}
    if "name" in here:
        changes["objective__weight__scale"] = "time"  # tan t grows beyond bounds with EDM's times
    run = make_run(teacher__checkpoint="somewhere", **changes)
    texts = {f"transport.{name}": str(value) for name, value in there.items()}
    source = TeacherSource("it", resolved(load_config("digits_flow_matching", TEACHER | texts)))
    assert (make_teacher(run, source).net is as_it_is) == same


def test_times_must_be_told_so_that_they_can_be_told_back(monkeypatch):
    """A transport of one's own that forgot `time_of_c_noise` learns from its like alone."""
    thousand = dataclasses.replace(TRANSPORTS["ot_fm"](), c_noise=lambda t: 1000 * t)
    monkeypatch.setitem(TRANSPORTS, "ot_fm", lambda: thousand)
    run = make_run(teacher__checkpoint="somewhere")
    make_teacher(run, TeacherSource("it", resolved(load_config("digits_flow_matching", TEACHER))))
    config = resolved(load_config("digits_flow_matching", TEACHER | {"transport.name": "vp"}))
    with pytest.raises(ValueError, match="^it; .* 'ot_fm', since time_of_c_noise here .* and has 'vp'"):
        make_teacher(run, TeacherSource("it", config))


@pytest.mark.slow
def test_a_run_learns_from_teachers_of_other_transports(tmp_path, data, capsys):
    """TiM on OT-FM from a VP model, away from an EDM one; a plan takes their configuration alone."""
    folders = {
        name: workdir(tmp_path / name, "digits_flow_matching", **TEACHER | {"transport.name": name})
        for name in ("vp", "edm")
    }
    given = dict(objective__name="tim", objective__velocity="teacher", teacher__checkpoint=folders["vp"])
    given |= dict(teacher__weak_checkpoint=folders["edm"], teacher__guidance=1.5)
    train(tmp_path / "run", data, **given)
    saved = warm_start.find(str(tmp_path / "run"), "--workdir")
    assert saved.step == 2 and set(warm_start.record(saved)["teachers"]) == {"teacher", "weaker"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()

    file = tmp_path / "teacher.py"
    config = TEACHER | {"transport.name": "vp"}
    file.write_text(
        "from tim_jax.config import command_line\n"
        f"def get_config():\n    return command_line.load_config('digits_flow_matching', {config!r})\n"
    )
    flags = [f"--config.{name}={text}" for name, text in changed(given | {"teacher__checkpoint": ""}).items()]
    capsys.readouterr()
    assert planner.main(["--config=digits_flow_matching", "--topology=cpu:1", f"--teacher={file}", *flags]) == 0
    assert "teachers" in capsys.readouterr().out
