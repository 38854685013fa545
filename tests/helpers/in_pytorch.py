"""Exported PyTorch: samples of this framework, and of an exported file in a process of its own without it."""

import os
import subprocess
import sys

import jax
import numpy as np

from tim_jax.runs import conversion
from tim_jax.transitions.sampling.planning import guidance_inputs, guidance_scale, make_plan, padded, time_grid
from tim_jax.transitions.sampling.sampler import sample

STEPS, COUNT = (1, 2, 4), 3
# Run beside the file, with neither JAX nor this package to be found, nor any reader of safetensors but its own.
PROGRAM = """
import sys

for name in ("jax", "flax", "tim_jax", "safetensors"):
    sys.modules[name] = None
import numpy as np
import torch

import model

torch.set_num_threads(1)
given = {name: torch.from_numpy(array) for name, array in np.load("given.npz").items()}
network, noise = model.load(), given["noise"].permute(0, 3, 1, 2)
condition, null = given.get("label"), None
if condition is None:
    condition = {"text": given["text"], "mask": given["mask"]}
    null = {"text": given["null_text"], "mask": given["null_mask"]}
drawn = {n: model.sample(network, noise, condition, steps=int(n), null=null) for n in sys.argv[1:]}
np.savez("drawn.npz", **{n: x.permute(0, 2, 3, 1).numpy() for n, x in drawn.items()})
"""


def assert_same(folder):
    """Checks that samples of the weights in a folder are the same by both, to 1e-5 of the largest value."""
    config = conversion.read_weights(str(folder), "", {"mesh.data": "1"}).run.config
    shape = (COUNT, config.data.height, config.data.width, config.data.channels)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if config.model.condition == "text":
        condition, null = random_texts(config, COUNT)
        given = condition | {f"null_{name}": value for name, value in null.items()}
    else:
        classes = config.model.num_classes
        given = condition = {"label": np.arange(COUNT) % classes}
        null = {"label": np.full(COUNT, classes)}
    ours, theirs = here(folder, noise, condition, null), there(folder, noise, **given)
    for steps, x in ours.items():
        np.testing.assert_allclose(theirs[steps], x, atol=1e-5 * max(1, abs(x).max()), err_msg=f"{steps} steps")


def here(folder, noise, condition, null):
    """Samples of exported weights by this framework, {steps: (B, h, w, C)}.

    Args:
        folder: that export wrote.
        noise: standard normal (B, h, w, C).
        condition, null: of the network, {name: (B, …)}.
    """
    found = conversion.read_weights(str(folder), "", {"mesh.data": "1"})
    run, net, sampling = found.run, found.run.net(found.params), found.run.sampling
    keys, drawn = jax.random.split(jax.random.key(0), len(noise)), {}
    x = run.transport.sigma(run.transport.T_max) * noise
    scale = guidance_scale(sampling.guidance, sampling.guidance_channels, x)
    if sampling.guidance_input:
        condition, scale = condition | {"guidance": guidance_inputs(run.transport, sampling, len(x), x.dtype)}, 1.0

    @jax.jit  # one program for all step counts
    def draw(plan, x, count):
        return sample(net, plan, x, condition, null, keys, scale, count=count)

    for steps in STEPS:
        plan = make_plan(run.transport, time_grid(run.transport, steps, sampling), sampling)
        drawn[str(steps)] = np.asarray(draw(padded(plan), x, len(plan.t)))
    return drawn


def there(folder, noise, **given):
    """The same by the exported file, in a process of its own; given: labels, or texts and their masks."""
    np.savez(folder / "given.npz", noise=noise, **given)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    steps = map(str, STEPS)
    subprocess.run([sys.executable, "-c", PROGRAM, *steps], cwd=folder, env=environment, check=True, timeout=300)
    return dict(np.load(folder / "drawn.npz"))


def random_texts(config, count):
    """Features of texts of several lengths and their masks, then those of the empty prompt, by the network's names."""
    rng, length = np.random.default_rng(1), 5
    text = rng.standard_normal((2 * count, length, config.data.text_width)).astype(np.float32)
    own = np.array([np.arange(length) < 2 + n % 4 for n in range(count)])
    empty = np.repeat(np.arange(length)[None] < 1, count, axis=0)
    return {"text": text[:count], "mask": own}, {"text": text[count:], "mask": empty}
