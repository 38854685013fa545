"""Drifting on the digits (arXiv 2602.04770): samples of one jump drift to data of their class, away from one another.

    ‖f(ε)/c − sg(f(ε)/c + Σ_R V_R)‖²,   V_R = Σ A_p A_n (y_p − y_n)/c, each of unit size

y_p from the last 64 examples of the class, y_n from the 16 samples of the group. The paper's distances are those of
features of a pretrained encoder; here they are those of pixels. The loss does not fall: the metric "force" does.

Published, FID in one step: ImageNet 256 1.54 (L, latents) and 1.61 (L, pixels), with an encoder trained for it.

Launch: python -m tim_jax.train --config=configs/objectives/drifting.py --workdir=runs/drifting
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "drifting"
    return config
