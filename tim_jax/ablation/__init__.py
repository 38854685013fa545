"""Ablations: variants of one base configuration, trained at equal cost and measured by one table.

`settings` defines an ablation, `budget` finds how many steps each variant takes, `runs` trains and measures one of
them, `baselines` measures models that were trained elsewhere, `table` makes the table and the plot, and `launch`
writes commands for clusters.
"""

from tim_jax.ablation.settings import Ablation

__all__ = ["Ablation"]
