"""Settings of an objective that exclude one another."""

from typing import TYPE_CHECKING

from tim_jax.transitions.terms.matching import SCORE

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective


def check_together(objective: "Objective", own_states: bool) -> None:
    """Raises ValueError, naming key and value, for settings that are right by themselves, but not together.

    Args:
        objective: The objective.
        own_states: Whether its loss is not at the states x_t of data and noise.
    """
    gamma = objective.transport.gamma
    if gamma and own_states:
        raise ValueError(f"transport.gamma is {gamma}; it must be 0 for {objective.name!r}, which has its own states")
    objective.bootstrap.check_limit(objective.consistency)
    objective.refresh.check("objective.refresh")
    domain = objective.transport.T_max - objective.transport.T_min
    if not 0 < objective.epsilon < domain / 2:
        raise ValueError(f"objective.epsilon is {objective.epsilon}; it must lie in (0, {domain / 2:g})")
    if objective.tangent.differentiate_steps and objective.derivative != "jvp":
        raise ValueError(
            f"objective.derivative is {objective.derivative!r}; it must be 'jvp' where the tangent is differentiated"
        )
    if objective.transport.shared_below and objective.derivative != "jvp":
        raise ValueError(
            f"objective.derivative is {objective.derivative!r}; it must be 'jvp' with transport.shared_below, where F "
            "leaps in t"
        )
    if objective.consistency == "lagrangian" and objective.derivative != "jvp":
        raise ValueError(f"objective.derivative is {objective.derivative!r}; it must be 'jvp' for 'lagrangian'")
    if objective.consistency == "lagrangian" and objective.velocity in ("target", "head"):
        raise ValueError(
            f"objective.velocity is {objective.velocity!r}; it must be 'data', 'teacher', 'online' or the name of an "
            "EMA for 'lagrangian', whose jumps end with it"
        )
    check_terms(objective)
    if objective.guidance.active and objective.input_guidance.active:
        raise ValueError(
            f"objective.input_guidance.max_scale is {objective.input_guidance.max_scale}; it must be 1 with target "
            "guidance (objective.guidance)"
        )
    if objective.follows_teacher and (objective.guidance.active or objective.input_guidance.active):
        given = f"objective.input_guidance.max_scale is {objective.input_guidance.max_scale}; it must be 1"
        if objective.guidance.active:
            given = "objective.guidance.w_gt, objective.guidance.w_cond are "
            given += f"{objective.guidance.w_gt}, {objective.guidance.w_cond}; they must be 1, 0"
        raise ValueError(f"{given} where jumps follow a teacher, whose guidance is teacher.guidance")


def check_terms(objective: "Objective") -> None:
    """Raises ValueError for terms on samples of a student that has none, or whose networks are not called so."""
    if not objective.terms:
        return
    gamma, scale = objective.transport.gamma, objective.input_guidance.max_scale
    if objective.adversary.weight and objective.adversary.trunk == SCORE and not objective.matching.weight:
        raise ValueError(
            f"objective.adversary.trunk is {SCORE!r}; it must be 'teacher' where objective.matching.weight is 0, with "
            "which that network is trained"
        )
    if gamma:
        raise ValueError(f"transport.gamma is {gamma}; it must be 0 with terms on samples, which are noised without it")
    if objective.input_guidance.active:
        raise ValueError(
            f"objective.input_guidance.max_scale is {scale}; it must be 1 with terms on the student's samples"
        )
    if objective.slices > 1:
        raise ValueError(
            f"model.slices is {objective.slices}; it must be 1 with terms on the student's samples, which all slices "
            "make"
        )
    if objective.prediction_input or objective.transition_head:
        raise ValueError(
            f"objective.name is {objective.name!r}; it must be one that makes data by a jump with terms on samples"
        )
    divergence = objective.matching.divergence
    if objective.matching.weight and divergence != "rkl" and not objective.adversary.weight:
        raise ValueError(
            f"objective.matching.divergence is {divergence!r}; it must be 'rkl' without a discriminator, which tells "
            "the density ratio (objective.adversary.weight is 0)"
        )
