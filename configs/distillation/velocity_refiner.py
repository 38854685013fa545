"""FlowTurbo's velocity refiner of flow matching on the digits (arXiv 2409.18128): one block, from scratch.

    F(x_t, t; F_T(x_u, u)) = F_T(x_t, t), x_t one step of the teacher's after x_u, u − t up to 0.12

It is no model of the digits, but goes with its teacher.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/velocity_refiner.py --workdir=runs/refiner
Then:   python -m tim_jax.sample --workdir=runs/digits_teacher --config.sampling.sampler=flowturbo
            --config.sampling.pattern=H1P5R --config.sampling.refiner=runs/refiner
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "velocity_refiner",
            "start.checkpoint": "",
            "model.depth": 1,
            "model.encoder_depth": 1,
            "training.sample_every": 0,
        }
    )
