"""The mathematics of transition models. A network enters as a callable; nothing here knows how it is made.

To train, an entry of OBJECTIVES makes an `Objective` for a transport of TRANSPORTS. To sample, `make_plan` turns the
times of a `time_grid` and the settings in `Sampling` into a plan, and `sample` runs it:

    transport = TRANSPORTS["ot_fm"]()
    losses, metrics = OBJECTIVES["tim"](transport)(nets, examples, step, key)
    plan = make_plan(transport, time_grid(transport, steps=4), Sampling())
    images = sample(net, plan, noise, condition, null_condition, keys)
"""

from tim_jax.transitions.consistency import CONSISTENCIES
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives import OBJECTIVES
from tim_jax.transitions.sampling.grids import GRIDS
from tim_jax.transitions.sampling.plans import SAMPLERS, Sampler, SamplingPlan
from tim_jax.transitions.sampling.sampler import Sampling, image_keys, make_plan, sample, start_noise, time_grid
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import DISTRIBUTIONS, Times
from tim_jax.transitions.transports import TRANSPORTS, Transport

__all__ = [
    "CONSISTENCIES",
    "DISTRIBUTIONS",
    "GRIDS",
    "OBJECTIVES",
    "SAMPLERS",
    "TRANSPORTS",
    "Net",
    "Objective",
    "Sampler",
    "Sampling",
    "SamplingPlan",
    "Teacher",
    "Times",
    "Transport",
    "image_keys",
    "make_plan",
    "sample",
    "start_noise",
    "time_grid",
]
