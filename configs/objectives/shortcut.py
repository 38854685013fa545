"""Shortcut models on the digits (arXiv 2410.12557).

    F* = sg ½ [F(x_t, t, m) + F(x_m, m, r)] in an eighth of the examples, t − r dyadic; flow matching in the others

Launch: python -m tim_jax.train --config=configs/objectives/shortcut.py --workdir=runs/shortcut
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "shortcut"
    return config
