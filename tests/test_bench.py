"""Benchmarks: what the derivative costs, from counts alone; how things are measured; the command line's JSON."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.bench import BENCHES, measure, report
from tim_jax.bench import __main__ as command
from tim_jax.bench import step as bench
from tim_jax.transitions import TRANSPORTS
from tim_jax.types import Output, Rows

CASE = dataclasses.replace(bench.CASES["B/4"], batch=8)


@functools.cache
def flops(variant):
    return bench.unrolled_flops(CASE, variant)


def test_the_fused_derivative_costs_at_most_a_fifth_of_a_flow_matching_step():
    ratio = flops("tim_fused") / flops("flow_matching")
    assert 1.1 < ratio <= 1.20, "half of the rows with a tangent: 3.5 passes to 3"


@pytest.mark.slow
def test_the_fused_derivative_costs_less_than_the_others():
    assert flops("tim_fused") < 0.95 * flops("tim_separate_jvp")
    assert flops("tim_fused") < 0.95 * flops("tim_dde")


def test_the_fused_derivative_needs_no_memory_of_its_own():
    case = dataclasses.replace(CASE, batch=64)  # so that activations weigh more than gradients
    memory = {name: measure.temporary_bytes(bench.compile_step(case, name)) for name in ("flow_matching", "tim_fused")}
    batch_of_flow_matching = 4 * case.batch * case.tokens * case.network.width
    assert memory["flow_matching"] > 30 * batch_of_flow_matching
    assert memory["tim_fused"] <= 1.15 * memory["flow_matching"]


@pytest.mark.parametrize("variant", ["tim_separate_jvp", "tim_dde"])
def test_variants_have_one_loss(variant, x64):
    def net(queries):
        def F(q):
            return jnp.sin(q.x_t * (1 + q.t[:, None, None, None])) + (q.t - q.r)[:, None, None, None] ** 2

        return tuple(Output(F(q)) for q in queries)

    rng = np.random.default_rng(0)
    x, noise = (jnp.asarray(rng.standard_normal((20, 4, 4, 2))) for _ in range(2))
    label = {"label": jnp.zeros(20, jnp.int32)}
    rows = Rows(x, noise, label, label, jnp.zeros(20, bool))
    transport = TRANSPORTS["ot_fm"]()

    def loss(name):
        objective = bench.VARIANTS[name](transport)
        nets = {"student": net, "precise": net}
        return jax.jit(lambda key: objective(nets, rows, jnp.int32(0), key)[0])(jax.random.key(0))

    fused = loss("tim_fused")
    np.testing.assert_allclose(loss(variant), fused, rtol=1e-9 if variant == "tim_separate_jvp" else 1e-3)
    assert not np.allclose(loss("flow_matching"), fused, rtol=1e-2)


def test_timing_takes_turns():
    order = []
    calls = {name: functools.partial(order.append, name) for name in "abc"}
    timings = measure.interleaved(calls, repeats=3, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert all(timing.seconds > 0 for timing in timings.values())
    assert measure.summary([4.0, 1.0, 2.0, 3.0, 100.0]) == measure.Timing(3.0, 1.0)


def test_counts_of_a_known_program():
    compiled = jax.jit(lambda a: a @ a).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    assert measure.flops(compiled) == pytest.approx(2 * 64**3, rel=0.01)


def test_table_is_aligned():
    text = report.table([{"a": 1, "b": 2.0}, {"a": 100, "b": 3.25}], (("first", "{a}"), ("second", "{b:.2f} s")))
    assert text.splitlines() == ["first  second", "1      2.00 s", "100    3.25 s"]


def test_command_line_writes_rows(tmp_path, capsys, monkeypatch):
    tiny = bench.Case("tiny", bench.CASES["small"].network.clone(width=16, depth=1, encoder_depth=1), (4, 4, 1), 4)
    monkeypatch.setitem(bench.CASES, "tiny", tiny)
    file = tmp_path / "made" / "step.json"
    command.main(["step", "--networks=tiny", "--variants=flow_matching,tim_fused", "--repeats=2", f"--json={file}"])
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["rows"]] == ["flow_matching", "tim_fused"]
    for row in record["rows"]:
        assert row["network"].startswith("tiny: ") and row["tokens"] == 4
        assert min(row[key] for key in ("seconds", "flops", "temporary_bytes")) > 0 and row["spread"] >= 0
    assert record["rows"][0]["seconds_ratio"] == 1
    assert record["repeats"] == 2 and record["machine"]["cores"] >= 1 and record["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr().out
    assert "tim_fused" in printed and "versions: python" in printed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["stpe"], "stpe: no such benchmark; did you mean step?"),
        (["step", "--networks=B4"], "--networks has 'B4': no such name; did you mean B/4?"),
        (["step", "--repeats=0"], "--repeats is 0; it must be at least 1"),
        (["step", "--repeat-s"], "unrecognized arguments: --repeat-s; see --help"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_benchmarks_of_the_step_need_no_data_packages():
    blocked = "import sys; sys.modules |= dict.fromkeys(('grain', 'ml_collections', 'tensorflow_datasets'));"
    whole_runs = ("data", "faults")
    imports = "; ".join(f"import {module}" for name, module in BENCHES.items() if name not in whole_runs)
    subprocess.run([sys.executable, "-c", f"{blocked} {imports}"], check=True)
