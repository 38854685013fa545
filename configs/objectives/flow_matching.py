"""Flow matching on the digits (arXiv 2210.02747): F* = ε − x, r = t in every example.

Launch: python -m tim_jax.train --config=configs/objectives/flow_matching.py --workdir=runs/flow_matching
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "flow_matching"
    return config
