"""Decoupled MeanFlow on the digits (arXiv 2510.24474).

    F* = v − (t − r) sg D_v F, losses log(e^{−u} L + 0.01) + u, u(t, r) learned

The last block and the final layer see r alone for the times, the others t. At r = t this network is one of flow
matching, from which the paper starts: with --config.objective.name=flow_matching the same command trains it in another
workdir, and --config.start.checkpoint=runs/dmf_flow --config.start.reinitialise=joint_log_variance_head starts from it.
The paper also guides targets: v + 0.6 (F(x_t, t, t | c) − F(x_t, t, t | ∅)) up to t = 0.7, which is
--config.objective.guidance.w_cond=0.6, t_low 0, t_high 0.7 and ema online.

Published, ImageNet 256, FID at 1 / 4 evaluations: XL/2+ 2.16 / 1.51, with the last 8 of 28 blocks for r.

Launch: python -m tim_jax.train --config=configs/objectives/dmf.py --workdir=runs/dmf
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()

    config.model.decoupled_depth = 1
    config.model.interval_aware = False

    config.objective.name = "dmf"
    return config
