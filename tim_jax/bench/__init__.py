"""Benchmarks: `python -m tim_jax.bench NAME [--json FILE]` prints a table and writes JSON.

A benchmark is a module with `add_arguments(parser)`, `run(args)` → rows, and COLUMNS, what its table shows.
"""

# Modules by name, imported when asked for.
BENCHES = {
    "step": "tim_jax.bench.step",
    "sample": "tim_jax.bench.sample",
    "compile": "tim_jax.bench.compile",
    "attention": "tim_jax.bench.attention",
    "data": "tim_jax.bench.data",
    "faults": "tim_jax.bench.faults",
}
