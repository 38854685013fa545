"""The released JiT-B/16 for ImageNet 256×256 (arXiv 2511.13720), on pixels.

131M parameters; τ = 1 − t from noise to data, and the output is the image x̂, of which F divides by σ ≥ 0.05.
Published score: FID 3.66 with guidance, scale 3.0 where τ ≥ 0.1, by 50 steps of Heun's method.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import checkpoint-last.pth WORKDIR --as=jit_b_16
    python -m tim_jax.sample --workdir=WORKDIR --steps=50 --guidance=3.0 --config.sampling.guidance_high=0.9
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("base").get_config()

    config.data.source = "folder"
    config.data.height = 256
    config.data.width = 256
    config.data.channels = 3
    config.data.batch_size = 1024
    config.data.flip = 0.5

    config.model.network = "jit"
    config.model.size = "B"
    config.model.patch_size = 16
    config.model.num_classes = 1000
    config.model.clock = "1-t"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.transport.prediction = "x"
    config.objective.name = "flow_matching"
    config.times.distribution = "logit_normal"
    config.times.P_mean = 0.8  # of t; of τ −0.8
    config.times.P_std = 0.8

    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema_warmup = False

    config.training.steps = 750_000
    config.checkpoint.every = 2000
    config.sampling.sampler = "heun"
    config.evaluation.labels = "balanced"
    config.evaluation.num_samples = 50_000
    return config
