"""How long a step takes to compile, and that a second start of the same step compiles nothing anew."""

from collections.abc import Iterator

import jax

from tim_jax.bench.compile import NETWORKS, measure_case
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import OK, LeftOut, Line, slow_unless


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields two lines for each network."""
    for name in setup.sizes.compiled:
        found = measure_case(name, NETWORKS[name].network.depth, 1)
        for cache, start in (("cold", "first"), ("cached", "second")):
            if cache == "cached" and jax.process_index() > 0:
                yield LeftOut(f"{name}, second start", "of several processes the first one alone keeps programs")
                continue
            trace, compile, _, compiled, read = found[cache]
            programs = f"; {compiled} programs compiled, {read} read"
            limit, verdict = ("", OK) if cache == "cold" else ("compiles nothing", slow_unless(compiled == 0))
            figures = {"trace_seconds": trace, "compile_seconds": compile, "compiled": compiled, "read": read}
            yield Line(f"{name}, {start} start", f"{trace + compile:.3g} s{programs}", limit, verdict, figures)
