"""The objectives by name, each a choice on the same axes.

An entry takes a transport and returns an `Objective` as its paper has it; fields may be changed with
`dataclasses.replace`. Below, F* is the target of F(x_t, t, r), v = α̂_t x + σ̂_t ε the target at r = t (ε − x for
OT-FM), q = B/Ḃ (t − r for OT-FM), D_v the total derivative along (dx_t/dt, 1, 0), and sg means without gradient.

Those that learn from a teacher come last; its velocity v_T may take the place of v in others, too (`velocity`
"teacher").
"""

import dataclasses
from collections.abc import Callable

from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.bootstrap import Bootstrap
from tim_jax.transitions.guidance import InputGuidance
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.cmt import TrajectoryEnds
from tim_jax.transitions.objectives.contrastive import LowNoiseContrastive
from tim_jax.transitions.objectives.distribution_matching import DistributionMatching
from tim_jax.transitions.objectives.drifting import Drifting
from tim_jax.transitions.objectives.imm import MomentMatching
from tim_jax.transitions.objectives.kinds import DIAGONAL, of_kind, unweighted
from tim_jax.transitions.objectives.preference import FlowDPO, RewardWeighted
from tim_jax.transitions.objectives.refiner import VelocityRefiner
from tim_jax.transitions.objectives.straightening import Straightening
from tim_jax.transitions.objectives.trajectory import TrajectoryConsistency
from tim_jax.transitions.objectives.transition_matching import TransitionMatching
from tim_jax.transitions.objectives.twinflow import TwinFlow
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.terms.matching import Matching
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport
from tim_jax.transitions.weights import SCALE_LIMITS, AdaptiveWeight, TimeWeight
from tim_jax.types import Auxiliary


def flow_matching(transport: Transport) -> Objective:
    """Flow matching, stochastic interpolants, SiT (arXiv 2210.02747, 2303.08797, 2401.08740): r = t only, F* = v."""
    return unweighted(transport, DIAGONAL)


def rectified_flow(transport: Transport) -> Objective:
    """Rectified flow with U-shaped times and the pseudo-Huber loss √(L + c²), c = 0.00054 (arXiv 2405.20320).

    L is a mean over the values of an example. Reflow is this objective on a teacher's pairs of noise and sample (arXiv
    2209.03003).
    """
    times = dataclasses.replace(DIAGONAL, distribution="u_shaped")
    return dataclasses.replace(unweighted(transport, times), adaptive=AdaptiveWeight(power=0.5, offset=0.00054**2))


def tim(transport: Transport) -> Objective:
    """Transition models (arXiv 2509.04394): F* = v + q (v' − sg D_v F).

    Half of the examples have r = t, a tenth r = T_min.
    """
    scale = "tan" if transport.T_max <= SCALE_LIMITS["tan"] else "noise_to_signal"
    return Objective(transport, Times(), weight=TimeWeight("sqrt", scale))


def mean_flow(transport: Transport) -> Objective:
    """MeanFlow (arXiv 2505.13447): F* = v − (t − r) sg D_v F, with losses L/sg(L + 1e-3).

    A quarter of the examples have r ≠ t. L is a sum over the values of an example. Where targets are guided, so is the
    velocity of the derivative.
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.75, share_min=0.0)
    adaptive = AdaptiveWeight(1.0, 1e-3, total=True)
    return dataclasses.replace(unweighted(transport, times), velocity="target", adaptive=adaptive)


def improved_mean_flow(transport: Transport) -> Objective:
    """Improved MeanFlow (arXiv 2512.02012): ‖F + (t − r) sg D_u F − v_g‖² + ‖u − v_g‖², u the velocity head.

    Each term L is divided by sg(L + 0.01), L a sum over the values of an example. v_g = v + (1 − 1/ω)(u(c, ω) − u(∅))
    is guided by a scale ω, 1 to 8, that is an input of the network. u in D_u is u(c, ω). Half of the examples have
    r = t.

    The published network has t − r alone for its times, and conditions that are tokens in place of adaLN
    (`model.context_tokens` puts them beside it). The published code takes u(c, ω) of the label for D_u even where the
    example is trained without, here u(∅, ω), as F is.
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.5, share_min=0.0)
    return dataclasses.replace(
        unweighted(transport, times),
        velocity="head",
        head_weight=1.0,
        adaptive=AdaptiveWeight(1.0, 1e-2, total=True),
        input_guidance=InputGuidance(max_scale=8.0, power=1.0),
    )


def modular_mean_flow(transport: Transport) -> Objective:
    """Modular MeanFlow (arXiv 2508.17426): ‖F + (t − r) SG_λ[D_v F] − v‖², SG_λ[z] = λ z + (1 − λ) sg z, λ from 0 to 1.

    λ reaches 1 after `tangent.differentiate_steps` steps.
    """
    return dataclasses.replace(mean_flow(transport), velocity="data", tangent=Tangent(differentiate_steps=10_000))


def scm(transport: Transport) -> Objective:
    """sCM training (arXiv 2410.11081): r = T_min in all examples, F* = F⁻ + g/(‖g‖ + 0.1).

    g = cos²t [(v − F⁻) + w tan t (v' − sg D_v F)] for TrigFlow; other transports have s and q of `tangent.py`. The
    warm-up w takes 10,000 steps. The learned weight is e^{−u(t)} L + u(t), on the prior 1/tan t, which is kept between
    1/1,000 and 1,000.
    """
    times = Times("log_normal", -1.0, 1.4, share_equal=0.0, share_min=1.0)
    return dataclasses.replace(
        unweighted(transport, times),
        weight=TimeWeight("reciprocal", "noise_to_signal", difference=False, sigma_d=1e-3),
        learned_weight=True,
        tangent=Tangent(normalise=0.1, bounded=True, warmup_steps=10_000),
    )


def shortcut(transport: Transport) -> Objective:
    """Shortcut models (arXiv 2410.12557): an eighth of the examples learn that two half jumps are one.

    For OT-FM F* = sg ½ [F(x_t, t, m) + F(x_m, m, r)] by an EMA, where m is the middle and t − r is dyadic from 1 to
    1/64.
    """
    times = Times("uniform", share_equal=7 / 8, share_min=0.0, intervals="dyadic")
    bootstrap = Bootstrap("slow", "half", min_interval=1 / 128)
    return dataclasses.replace(unweighted(transport, times), consistency="semigroup", bootstrap=bootstrap)


def split_mean_flow(transport: Transport) -> Objective:
    """SplitMeanFlow (arXiv 2507.16884): F* = sg[(1 − λ) F(x_s, s, r) + λ F(x_t, t, s)] for OT-FM.

    s = (1 − λ) t + λ r with λ uniform; half of the examples have r = t.
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.5, share_min=0.0)
    bootstrap = Bootstrap("online", "uniform")
    return dataclasses.replace(unweighted(transport, times), consistency="semigroup", bootstrap=bootstrap)


def alphaflow(transport: Transport) -> Objective:
    """α-Flow (arXiv 2510.20771): F* = sg[α v + (1 − α) F(x_s, s, r)] for OT-FM, x_s = x_t − (t − s) v.

    s = t − α (t − r). α falls from 1 (F* = v) to 0 (MeanFlow) along a sigmoid, in 400,000 steps. With L a mean over the
    values of an example, losses are L/sg(L + 1e-3), times α where r ≠ t and α is not 0 yet. Half of the examples have
    r = t. Where targets are guided, so is v. The published code keeps the targets of guided runs within ±4
    (`bootstrap.clip`), but no longer once α is 0.
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.5, share_min=0.0)
    alpha = Annealing("sigmoid", 1.0, 0.0, end_step=400_000, gamma=25.0, clamp=0.005)
    return dataclasses.replace(
        unweighted(transport, times),
        consistency="annealed",
        velocity="target",
        bootstrap=Bootstrap(split="alpha", first="velocity", alpha=alpha, weighting="alpha"),
        adaptive=AdaptiveWeight(1.0, 1e-3),
    )


def soflow(transport: Transport) -> Objective:
    """SoFlow (arXiv 2512.15657): D = (f_{t→r}(x_t) − sg f_{s→r}(x_s))/(t − s), x_s on the path of (x, ε).

    s = t − α (t − r), α from 0.1 to 0.002, exponentially, in 400,000 steps. Losses are |D|²/sg(|D|² + 0.01) over
    |B_{t,r}|/(t − s), with |D|² a mean over the values of an example, and those of the velocity at r = t alike. Where
    targets are guided, x_s is as well. Times and shares are those of MeanFlow.

    The published code has half of this gradient where r ≠ t, lets guidance fade above t = 0.8, and for cosine paths
    takes x_s = x_t + (s − t) v, which is not on the path.
    """
    alpha = Annealing("exponential", 0.1, 0.002, end_step=400_000)
    return dataclasses.replace(
        mean_flow(transport),
        consistency="semigroup",
        velocity="data",
        bootstrap=Bootstrap(split="alpha", first="velocity", alpha=alpha, weighting="rate"),
        adaptive=AdaptiveWeight(1.0, 1e-2),
    )


def tvm(transport: Transport) -> Objective:
    """Terminal velocity matching (arXiv 2511.19797): d f_{t→r}(x_t)/dr = sg v̄(f_{t→r}(x_t), r), v̄ that of an EMA.

    For OT-FM F* = v̄ + (t − r) ∂F/∂r, which keeps its gradient; `tangent.differentiate_steps` 0 takes it away. Half of
    the examples have r = t and learn v: the paper's flow matching term, which has a time of its own. Losses are means,
    without weight. Lengths t − r are logit-normal.

    Lagrangian self-distillation (arXiv 2505.18825) is the same with the network's own velocity, `velocity` "online".
    The published network takes the reciprocal of a guidance scale as an input, by whose square losses are weighted, and
    its output is multiplied by the scale; here targets may be guided (`guidance`).
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.5, share_min=0.0, intervals="logit_normal")
    tangent = Tangent(differentiate_steps=1)
    return dataclasses.replace(unweighted(transport, times), consistency="lagrangian", velocity="slow", tangent=tangent)


def facm(transport: Transport) -> Objective:
    """Flow-anchored consistency models (arXiv 2507.03738): F* = F⁻ + (1 − √(1 − t)) clip(g, −1, 1) at r = 0, for OT-FM.

    g = v − F⁻ − t sg D_v F. Half of the examples have r = T_min, with losses sin(πt/2) L/sg(L + 1e-3)^½, and half have
    r = t, with L + 1 − cos(F, v): the flow anchor, which in the paper stands beside each of the others. L is a mean
    over the values of an example. Where targets are guided, so is v; with `velocity` "teacher" this is FACM's
    distillation.

    In the paper a network of a single time is told by 1 + t in place of t that it is the anchor; the networks here have
    two times. Without a teacher the published code guides outside of the interval as well, away from F(x_t, t, t | c).
    """
    return Objective(
        transport,
        Times("arctan_normal", -0.8, 1.6, share_equal=0.5, share_min=0.5),
        velocity="target",
        tangent=Tangent(clip=1.0, relaxation=0.5),
        weight=TimeWeight("sine", "share"),
        adaptive=AdaptiveWeight(0.5, 1e-3, equal=False),
        direction_equal=True,
    )


def dmf(transport: Transport) -> Objective:
    """Decoupled MeanFlow (arXiv 2510.24474): MeanFlow with losses log(e^{−u} L + 0.01) + u, u(t, r) learned.

    L is a mean over the values of an example; half of the examples have r = t. In the paper the network's first blocks
    see t and its last, with the final layer, r (`model.decoupled_depth`), so that a flow-matching model, to start from,
    is this one at r = t. Targets are guided there, v + 0.6 (F(x_t, t, t | c) − F(x_t, t, t | ∅)) up to t = 0.7:
    `guidance` with w_gt 1 and w_cond 0.6.

    The published code takes the mean over all pairs of an example's u with another's L.
    """
    times = Times("logit_normal", -0.4, 1.0, share_equal=0.5, share_min=0.0, intervals="two_means")
    return dataclasses.replace(
        unweighted(transport, times), velocity="target", learned_weight=True, learned_offset=0.01
    )


def twin_flow(transport: Transport) -> Objective:
    """TwinFlow (arXiv 2512.05150): F* = F⁻ − clip(κ (F⁻ − F_end)) of RCGM, and distribution matching by negative times.

    A quarter of the examples each are fakes, jumps from noise to data, short jumps and any. With L a mean over the
    values of an example, losses are L/√(sg L + 1e-6) times tan(2π/5 (1 − t + r)) + 1 where r ≠ t. See `twinflow.py`.
    """
    return of_kind(
        TwinFlow,
        dataclasses.replace(
            unweighted(transport, Times("uniform", share_equal=0.25, share_min=0.25)),
            weight=TimeWeight("tan", "share"),
            adaptive=AdaptiveWeight(0.5, 1e-6),
        ),
    )


def difference_transition_matching(transport: Transport) -> Objective:
    """Difference transition matching (arXiv 2506.23589): a head draws α̂_t x + σ̂_t ε given x_t, token by token.

    t is uniform on a grid of 32 times. See `transition_matching.py`.
    """
    times = dataclasses.replace(DIAGONAL, distribution="uniform")
    return of_kind(TransitionMatching, unweighted(transport, times))


def low_noise_contrastive(transport: Transport) -> Objective:
    """Local contrastive flow (arXiv 2509.20952): flow matching, but contrastive where there is little noise."""
    return of_kind(LowNoiseContrastive, unweighted(transport, DIAGONAL))


def imm(transport: Transport) -> Objective:
    """Inductive moment matching (arXiv 2503.07565): jumps to r from t and from nearer by end alike in distribution.

    See `imm.py`. t is uniform where the time domain is [0, 1] or like it, and r uniform below t.
    """
    law = "uniform" if transport.T_max <= SCALE_LIMITS["tan"] else "default"
    times = Times(law, share_equal=0.0, share_min=0.0, intervals="uniform")
    return of_kind(MomentMatching, unweighted(transport, times))


def drifting(transport: Transport) -> Objective:
    """Drifting (arXiv 2602.04770): samples of one jump drift to data of their class and away from one another.

    See `drifting.py`. Only jumps from T_max to T_min are learned.
    """
    return of_kind(Drifting, unweighted(transport, Times("uniform", share_equal=0.0, share_min=1.0)))


def scm_distillation(transport: Transport) -> Objective:
    """sCM distillation (arXiv 2410.11081): sCM with the teacher's dx_t/dt."""
    return dataclasses.replace(scm(transport), velocity="teacher")


def ayf_eulerian(transport: Transport) -> Objective:
    """Align Your Flow, Eulerian (arXiv 2506.14603): F* = F⁻ + g/(‖g‖ + 0.1), g = v_T − F⁻ − w (t − r) sg D_v F.

    w goes from 0 to 0.99 in 10,000 steps. The distribution of (t, r) is that of TiM.
    """
    tangent = Tangent(normalise=0.1, warmup_steps=10_000, max_share=0.99)
    return dataclasses.replace(unweighted(transport, Times()), velocity="teacher", tangent=tangent)


def ayf_lagrangian(transport: Transport) -> Objective:
    """Align Your Flow, Lagrangian (arXiv 2506.14603): d f_{t→r}/dr = v_T(f⁻_{t→r}(x_t), r).

    As the Eulerian one, with g = v_T(f⁻, r) − F⁻ + w (t − r) sg ∂F/∂r for OT-FM.
    """
    return dataclasses.replace(ayf_eulerian(transport), consistency="lagrangian")


def ctm(transport: Transport) -> Objective:
    """Consistency trajectory models without adversary (arXiv 2310.02279): f_{t→r}(x_t) = sg f_{u→r}(x_u).

    x_u comes from two steps of Heun's method along the teacher's velocity, u being uniform in (r, t); half of the
    examples learn v from data.
    """
    bootstrap = Bootstrap("slow", "uniform", solver_steps=2)
    return dataclasses.replace(unweighted(transport, Times()), consistency="semigroup", bootstrap=bootstrap)


def rcm(transport: Transport) -> Objective:
    """rCM (arXiv 2510.08431): sCM distillation, and 0.01 times distribution matching on the student's own samples.

    Those are of one or two jumps. In the paper's loss squares are whole, see `terms/matching.py`.
    """
    return dataclasses.replace(
        scm_distillation(transport), matching=Matching(weight=0.02), rollout=Rollout(max_jumps=2)
    )


def distribution_matching(transport: Transport) -> Objective:
    """DMD2 without adversary (arXiv 2405.14867): (x̂_S − x̂_T)/m is the gradient in the student's samples x̂.

    Those are of one jump; the score x̂_S makes five updates for one of the student's. Times are uniform within [0.02,
    0.98] of the time domain, where that is [0, 1] or like it. See `distribution_matching.py` and `terms/matching.py`.
    """
    law = "uniform" if transport.T_max <= SCALE_LIMITS["tan"] else "default"
    times = Times(law, share_equal=0.0, share_min=1.0)
    matching = Matching(weight=1.0, min_quantile=0.02, max_quantile=0.98, network=Auxiliary(updates=5))
    return of_kind(DistributionMatching, dataclasses.replace(unweighted(transport, times), matching=matching))


def tbcm(transport: Transport) -> Objective:
    """TBCM, image-free timestep distillation: sCM distillation at states of the teacher's own trajectories.

    See `trajectory.py`.
    """
    return of_kind(TrajectoryConsistency, scm_distillation(transport))


def cmt(transport: Transport) -> Objective:
    """CMT, mid-training (arXiv 2509.24526): F* = (x_end − A x_i)/B at states x_i of a trajectory that ends in x_end.

    Losses are means of squares, without weight, as published for MeanFlow. See `cmt.py`.
    """
    times = Times(share_equal=0.0, share_min=1.0)
    ends = of_kind(TrajectoryEnds, dataclasses.replace(unweighted(transport, times), velocity="teacher"))
    return ends if transport.T_max <= SCALE_LIMITS["tan"] else dataclasses.replace(ends, grid="edm")


def velocity_refiner(transport: Transport) -> Objective:
    """FlowTurbo's refiner (arXiv 2409.18128): ‖F(x_t, t; F_T(x_u, u)) − F_T(x_t, t)‖² a step of the teacher's after u.

    See `refiner.py`. It is no model of data, but goes with its teacher (`sampling.refiner`).
    """
    return of_kind(VelocityRefiner, dataclasses.replace(flow_matching(transport), velocity="teacher"))


def straightening(transport: Transport) -> Objective:
    """Segmented straightening (arXiv 2402.06461, 2405.07510, 2312.16414): flow matching from x_a to the teacher's x_b.

    t is uniform, in one of four equal segments of time, x_a the state of data and noise at its upper end. See
    `straightening.py`.
    """
    uniform = dataclasses.replace(DIAGONAL, distribution="uniform")
    return of_kind(Straightening, dataclasses.replace(unweighted(transport, uniform), velocity="teacher"))


def flow_dpo(transport: Transport) -> Objective:
    """Flow-DPO (arXiv 2501.13918): −log σ(−½ β [Δ(winner) − Δ(loser)]), Δ = ‖F − F*‖² − ‖F_ref − F*‖² at r = t.

    Errors are means over the values of an example, β is 500, and winner and loser share their noise. See
    `preference.py`.
    """
    return of_kind(FlowDPO, flow_matching(transport))


def reward_weighted_regression(transport: Transport) -> Objective:
    """Reward-weighted regression, Flow-RWR (arXiv 2501.13918): flow matching with losses e^{reward} L of winners."""
    return of_kind(RewardWeighted, flow_matching(transport))


OBJECTIVES: dict[str, Callable[[Transport], Objective]] = {
    "flow_matching": flow_matching,
    "rectified_flow": rectified_flow,
    "tim": tim,
    "mean_flow": mean_flow,
    "improved_mean_flow": improved_mean_flow,
    "modular_mean_flow": modular_mean_flow,
    "scm": scm,
    "shortcut": shortcut,
    "split_mean_flow": split_mean_flow,
    "alphaflow": alphaflow,
    "soflow": soflow,
    "tvm": tvm,
    "facm": facm,
    "dmf": dmf,
    "twin_flow": twin_flow,
    "difference_transition_matching": difference_transition_matching,
    "low_noise_contrastive": low_noise_contrastive,
    "imm": imm,
    "drifting": drifting,
    "scm_distillation": scm_distillation,
    "ayf_eulerian": ayf_eulerian,
    "ayf_lagrangian": ayf_lagrangian,
    "ctm": ctm,
    "rcm": rcm,
    "distribution_matching": distribution_matching,
    "tbcm": tbcm,
    "cmt": cmt,
    "velocity_refiner": velocity_refiner,
    "straightening": straightening,
    "flow_dpo": flow_dpo,
    "reward_weighted_regression": reward_weighted_regression,
}
