"""Memory that a CPU computes in: a call finds what those before it have left."""

import os
import subprocess
import sys

import pytest

from tim_jax.system.allocator import keep_freed

# A program with 34 MB of temporaries; what is counted are the pages that the system gives for a call.
CALLS = """
import resource
from tim_jax.system.allocator import keep_freed

kept = keep_freed()
import jax, jax.numpy as jnp
stored = jax.lax.optimization_barrier
x = jnp.ones((2048, 4096))
program = jax.jit(lambda x: stored(stored(x + 1).T * 2).sum()).lower(x).compile()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

least = min(pages() for _ in range(10))  # the first calls still divide what is free
print(kept, least * resource.getpagesize() / program.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("variables, expected", [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_a_call_computes_in_the_memory_of_those_before(variables, expected):
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | variables
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, env=env, check=True)
    kept, share = done.stdout.split()
    assert (kept == "True") == expected
    assert float(share) < 0.1 if expected else float(share) > 0.9, done.stdout


def test_where_jax_has_begun_nothing_is_changed():
    assert "jax" in sys.modules and not keep_freed()
