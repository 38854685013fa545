"""Local contrastive flow on the digits (arXiv 2509.20952): flow matching, but contrastive below t = 0.1.

Launch: python -m tim_jax.train --config=configs/objectives/low_noise_contrastive.py --workdir=runs/lcf
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "low_noise_contrastive"
    return config
