"""InstaFlow: one step from noise, distilled from a straightened flow on the digits (arXiv 2309.06380).

    L = E ‖ε − F(ε, T_max, T_max) − x̂(ε)‖² for OT-FM, x̂(ε) the sample of the reflowed model

Reflow comes first: paths are nearly straight by then, so that what one step has to learn is near to what the weights
already do. The published loss is LPIPS; this is L2. Other objectives can learn more than one step.

Published, COCO 2014, FID of one step: InstaFlow-0.9B 13.1.

Launch: python -m tim_jax.train --config=configs/distillation/reflow.py --workdir=runs/reflow
        python -m tim_jax.pairs --workdir=runs/reflow --out=runs/reflow_pairs --examples=20000 --steps=32
        python -m tim_jax.train --config=configs/distillation/instaflow.py --workdir=runs/instaflow

The first of them needs pairs of its own, see there.
"""

from tim_jax.config import loading


def get_config():
    reflow = loading.load("distillation/reflow")
    config = reflow.get_config()
    config.objective.name = "flow_matching"
    config.times.distribution = "max"
    config.data.path = f"{reflow.WORKDIR}_pairs"
    config.start.checkpoint = reflow.WORKDIR
    config.training.sample_steps = (1,)
    return config
