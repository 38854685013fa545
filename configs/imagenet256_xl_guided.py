"""TiM-XL/2 on ImageNet 256×256 with guided targets, so that one step needs no guidance when sampling.

    v → v + 0.75 (F(x_t, t, t | c) − F(x_t, t, t | ∅)) by the weights of the EMA, for t in [0.3, 0.8]

Recipe: arXiv 2509.04394. 1,250,000 steps; all else, and what differs, as imagenet256_xl.py. One thing more differs: the
target of an example that is trained without its label is not guided, as it should not be; in the published code it is.
Published score: FID 3.26 at 1 step.
Hardware: as imagenet256_xl.py.
Launch, on every host: python -m tim_jax.train --config=configs/imagenet256_xl_guided.py --workdir=gs://BUCKET/guided
    --config.data.path=LATENTS --config.data.images=IMAGES --config.codecs.image_encoder=DINOV2_B
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.objective.guidance.w_gt = 1.0
    config.objective.guidance.w_cond = 0.75
    config.objective.guidance.t_low = 0.3
    config.objective.guidance.t_high = 0.8
    config.objective.guidance.ema = "slow"

    config.training.steps = 1_250_000
    return config
