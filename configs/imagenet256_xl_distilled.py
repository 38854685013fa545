"""TiM-XL/2 on ImageNet 256×256, learnt from a trained one by Align Your Flow, Eulerian (arXiv 2506.14603).

    F* = F⁻ + g/(‖g‖ + 0.1), g = v_T − F⁻ − w (t − r) sg D_{v_T} F, v_T the teacher's velocity at guidance 1.5

The student is the teacher's twin and starts from its weights; the teacher is kept in bfloat16, sharded as the student.
Hardware: as configs/imagenet256_xl.py. What both need of a chip:
    python -m tim_jax.plan --config=imagenet256_xl_distilled --teacher=imagenet256_xl --topology=v5p:4x4x8
Launch, on every host: python -m tim_jax.train --config=configs/imagenet256_xl_distilled.py --workdir=gs://BUCKET/student
    --config.data.path=LATENTS --config.teacher.checkpoint=gs://BUCKET/imagenet256_xl
    --config.start.checkpoint=gs://BUCKET/imagenet256_xl
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.objective.name = "ayf_eulerian"
    config.objective.alignment_weight = 0.0
    config.data.features_width = 0

    config.teacher.checkpoint = config.start.checkpoint = "runs/imagenet256_xl"
    config.teacher.dtype = "bfloat16"
    config.teacher.guidance = 1.5
    config.start.reinitialise = ("projector",)  # which the teacher has alone, for alignment

    config.training.steps = 50_000
    return config
