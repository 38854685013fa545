"""What is said of a run's EMAs before it trains: where their decays are in force, and what their snapshots take."""

import math

import jax
from etils import epath

from tim_jax.config.network import warn_once
from tim_jax.config.run import Run
from tim_jax.config.sampling import tracked
from tim_jax.runs.shard_job import in_words
from tim_jax.training import power_ema, snapshots

MIN_SNAPSHOTS = 10  # in a run, below which lengths far from the tracked ones come out poorly


def binding_step(decay: float) -> int:
    """Returns how many steps are done when a decay's warm-up (1 + n)/(10 + n) has reached it."""
    return max(0, math.ceil((10 * decay - 1) / (1 - decay) - 1e-6))


def check(run: Run) -> None:
    """Raises ValueError if pictures and evaluations while training would need weights that no state has.

    An EMA of another length than the tracked ones is synthesised from a workdir's checkpoint and snapshots.
    """
    known = tracked(run.config)
    if run.sampling.ema not in known:
        raise ValueError(
            f"sampling.ema is {run.sampling.ema!r}; it must be one of {', '.join(known)} while training, and may be "
            "given to the commands that sample, once that is done"
        )


def warn(run: Run) -> None:
    """Says so, on the first process, where an EMA never has the decay that the configuration says."""
    if jax.process_index() > 0 or not run.trainer.step.ema_warmup:
        return
    steps = run.training.steps
    for name, decay in run.config.ema.items():
        if (binds := binding_step(decay)) >= steps:
            warn_once(
                f"ema.{name} is {decay}, which is never in force in training.steps={steps}: with optimizer.ema_warmup "
                f"a decay is at most (1 + n)/(10 + n) after n steps, {steps / (9 + steps):.5g} in the last one, and "
                f"{decay} from step {binds:,} on; a smaller one, or optimizer.ema_warmup=False, is as it says"
            )
    count = (steps - 1) // run.posthoc_ema.every
    if run.posthoc_ema.sigma_rel and count < MIN_SNAPSHOTS:
        warn_once(
            f"posthoc_ema.every is {run.posthoc_ema.every}, and training.steps {steps}: {count} snapshots are too few "
            "for EMAs of other lengths; posthoc_ema.every="
            f"{max(1, steps // 50)} makes some 50"
        )


def told(run: Run, folder: epath.Path) -> list[str]:
    """Returns lines that say from which step on decays are in force, and how much disk snapshots take."""
    lines, stored = [], run.posthoc_ema
    steps = run.training.steps
    if run.trainer.step.ema_warmup:
        lines += [
            f"ema.{name}: {decay} binds from step {binds:,} of {steps:,}; before, (1 + n)/(10 + n) after n steps"
            for name, decay in run.config.ema.items()
            if 0 < (binds := binding_step(decay)) < steps
        ]
    if stored.sigma_rel:
        each, count = snapshots.size(run.trainer.abstract.emas, stored.dtype), steps // stored.every
        names = ", ".join(map(power_ema.name_of, stored.sigma_rel))
        lines.append(
            f"posthoc_ema: {names}; a snapshot of {in_words(each)} every {stored.every:,} steps, {count} in all, "
            f"{in_words(each * count)} in {folder / snapshots.FOLDER}"
        )
    return lines
