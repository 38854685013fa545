"""Terminal velocity matching on the digits (arXiv 2511.19797).

    d f_{t→r}(x_t)/dr = sg v̄(f_{t→r}(x_t), r), v̄ the velocity of the EMA

in half of the examples, and flow matching in the others. The derivative on the left keeps its gradient.

Published, ImageNet 256, FID at 1 / 4 evaluations: TVM 3.29 / 1.99.

Launch: python -m tim_jax.train --config=configs/objectives/tvm.py --workdir=runs/tvm
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "tvm"
    return config
