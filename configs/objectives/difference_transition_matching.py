"""Difference transition matching on the digits (arXiv 2506.23589).

    F(y_s, s; x_t, t) = Y − y_0, y_s = (1 − s) y_0 + s Y, Y = ε − x,

for every token by a head of its own: jumps take a draw of Y given x_t, not its mean. An evaluation of the network is
one of its trunk, and `sampling.draw_steps` of the head.

Published, text to image with 1.7 billion parameters: with 16 and 32 transitions ahead of flow matching with 128
evaluations and more, at a seventh of its time.

Launch: python -m tim_jax.train --config=configs/objectives/difference_transition_matching.py --workdir=runs/dtm
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "difference_transition_matching"
    return config
