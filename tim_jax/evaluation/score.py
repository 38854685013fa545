"""The Inception score (Salimans et al. 2016): exp of the mean Kullback–Leibler divergence of p(y | x) from p(y)."""

import numpy as np

from tim_jax.evaluation.summaries import Splits


def inception_score(splits: Splits) -> float:
    """Returns the Inception score, which looks at no reference.

    It is the mean over splits, as published of 5,000 images each, of

        exp(Σₙ Σₖ pₙₖ log pₙₖ / N − Σₖ p̄ₖ log p̄ₖ),

    and lies between 1 and the number of classes.
    """
    import scipy.special  # slow to import

    counts = splits.counts[splits.counts > 0]
    means = splits.sums[splits.counts > 0] / counts[:, None]
    within = splits.negentropies[splits.counts > 0] / counts
    return float(np.mean(np.exp(within + scipy.special.entr(means).sum(axis=1))))
