"""What is asked of a network must have been trained: null conditions, intervals of guidance, pairs of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.configs import tiny_config
from tim_jax.config.build import build
from tim_jax.config.network import warn_once
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.guidance import InputGuidance
from tim_jax.types import Examples

NEVER = {"data.condition_dropout": "0.0"}
INPUTS = {"objective.input_guidance.max_scale": "4.0", "sampling.guidance": "2.0"}


def made(changes):
    return build(tiny_config("base", {"data.batch_size": "4", "model.patch_size": "4", **changes}), jax.devices()[:1])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"sampling.guidance": "2.0"}, "sampling.guidance is 2.0"),
        ({"objective.guidance.w_cond": "0.75"}, "objective.guidance makes targets"),
        ({"objective.name": "improved_mean_flow"}, "objective.input_guidance makes targets"),
    ],
)
def test_a_null_condition_that_is_never_trained_is_not_used(changes, reason):
    with pytest.raises(ValueError, match=f"data.condition_dropout is 0.0; it must be above 0.*{reason}"):
        made(changes | NEVER)
    assert made(changes | {"data.condition_dropout": "0.01"})


@pytest.mark.parametrize("w_gt, w_cond", [("1.0", "0.0"), ("0.4", "0.6")])
def test_a_target_without_the_null_condition_needs_none(w_gt, w_cond):
    assert made({"objective.guidance.w_gt": w_gt, "objective.guidance.w_cond": w_cond, **NEVER})


@pytest.mark.parametrize("transport", ["ot_fm", "ve"])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.4, 0.9), (0.0, 0.3), (0.7, 1.0), (0.49, 0.55)])
def test_an_interval_of_guidance_is_taken_where_such_ones_are_drawn(transport, ends):
    """Which ones are, by drawing ten thousand."""
    path = TRANSPORTS[transport]()
    zeros = jnp.zeros((10_000, 1, 1, 1))
    examples = Examples(zeros, zeros, {}, {}, jnp.zeros(10_000, bool))
    drawn = InputGuidance(4.0).add_inputs(path, examples, jax.random.key(0)).condition["guidance"]
    low, high = np.asarray(drawn)[:, 1:].T
    margin = 1e-3 * path.T_max
    given = np.maximum(np.array(ends) * path.T_max, path.T_min)
    trained = given[0] <= low.max() + margin and given[1] >= high.min() - margin
    changes = INPUTS | {"transport.name": transport}
    changes |= {f"sampling.guidance_{end}": str(value) for end, value in zip(("low", "high"), ends, strict=True)}
    if trained:
        assert made(changes)
        return
    with pytest.raises(ValueError, match="sampling.guidance_low, sampling.guidance_high are"):
        made(changes)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"objective.name": "flow_matching", "sampling.sampler": "flow_map"}, "r < t"),
        ({"objective.name": "flow_matching", "sampling.sampler": "consistency"}, "r < t"),
        ({"objective.name": "flow_matching", "sampling.sampler": "heun"}, ""),
        ({"objective.name": "scm", "sampling.sampler": "euler"}, "r = t"),
        ({"objective.name": "scm", "sampling.sampler": "flow_map"}, "between data and noise"),
        ({"objective.name": "scm"}, ""),
        ({"sampling.sampler": "euler"}, ""),
        ({}, ""),
    ],
)
def test_samplers_at_times_that_were_never_trained_are_told(changes, said, capfd):
    warn_once.cache_clear()
    made(changes)
    error = capfd.readouterr().err
    assert said in error and bool(error) == bool(said)
