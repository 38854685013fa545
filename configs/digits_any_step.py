"""TiM on the embedded digits with the loss that is ahead of flow matching at every number of steps (docs/how_good.md).

Launch: python -m tim_jax.train --config=configs/digits_any_step.py --workdir=runs/digits_any_step

Network and schedule are those of configs/digits.py. `ANY_STEP` lists where the loss differs from the published one, so
that one step and many steps are both good. It is the same for all data sets.
"""

from tim_jax.config import loading

ANY_STEP = {
    # As published, t is the larger of two draws even where r = t: nearer to noise than many steps need. Larger images
    # need higher times, by the usual shift.
    "times.single_equal": True,
    "times.shift_reference": 64.0,
    # Many steps are only as good as F is at r = t.
    "times.share_equal": 0.9,
    "times.share_min": 0.05,
    # A weight by the interval or by an example's own error takes the target away from the conditional mean, and samples
    # lose spread; so does the direction term.
    "objective.weight.kernel": "constant",
    "objective.adaptive.power": 0.0,
    "objective.direction": "none",
    # dF/dt along the velocity that the network itself predicts, once it is learned: the same mean, a lower variance.
    "objective.velocity": "online",
    "objective.tangent.warmup_share": 0.5,
}


def get_config():
    config = loading.load("digits").network()
    config.update_from_flattened_dict(ANY_STEP)

    config.optimizer.learning_rate = 4e-3
    return config
