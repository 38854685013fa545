"""Comparisons: variants of one base configuration, trained at equal cost and measured by one table.

`settings` says what an ablation is, `plan` how many steps each variant takes, `runs` trains and measures one of them,
`beside` measures models that are trained elsewhere, `report` makes the table and the plot, `launch` writes commands
for clusters.
"""

from tim_jax.ablation.settings import Ablation

__all__ = ["Ablation"]
