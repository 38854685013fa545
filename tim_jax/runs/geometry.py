"""The paths of a trained network from noise to data, and x̂ along them (`transitions/geometry.py`): for diagnose."""

from typing import Any

import jax
import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.diagnosis import condition
from tim_jax.runs.encoders import open_decoder
from tim_jax.runs.labels import repeated
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions import geometry

NODES = 33  # times along a path, even in noise level
SHOWN, COLUMNS = 3, 9  # paths in the picture, and times of each
# Where the jump of x̂ ends, as a share of the noise level of its beginning.
ENDS = {"r = t": 1.0, "r half way": 0.5, "r at the data": 0.0}


def follow(run: Run, weights: Any, labels: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """Follows paths from noise of their own, without guidance and in float32.

    Args:
        run: that was trained; its network must be conditioned on labels.
        weights: parameters of the network.
        labels: (n,) of the paths.

    Returns:
        What `evaluation.geometry` draws, means over paths by noise level, and {row: images (SHOWN, COLUMNS, H, W, c)}
        of states and of x̂, None of latents that nothing decodes.
    """
    transport, net = run.transport, run.trainer.step.nets["float32"]
    levels = np.linspace(1, 0, NODES)
    times = geometry.times_of_levels(transport, levels)
    shards, count = sharding.batch_shards(run.mesh), len(labels)
    noise = np.random.default_rng(2).standard_normal((count, *run.image_shape)).astype(np.float32)
    size = -(-count // shards) * shards

    def along(weights: Any, noise: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        given, called = condition(run, labels), net(weights)
        y, slopes = geometry.walk(called, transport, noise, given, times)
        found = {}
        for name, share in ENDS.items():
            ends = geometry.times_of_levels(transport, share * levels) if share < 1 else times
            found[name] = geometry.data_along(called, transport, y, given, times, ends)
        return y, slopes, found

    whole = (repeated(part, size) for part in (noise, labels))
    with on_mesh(run.mesh):
        y, slopes, x_hat = jax.jit(along, out_shardings=sharding.replicated(run.mesh))(weights, *whole)
    y, slopes = (np.asarray(part, np.float64)[:, :count] for part in (y, slopes))
    x_hat = {name: np.asarray(x_hat[name])[:, :count] for name in ENDS}
    u = geometry.share_of_noise(transport, times)
    straightness = geometry.straightness(y, slopes, u)
    numbers = {
        "levels": levels,
        "straightness": float(straightness.mean()),
        "straightness_spread": float(straightness.std()),
        "bend": geometry.bend(y, slopes, u).mean(axis=1),
        "deviation": geometry.deviation(y).mean(axis=1),
        "data": {name: np.sqrt(np.square(part - y[-1]).mean(axis=(1, 2, 3, 4))) for name, part in x_hat.items()},
    }
    return numbers, _shown(run, {"state": y} | {f"x̂, {name}": part for name, part in x_hat.items()})


def columns() -> np.ndarray:
    """The places of the times that are shown, the first and the last among them."""
    return np.linspace(0, NODES - 1, COLUMNS).astype(int)


def _shown(run: Run, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    decoder = open_decoder(run)
    if decoder is None or not run.shows_images:
        return None
    found = {}
    for name, examples in rows.items():
        some = examples[columns(), :SHOWN].swapaxes(0, 1).astype(np.float32)
        images = np.asarray(decoder(some.reshape(-1, *some.shape[2:])))
        found[name] = images.reshape(*some.shape[:2], *images.shape[1:])
    return found
