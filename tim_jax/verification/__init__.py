"""What stands behind `python -m tim_jax.verify`: whether this machine trains rightly, and how fast.

A check is a module with `run(setup)`, which yields lines, each with its verdict, and what it had to leave out.
"""

# Modules by the names of checks, in the order in which they run; each is imported only then. Those that need more
# packages than JAX, flax, optax and orbax are left out where these are not installed.
CHECKS = {
    "machine": "tim_jax.verification.machine",
    "products": "tim_jax.verification.products",
    "attention": "tim_jax.verification.attention",
    "parity": "tim_jax.verification.parity",
    "collectives": "tim_jax.verification.collectives",
    "checkpoint": "tim_jax.verification.checkpoint",
    "data": "tim_jax.verification.data",
    "training": "tim_jax.verification.training",
    "sampling": "tim_jax.verification.sampling",
    "compile": "tim_jax.verification.compile",
}
SIZES = ("small", "full")
