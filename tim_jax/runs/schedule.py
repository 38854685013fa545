"""What is said of schedules, of the learning rate and of dF/dt, before a run trains by them."""

from collections.abc import Mapping
from typing import Any

import jax

from tim_jax.config.network import warn_once
from tim_jax.config.run import Run
from tim_jax.config.sections import read
from tim_jax.training.optimizer import OptimizerSettings


def warn_of_schedule(run: Run, before: Mapping[str, Any] | None = None) -> None:
    """Says so where the learning rate does what hardly anybody wants, or a schedule ends elsewhere than it did before.

    Args:
        run: that is to be trained.
        before: the recorded configuration of the run that goes on, if one does.
    """
    if jax.process_index() > 0:
        return
    settings, steps = read(OptimizerSettings, run.config.optimizer), run.training.steps
    for doubt in settings.doubts(steps):
        warn_once(doubt)
    if before is None:
        return
    then = read(OptimizerSettings, before["optimizer"]).following(before["training"]["steps"])
    now = settings.following(steps)
    if now.decay_steps != then.decay_steps:
        warn_once(
            f"the learning rate reaches 0 at step {now.decay_steps}; as the run was recorded, it did at step "
            f"{then.decay_steps}"
        )
    objective, steps_then = run.config.objective, before["training"]["steps"]
    for share, what in (
        (objective.tangent.warmup_share, "dF/dt has set in"),
        (objective.bootstrap.alpha.end_share, "α of two jumps has reached its final value"),
    ):
        if share and round(share * steps) != round(share * steps_then):
            warn_once(
                f"{what} at step {round(share * steps)}; as the run was recorded, it had at step "
                f"{round(share * steps_then)}"
            )
