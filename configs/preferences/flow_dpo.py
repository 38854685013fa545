"""Flow-DPO of the flow-matching digits (arXiv 2501.13918): of pairs of its samples those with the thicker strokes win.

    −log σ(−½ β [Δ(winner) − Δ(loser)]),   Δ = ‖F − (ε − x)‖² − ‖F_ref − (ε − x)‖²

at the same t and with the same noise ε, errors being means. The reference is the model that the run starts from. β is
that of the paper.

Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
        python -m tim_jax.prefer --workdir=runs/digits_flow_matching --reward=brightness --out=runs/preferences
        python -m tim_jax.train --config=configs/preferences/flow_dpo.py --workdir=runs/flow_dpo
"""

from tim_jax.config import loading

WORKDIR = "runs/flow_dpo"


def tuned(changes):
    """A configuration that goes on from the flow-matching digits with preferences.

    changes: {"section.key": value}.
    """
    digits = loading.load("digits_flow_matching")
    config = loading.load("digits").network()
    config.start.checkpoint = digits.WORKDIR

    config.data.source = "preferences"
    config.data.path = "runs/preferences"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 20

    config.ema.slow = 0.95

    config.training.steps = 300
    config.training.sample_every = 0

    config.evaluation.source = "digits"
    config.update_from_flattened_dict(changes)
    return config


def get_config():
    return tuned({"objective.name": "flow_dpo"})
