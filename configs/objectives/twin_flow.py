"""TwinFlow on the digits, self-adversarial flows (arXiv 2512.05150).

    F* = F − clip(F(x̃_t, −t, −t) − F(x̃_t, t, t)) at jumps T → 0, whose samples x̃ negative times belong to

beside the jumps of RCGM, a quarter of the examples each: fakes at negative times, jumps T → 0, short jumps and any.
Published runs have guided targets, too (`objective.guidance.w_cond` 0.5, at all times), and start from a trained model;
from scratch the match diverges.

Published, GenEval at 1 evaluation: 0.83 of text-to-image models trained so, and 0.86 of Qwen-Image-20B, which has 0.87
at 100.

Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
        python -m tim_jax.train --config=configs/objectives/twin_flow.py --workdir=runs/twin_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "twin_flow"
    config.start.checkpoint = loading.load("digits_flow_matching").WORKDIR
    return config
