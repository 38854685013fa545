"""Guidance on the first channels alone, as published for DiT and SiT: those are guided, and all others are not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import published_networks as published
from tim_jax.codecs.official import from_official
from tim_jax.networks import NETWORKS
from tim_jax.training.names import by_name
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.parallel import sample_parallel
from tim_jax.transitions.sampling.planning import guidance_scale, make_plan, time_grid
from tim_jax.transitions.sampling.sampler import predictor, sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.teacher import Teacher
from tim_jax.types import Examples, Output

SCALE = 2.5
X = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)


def net(queries):
    """Each channel by itself, so that one that is not guided goes on as if none were."""
    return tuple(Output(jnp.sin(q.x_t) + q.condition["label"][:, None, None, None]) for q in queries)


def run(scale, parallel, sampler):
    transport, sampling = TRANSPORTS["ot_fm"](), Sampling(guidance=SCALE, guidance_high=0.8, sampler=sampler)
    plan = make_plan(transport, time_grid(transport, 4, sampling), sampling)
    conditions = ({"label": jnp.array([1.0, 2.0])}, {"label": jnp.zeros(2)})

    @jax.jit
    def drawn(plan, x):
        made = (net, plan, x, *conditions, image_keys(0, jnp.arange(2)), scale)
        return sample_parallel(*made, 4, 0.0)[0][-1] if parallel else sample(*made)

    return drawn(plan, jnp.asarray(X))


@pytest.mark.parametrize("parallel, sampler", [(False, "heun"), (True, "euler")])
def test_the_first_channels_are_guided_and_the_others_are_not(parallel, sampler):
    some, none, every = (run(scale, parallel, sampler) for scale in (guidance_scale(SCALE, 3, X), 1.0, SCALE))
    np.testing.assert_allclose(some[..., :3], every[..., :3], rtol=1e-6)
    np.testing.assert_allclose(some[..., 3], none[..., 3], rtol=1e-6)
    assert float(jnp.abs(every - none).min()) > 0.1


def test_a_scale_for_all_channels_stays_one_number():
    assert guidance_scale(SCALE, 0, X) == SCALE
    assert jax.jit(lambda s: guidance_scale(s, 1, X))(SCALE).tolist() == [[[[2.5, 1, 1, 1]]]]


def test_a_teacher_is_guided_on_the_first_channels():
    labels = ({"label": jnp.array([1.0, 2.0])}, {"label": jnp.zeros(2)})
    examples = Examples(jnp.asarray(X), None, *labels, jnp.zeros(2, bool))
    t, nets = jnp.array([0.3, 0.9]), {"teacher": net}
    teacher = Teacher(guidance=SCALE, guidance_high=0.5, guidance_channels=3)
    found = teacher(nets, TRANSPORTS["ot_fm"](), examples.x, t, examples)
    scale = np.ones((2, 1, 1, 4))
    scale[0, ..., :3] = SCALE
    np.testing.assert_allclose(found, np.sin(X) + scale * np.array([1.0, 2.0])[:, None, None, None], rtol=1e-6)


# By file: the network's fields, and its time of the published one.
PUBLISHED = {
    "net_sit": (dict(clock="1-t", negated=True), lambda found: 1 - found["t"][1]),
    "net_dit": (dict(), lambda found: found["guided_t"][0]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_guidance_of_three_channels(name, x64):
    fields, time_of = PUBLISHED[name]
    found = published.answers(name)
    network = NETWORKS[name.removeprefix("net_")](
        width=64, depth=2, heads=4, num_classes=10, encoder_depth=1, learn_sigma=True, dtype=jnp.float64, **fields
    )
    x, (label, null) = jnp.asarray(found["x"][:1]), found["guided_input_label"]
    groups = published.queries(x, jnp.zeros(1), [0], jnp.float64)
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), groups))["params"]
    state = load_file(published.GOLDEN / f"{name}.safetensors")
    fixed = {"pos_embed": state["pos_embed"]}
    first = lambda paths: {path: np.zeros(by_name(shapes)[path].shape) for path in paths}  # noqa: E731
    params = from_official(state, shapes, name.removeprefix("net_"), fixed, first)
    labels = ({"label": jnp.full(1, value, jnp.int32)} for value in (label, null))
    predict = predictor(lambda q: network.apply({"params": params}, q), *labels, guidance_scale(2.5, 3, x))
    t = jnp.asarray(time_of(found), x.dtype)
    sign = -1 if network.negated else 1
    published.assert_close(sign * predict(x, t, t, jnp.array(True)), found["guided"][:1, ..., :4], jnp.float64)
