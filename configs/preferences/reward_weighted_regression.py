"""Reward-weighted regression of the flow-matching digits (Flow-RWR, arXiv 2501.13918): e^{reward/τ} L of winners.

L is flow matching's loss. Pairs and start are those of configs/preferences/flow_dpo.py; there is no reference.

Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
        python -m tim_jax.prefer --workdir=runs/digits_flow_matching --reward=brightness --out=runs/preferences
        python -m tim_jax.train --config=configs/preferences/reward_weighted_regression.py --workdir=runs/rewarded
"""

from tim_jax.config import loading


def get_config():
    return loading.load("preferences/flow_dpo").tuned({"objective.name": "reward_weighted_regression"})
