"""Flow matching on the embedded digits: the twin of configs/digits.py, with r = t in every row.

Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("digits").get_config()
    config.times.share_equal = 1.0
    config.times.share_min = 0.0
    return config
