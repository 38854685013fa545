"""Attention: its implementations, their differentiation rules, and sequence parallelism."""
