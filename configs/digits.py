"""TiM on the embedded 8×8 handwritten digits: minutes on two CPU cores.

Launch: bash launch/local.sh

`ANY_STEP` is where it leaves the published loss so that both one step and many are good, alike on all data; what each
of the keys does, and what did not help, is in docs/how_good.md.
"""

from tim_jax.config import loading

ANY_STEP = {
    # As published, t is the larger of two draws also where r = t: nearer to noise than many steps need. Images of more
    # positions need higher times, by the usual shift.
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


def network():
    """Data, network and optimizer, with the objective left as it is named in configs/base.py."""
    config = loading.load("base").get_config()

    config.data.batch_size = 128

    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4
    config.model.bottleneck = 64
    config.model.encoder_depth = 2
    config.model.patch_size = 4

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 200

    config.ema.slow = 0.9975

    config.training.steps = 3600
    config.training.sample_every = 1200
    config.training.sample_steps = (1, 8, 64)
    return config


def get_config():
    config = network()
    config.update_from_flattened_dict(ANY_STEP)

    config.optimizer.learning_rate = 4e-3
    return config
