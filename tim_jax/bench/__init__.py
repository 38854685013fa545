"""Benchmarks: `python -m tim_jax.bench NAME [--json FILE]` prints a table and writes JSON.

A benchmark is a module with `run(args)`, which returns the rows of a table as dicts, and COLUMNS, (heading, format of a
row) pairs that say what the table shows. Its arguments are in `arguments.py`.
"""

# Modules by name, each imported only when it is run.
BENCHES = {
    "step": "tim_jax.bench.step",
    "sample": "tim_jax.bench.sample",
    "compile": "tim_jax.bench.compile",
    "attention": "tim_jax.bench.attention",
    "data": "tim_jax.bench.data",
    "faults": "tim_jax.bench.faults",
    "flips": "tim_jax.bench.flips",
    "checks": "tim_jax.bench.checks",
    "endurance": "tim_jax.bench.endurance",
}
