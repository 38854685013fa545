"""Keys and values that had other names, or were not there, so that workdirs of before are read as they were meant."""

from collections.abc import Mapping
from typing import Any

# Of version 0.1.
KEYS = {
    "times.law": "times.distribution",
    "objective.weight_kernel": "objective.weight.kernel",
    "objective.weight_scale": "objective.weight.scale",
    "objective.weight_difference": "objective.weight.difference",
    "objective.weight_sigma_d": "objective.weight.sigma_d",
    "objective.adaptive_power": "objective.adaptive.power",
    "objective.adaptive_offset": "objective.adaptive.offset",
    "objective.adaptive_total": "objective.adaptive.total",
    "objective.tangent.most": "objective.tangent.max_share",
    "objective.tangent.warmup": "objective.tangent.warmup_steps",
    "objective.tangent.differentiate": "objective.tangent.differentiate_steps",
    "objective.bootstrap.weights": "objective.bootstrap.ema",
    "objective.bootstrap.finest": "objective.bootstrap.min_interval",
    "objective.bootstrap.solver": "objective.bootstrap.solver_steps",
    "objective.input_guidance.most": "objective.input_guidance.max_scale",
    "objective.contrast.below": "objective.contrast.max_time",
    "objective.score.rollout": "objective.rollout.max_jumps",
    "objective.score.max_jumps": "objective.rollout.max_jumps",
    "objective.score.weight": "objective.matching.weight",
    "objective.points": "objective.trajectory_points",
    "teacher.weights": "teacher.checkpoint",
    "teacher.which": "teacher.ema",
    "teacher.weaker": "teacher.weak_checkpoint",
    "teacher.weaker_which": "teacher.weak_ema",
    "start.weights": "start.checkpoint",
    "start.which": "start.ema",
    "start.new": "start.reinitialise",
    "sampling.weights": "sampling.ema",
    "evaluation.samples": "evaluation.num_samples",
    "evaluation.rows": "evaluation.max_images",
    "evaluation.every": "evaluation.periodic.every",
    "evaluation.steps": "evaluation.periodic.steps",
    "evaluation.count": "evaluation.periodic.num_samples",
    "evaluation.weights": "evaluation.periodic.emas",
    "data.noise": "data.paired_noise",
    "data.buckets.most": "data.buckets.max_buckets",
    "optimizer.rates": "optimizer.learning_rate_factors",
    "training.remat": "model.remat",
}
# What Muon took before `optimizer.momentum`, which was `optimizer.b2`, whatever `optimizer.eps` said.
MUON_EPS = 1e-8
# Keys that name weights: the raw ones were called "student".
WEIGHTS = (
    "sampling.ema", "start.ema", "teacher.ema", "teacher.weak_ema", "objective.velocity", "objective.bootstrap.ema",
    "objective.guidance.ema", "evaluation.periodic.emas",
)  # fmt: skip


def renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} by today's names, with the values by which new keys change no number."""
    now = {new: _value(new, value) for new, value in ((KEYS.get(key, key), value) for key, value in flat.items())}
    if now.get("optimizer.name") == "muon" and "optimizer.momentum" not in now:
        now |= {"optimizer.momentum": now["optimizer.b2"], "optimizer.eps": MUON_EPS}
    if flat.get("objective.score.weight"):
        now["objective.matching.weight"] = 2 * flat["objective.score.weight"]  # whose square is halved
    if now.get("evaluation.held_out") == "held_out" and "data.held_out_share" not in now:
        now["evaluation.held_out"] = "auto"  # it was the default, also for data that had no such part
    if "evaluation.num_samples" in now and now.get("model.condition", "class") == "class":
        now.setdefault("evaluation.labels", "balanced")
    if now.get("objective.coupling.task") not in (None, "none"):
        now["evaluation.labels"] = "data"  # which has no effect there
    if now.get("data.buckets.area") and not now.get("data.buckets.table"):
        now.setdefault("data.buckets.keep_rare", True)
    return now


def _value(key: str, value: Any) -> Any:
    if key not in WEIGHTS:
        return value
    if isinstance(value, list | tuple):
        return type(value)(_value(key, one) for one in value)
    return "online" if value == "student" else value
