"""How dF/dt is taken: exactly by forward mode, or by a central difference ("DDE") of several half steps ε.

Launch: python -m tim_jax.ablate --config=configs/ablations/derivative.py --workdir=runs/ablations/derivative
Time: 5 variants × 3 seeds × about 75 seconds on two CPU cores, some 20 minutes in all.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
JVP 49.75 / 26.22 / 18.11, DDE with ε = 0.005 49.91 / 26.09 / 17.99. To compare: whether the two differ by more than
their spread, and where a half step is too long or too short. The published JVP ran in a pass of its own and lost a
quarter of the steps per second; here it is fused with training, so that equal time favours it.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading


def get_ablation():
    return Ablation(
        base=loading.load("digits_small").get_config(),
        variants={"jvp": {}}
        | {
            f"dde_{name}": {"objective.derivative": "dde", "objective.epsilon": epsilon}
            for name, epsilon in (("0_1", 0.1), ("0_02", 0.02), ("0_005", 0.005), ("0_0005", 0.0005))
        },
    )
