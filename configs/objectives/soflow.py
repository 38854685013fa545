"""SoFlow on the digits (arXiv 2512.15657).

    D = (f_{t→r}(x_t) − sg f_{s→r}(x_s))/(t − s), s = t − α (t − r), x_s on the path of (x, ε)

α falls exponentially over the run, from 0.1 to 0.002. Losses are |D|²/sg(|D|² + 0.01), times α where r ≠ t. No
derivative is taken anywhere.

Published, ImageNet 256, FID at 1 / 2 evaluations: SoFlow XL/2 2.96 / 2.66, B/4 (80 epochs) 11.59 / 8.22.

Launch: python -m tim_jax.train --config=configs/objectives/soflow.py --workdir=runs/soflow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "soflow"
    config.objective.bootstrap.alpha.end_step = 0
    config.objective.bootstrap.alpha.end_share = 1.0
    return config
