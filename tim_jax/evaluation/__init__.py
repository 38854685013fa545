"""How good samples are: feature statistics, distances, the any-step table, pictures.

FEATURES: name -> function from images (n, h, w, C) in [-1, 1] to features (n, d).
METRICS: name -> Metric, a distance between two sets of features. Every metric becomes columns of the any-step table.
"""

from tim_jax.evaluation import distances, features

FEATURES = {"pixels": features.pixels}

METRICS = {"frechet": distances.FRECHET, "kernel": distances.KERNEL}
