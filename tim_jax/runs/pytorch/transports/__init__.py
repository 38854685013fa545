"""The transports of `tim_jax.transitions.transports` in PyTorch, a file each, of float64 scalars."""
