"""Sampling: solvers as plans of network evaluations, step grids, and the one loop that runs every plan."""
