"""TiM on the embedded 8×8 handwritten digits: minutes on two CPU cores.

Launch: bash launch/local.sh

Where it leaves the published loss, and why (figures in docs/how_good.md):
- No weight by an example's own error: in few dimensions it no longer aims at the conditional mean, and samples lose
  spread.
- No weight by the interval either: the tenth of the examples that learn jumps needs all of its say for one step.
- No direction term: with one channel it is a sign, and over the image it pulls away from the conditional mean as well.
- dF/dt along the velocity that the network itself predicts at r = t, not along the example's own. The target's mean is
  the same, its variance lower.
- Nine tenths of the examples at r = t, which many steps need.
- dF/dt sets in over the first third of training. Before the network knows a velocity, its derivative is noise; until
  then the examples with r ≠ t learn that velocity as well.
- The learning rate falls linearly to zero, for the flow-matching twin as well.
"""

from tim_jax.config import loading


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

    config.ema.slow = 0.999

    config.training.steps = 3600
    config.training.sample_every = 1200
    config.training.sample_steps = (1, 8, 64)
    return config


def get_config():
    config = network()

    config.times.share_equal = 0.9
    config.times.share_min = 0.05

    config.objective.weight.kernel = "constant"
    config.objective.adaptive.power = 0.0
    config.objective.direction = "none"
    config.objective.velocity = "online"
    config.objective.tangent.warmup_share = 1 / 3
    return config
