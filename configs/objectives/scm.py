"""sCM, consistency training, on the digits (arXiv 2410.11081).

    F* = F⁻ + g/(‖g‖ + 0.1), g = cos²t [(v − F⁻) + w tan t (v' − sg D_v F)], r = T_min in every example

Launch: python -m tim_jax.train --config=configs/objectives/scm.py --workdir=runs/scm
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "scm"
    config.transport.name = "trigflow"
    config.objective.tangent.warmup_steps = 1200
    return config
