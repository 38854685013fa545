"""How good samples are: features, metrics, references, the any-step table, pictures.

FEATURES maps a name to a function from a path of weights to Features, which say what images are compared by. METRICS
maps a name to a Metric, a figure of samples, most of them against a reference. Every metric that the features can serve
becomes columns of the any-step table.
"""

from tim_jax.evaluation import features
from tim_jax.evaluation.metrics import METRICS as METRICS

FEATURES = {"pixels": features.pixels, "inception": features.inception, "dinov2": features.dinov2}
