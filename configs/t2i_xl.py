"""TiM-XL/1 for text to image at native resolution to 4096×4096, in DC-AE (f32c32) latents with Gemma 3 1B features.

Recipe: arXiv 2509.04394. 865M parameters, 256 text tokens, caption dropout 0.1, resolution shift against 1024×1024, 16
images of 1024×1024 or as many positions of other sizes for each of 64 GPUs.
Published score: GenEval 0.67, 0.76, 0.80, 0.83 at 1, 8, 32, 128 evaluations.
Hardware: a pod slice such as v5p-512, or 64 H100; bfloat16.
Encode the captioned images first, once: python -m tim_jax.encode --config=configs/t2i_xl.py --out=DIR
    --config.data.encode=True --config.data.source=manifest --config.data.path=IMAGES
    --config.codecs.autoencoder=DC-AE --config.codecs.text_encoder=GEMMA --config.codecs.image_encoder=DINOV2_B
Launch, on every host: python -m tim_jax.train --config=configs/t2i_xl.py --workdir=gs://BUCKET/t2i_xl
    --config.data.path=DIR
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("base").get_config()

    config.data.source = "shards"
    config.data.height = 32  # of samples; examples are in buckets
    config.data.width = 32
    config.data.channels = 32
    config.data.buckets.area = 128 * 128
    config.data.buckets.tokens = 64 * 16 * 32 * 32
    config.data.features_width = 768
    config.data.text_width = 1152
    config.data.text_tokens = 256

    config.model.size = "XL"
    config.model.patch_size = 1
    config.model.condition = "text"
    config.model.dtype = "bfloat16"

    config.times.distribution = "logit_normal"
    config.times.P_mean = 0.0
    config.times.P_std = 1.6
    config.times.shift_reference = 1024.0  # 32 × 32 latent positions: images of 1024 × 1024

    config.objective.alignment_weight = 1.0
    config.objective.guidance.w_cond = 0.75
    config.objective.guidance.t_low = 0.3
    config.objective.guidance.t_high = 0.8
    config.objective.guidance.start_step = 200_000
    config.objective.guidance.ema = "slow"

    config.optimizer.learning_rate = 4e-4

    config.sampling.batch_size = 8

    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.training.steps = 500_000
    config.model.remat = "attention"
    config.checkpoint.every = 1000
    return config
