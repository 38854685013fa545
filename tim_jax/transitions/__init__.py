"""The mathematics of transition models. A network enters as a callable; nothing here knows how it is made.

An entry of OBJECTIVES makes an `Objective` for a transport of TRANSPORTS. With a network of one's own, a function
net(x_t, t, r), `mean_loss` is what is differentiated, and `generate` samples in any number of steps:

    objective = OBJECTIVES["tim"](TRANSPORTS["ot_fm"]())
    loss, metrics = mean_loss(objective, net, x, key)
    samples = generate(objective, net, noise, steps=4)

Underneath, an objective is called with networks and examples as the tuples of `tim_jax.types`. `make_plan` turns the
times of a `time_grid` and the settings in `Sampling` into a plan, and `sample` runs it:

    losses, metrics = objective(nets, examples, step, key)
    plan = make_plan(transport, time_grid(transport, steps=4), Sampling())
    samples = sample(net, plan, noise, condition, null_condition, keys)
"""

from tim_jax.transitions.consistency import CONSISTENCIES
from tim_jax.transitions.coupling import COUPLINGS
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.kinds import unweighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.own_network import Network, as_net, generate, mean_loss
from tim_jax.transitions.sampling.grids import GRIDS
from tim_jax.transitions.sampling.noise import image_keys, start_noise
from tim_jax.transitions.sampling.planning import make_plan, time_grid
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.samplers import SAMPLERS, Sampler
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import DISTRIBUTIONS, Times
from tim_jax.transitions.transports import TRANSPORTS, Transport
from tim_jax.types import Examples, Output, Query

__all__ = [
    "CONSISTENCIES",
    "COUPLINGS",
    "DISTRIBUTIONS",
    "GRIDS",
    "OBJECTIVES",
    "SAMPLERS",
    "TRANSPORTS",
    "Examples",
    "Net",
    "Network",
    "Objective",
    "Output",
    "Query",
    "Sampler",
    "Sampling",
    "SamplingPlan",
    "Teacher",
    "Times",
    "Transport",
    "as_net",
    "generate",
    "image_keys",
    "make_plan",
    "mean_loss",
    "sample",
    "start_noise",
    "time_grid",
    "unweighted",
]
