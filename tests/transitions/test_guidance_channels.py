"""Guidance on the first channels alone, as published for DiT and SiT: those are guided, and all others are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.parallel import sample_parallel
from tim_jax.transitions.sampling.planning import guidance_scale, make_plan, time_grid
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

SCALE = 2.5
X = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)


def net(queries):
    """Each channel by itself, so that one that is not guided goes on as if none were."""
    return tuple(Output(jnp.sin(q.x_t) + q.condition["label"][:, None, None, None]) for q in queries)


def run(scale, parallel, sampler):
    transport, sampling = TRANSPORTS["ot_fm"](), Sampling(guidance=SCALE, guidance_high=0.8, sampler=sampler)
    plan = make_plan(transport, time_grid(transport, 4, sampling), sampling)
    conditions = ({"label": jnp.array([1.0, 2.0])}, {"label": jnp.zeros(2)})
    made = (net, plan, jnp.asarray(X), *conditions, image_keys(0, jnp.arange(2)), scale)
    return sample_parallel(*made, 4, 0.0)[0][-1] if parallel else sample(*made)


@pytest.mark.parametrize("parallel, sampler", [(False, "euler"), (False, "heun"), (False, "sde"), (True, "euler")])
def test_the_first_channels_are_guided_and_the_others_are_not(parallel, sampler):
    some, none, every = (run(scale, parallel, sampler) for scale in (guidance_scale(SCALE, 3, X), 1.0, SCALE))
    np.testing.assert_allclose(some[..., :3], every[..., :3], rtol=1e-6)
    np.testing.assert_allclose(some[..., 3], none[..., 3], rtol=1e-6)
    assert float(jnp.abs(every - none).min()) > 0.1


def test_a_scale_for_all_channels_stays_one_number():
    assert guidance_scale(SCALE, 0, X) == SCALE
    assert jax.jit(lambda s: guidance_scale(s, 1, X))(SCALE).tolist() == [[[[2.5, 1, 1, 1]]]]
