"""The table of samplers."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from tim_jax.transitions.sampling import published
from tim_jax.transitions.sampling.a_flops import a_flops
from tim_jax.transitions.sampling.diffusion import euler_maruyama, sde_heun
from tim_jax.transitions.sampling.epd import epd
from tim_jax.transitions.sampling.exponential import dpm_solver_2s, dpm_solver_3s, multistep
from tim_jax.transitions.sampling.flowturbo import ends, flowturbo
from tim_jax.transitions.sampling.jumps import consistency, euler, flow_map, heun, pseudo_corrector
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.reversible import leapfrog
from tim_jax.transitions.sampling.sada import sada
from tim_jax.transitions.sampling.unipc import unipc


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling method.

    Attributes:
        plan: Makes the plan from the transport, the times (steps + 1,) and the settings `keys`.
        evaluations: The number of network evaluations in a step; the last may have one more or less.
        invertible: Whether the method also takes times that grow, from data to noise (inversion).
        reversible: Whether the way back from the last two states is exact.
        single_step: Whether a step is a function of its state alone, not of steps before it or of fresh noise.
        diagonal: Whether the network is evaluated at r = t alone.
        order: The power of the step that the error falls with: that of states, or with fresh noise that of their mean
            and standard deviation; 0: the jumps of a flow map, which are as good as the network.
        per_image: Whether weights or evaluations depend on the image: neither taken in sweeps nor learned.
        skips: Whether evaluations are skipped that an image does without: their number is what there are at most.
        steerable: Whether states may be moved on the way: a step sets out from the last state, by one evaluation.
        ends: Where steps have different numbers of evaluations: (keys, steps=) → after how many each of the times is
            reached, (steps + 1,).
        keys: The settings, attributes of `Sampling`, that it takes.
    """

    plan: Callable[..., SamplingPlan]
    evaluations: int = 1
    invertible: bool = False
    reversible: bool = False
    single_step: bool = False
    diagonal: bool = False
    order: int = 0
    per_image: bool = False
    skips: bool = False
    steerable: bool = False
    ends: Callable[..., np.ndarray] | None = None
    keys: tuple[str, ...] = ()


def _multistep(plan: Callable[..., SamplingPlan], terms: int, order: int, keys: tuple[str, ...] = ()) -> Sampler:
    """A multistep sampler of so many terms, and the order that it reaches."""
    data = plan is not unipc  # whose corrector takes the last step anew, from the state before it
    return Sampler(functools.partial(plan, order=terms), diagonal=True, order=order, steerable=data, keys=keys)


def _parallel(points: int) -> Sampler:
    """A sampler of so many slopes at once in every step, after the first one."""
    plan = functools.partial(epd, points=points)
    return Sampler(plan, evaluations=1 + points, single_step=True, diagonal=True, order=2)


_DIFFUSION = ("diffusion", "diffusion_scale", "last_step")
SAMPLERS = {
    "flow_map": Sampler(flow_map, invertible=True, single_step=True, steerable=True),
    "euler": Sampler(euler, invertible=True, single_step=True, diagonal=True, order=1, steerable=True),
    "heun": Sampler(heun, evaluations=2, invertible=True, single_step=True, diagonal=True, order=2),
    "pseudo_corrector": Sampler(pseudo_corrector, diagonal=True, order=2),
    "flowturbo": Sampler(flowturbo, diagonal=True, order=2, ends=ends, keys=("pattern",)),
    "leapfrog": Sampler(leapfrog, invertible=True, reversible=True, diagonal=True, order=2),
    "dpm_solver_2s": Sampler(dpm_solver_2s, evaluations=2, single_step=True, diagonal=True, order=2),
    "dpm_solver_3s": Sampler(dpm_solver_3s, evaluations=3, single_step=True, diagonal=True, order=3),
    "epd_2": _parallel(2),
    "epd_3": _parallel(3),
    "dpm_solver_1m": _multistep(multistep, 1, 1, keys=("noise_scale",)),
    "dpm_solver_2m": _multistep(multistep, 2, 2, keys=("noise_scale",)),
    "dpm_solver_3m": _multistep(multistep, 3, 3, keys=("noise_scale",)),  # second with noise
    "dpm_solver_2m_published": _multistep(published.dpm_solver, 2, 2),
    "dpm_solver_3m_published": _multistep(published.dpm_solver, 3, 2),
    "unipc_2": _multistep(unipc, 2, 3, keys=("unipc_variant",)),
    "unipc_3": _multistep(unipc, 3, 4, keys=("unipc_variant",)),
    "er_sde_1": _multistep(published.er_sde, 1, 1),
    "er_sde_2": _multistep(published.er_sde, 2, 1),
    "er_sde_3": _multistep(published.er_sde, 3, 1),
    "a_flops": Sampler(a_flops, diagonal=True, order=2, per_image=True),
    "sada": Sampler(sada, diagonal=True, order=1, per_image=True, skips=True),
    "sde": Sampler(euler_maruyama, diagonal=True, order=1, steerable=True, keys=_DIFFUSION),
    "sde_heun": Sampler(sde_heun, evaluations=2, diagonal=True, order=1, keys=_DIFFUSION),
    "consistency": Sampler(consistency, steerable=True),
}
