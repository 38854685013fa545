"""Transition Models (TiM) in JAX: one network F(x_t, t, r) that samples in any number of steps."""

__version__ = "0.1.0"
