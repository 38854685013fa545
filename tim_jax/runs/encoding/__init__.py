"""Rows encoded once, by a run's frozen parts, to shards that training reads (tim_jax/data/sources/shards.py)."""
