"""What the network's output stands for: F, the data or the noise, for flow matching and for MeanFlow.

Launch: python -m tim_jax.ablate --config=configs/ablations/predictions.py --workdir=runs/ablations/predictions
Time: 6 variants × 3 seeds × about 75 seconds on two CPU cores, 23 minutes in all.

Published (JiT, arXiv 2511.13720, ImageNet 256 in pixels, patches of 16): only the data can be predicted, velocity and
noise fail. To compare: patches of 8 × 8 digits have few numbers, so that nothing should fail here. Once, with 48
channels, 2 blocks and 600 steps, the Fréchet distance in pixels at 1 / 4 / 16 evaluations was 8.62 / 2.47 / 1.99 with
F and 10.4 / 3.19 / 2.81 with the data for flow matching, 4.65 / 1.80 / 1.74 and 2.48 / 1.72 / 2.76 for MeanFlow.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading


def get_ablation():
    return Ablation(
        base=loading.load("digits_small").network(),
        variants={
            f"{objective}_{prediction.lower()}": {"objective.name": objective, "transport.prediction": prediction}
            for objective in ("flow_matching", "mean_flow")
            for prediction in ("F", "x", "noise")
        },
    )
