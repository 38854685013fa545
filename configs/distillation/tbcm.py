"""TBCM, trajectory-backward consistency without images, of flow matching on the digits.

    sCM distillation at states x_t of the teacher's own way from noise, eight of each

Paper: Image-Free Timestep Distillation via Continuous-Time Consistency. Of the digits only the labels are used.

Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
        python -m tim_jax.train --config=configs/distillation/tbcm.py --workdir=runs/tbcm_distilled
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("digits").network()
    config = config_files.load("digits_flow_matching").student(config)
    config.objective.name = "tbcm"
    config.start.new = ("log_variance_head",)
    config.objective.tangent.warmup = 600
    return config
