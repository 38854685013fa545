"""Reward-weighted regression of the flow-matching digits (Flow-RWR, arXiv 2501.13918): e^{reward/τ} L of winners.

L is flow matching's loss. Rewards and winners are those of configs/preferences/flow_dpo.py; there is no reference.

Launch: python -m tim_jax.train --config=configs/preferences/reward_weighted_regression.py --workdir=runs/rwr
"""

from tim_jax.config import loading


def get_config():
    return loading.load("preferences/flow_dpo").tuned({"objective.name": "reward_weighted_regression"})
