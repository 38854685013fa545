"""Paths of a run's network: against the Gaussian flow that it is given, and the pictures of them."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.integrate
from etils import epath
from PIL import Image

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.figures import unreadable
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import figures
from tim_jax.evaluation import geometry as drawing
from tim_jax.runs import geometry
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.types import Output

STD = 0.4


@pytest.fixture(scope="module", params=["ot_fm", "edm"])
def followed(request):
    """Five paths of N(0.3, STD²), which the network knows with all its jumps."""
    run = build(load_config("digits_small", TINY_NETWORK | {
        "transport.name": request.param, "objective.weight.kernel": "constant",
    }), jax.devices()[:2])  # fmt: skip
    transport = run.transport

    def known(params):
        gaussian = Gaussian(transport, 0.3, STD)
        times = transport.time_of_c_noise
        return lambda queries: tuple(Output(gaussian.F(q.x_t, times(q.t), times(q.r))) for q in queries)

    step = dataclasses.replace(run.trainer.step, nets={"float32": known})
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, step=step))
    return geometry.follow(run, None, np.arange(5, dtype=np.int32))


def test_numbers_are_those_of_the_flow(followed):
    found, images = followed
    rate = lambda u: (u - (1 - u) * STD**2) / np.hypot((1 - u) * STD, u)  # noqa: E731
    exact = scipy.integrate.quad(lambda u: (rate(u) - (1 - STD)) ** 2, 0, 1)[0]
    assert found["straightness"] == pytest.approx(exact, rel=0.15)  # of 320 numbers z, whose mean square is not quite 1
    assert found["deviation"][0] < 1e-3 and found["deviation"][-1] < 1e-3 and found["deviation"].max() > 0.02
    assert found["data"]["r at the data"].max() < 0.02, "jumps to the data end where the path does"
    assert found["data"]["r = t"][0] > found["data"]["r half way"][0] > 0.1
    assert set(images) == {"state", "x̂, r = t", "x̂, r half way", "x̂, r at the data"}
    assert {part.shape for part in images.values()} == {(3, 9, 8, 8, 1)}


def test_pictures_can_be_read(followed, tmp_path, monkeypatch):
    saved, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (saved.append(figure), save(figure, path)))
    found, images = followed
    names = drawing.write(found, images, geometry.columns(), epath.Path(tmp_path))
    assert names == list(drawing.NAMES) and unreadable(saved[0]) == []
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400
    assert drawing.write(found, None, geometry.columns(), epath.Path(tmp_path)) == [drawing.NAMES[0]]
    assert f"straightness {found['straightness']:.3g}" in drawing.as_text(found)
