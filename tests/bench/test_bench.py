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

from tim_jax.bench import BENCHES
from tim_jax.bench import __main__ as command
from tim_jax.bench import compile as compile_bench
from tim_jax.bench import sample as sample_bench
from tim_jax.bench import step as bench
from tim_jax.system import flops, reporting, timing
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Examples, Output, Query

CASE = dataclasses.replace(bench.CASES["B/4"], batch=8)
WHOLE = dataclasses.replace(CASE, network=CASE.network.clone(depth=12, encoder_depth=4))


@functools.cache
def operations(case, variant):
    return flops.count(bench.trace_step(case, variant).jaxpr)


@pytest.mark.parametrize(
    "case, tokens, most",
    [
        (bench.CASES["small"], 64, 1.20),
        pytest.param(WHOLE, 1024, 1.20, marks=pytest.mark.slow),
        (WHOLE, 16384, 1.30),
    ],
    ids=str,
)
def test_the_fused_derivative_costs_little_more_than_flow_matching(case, tokens, most):
    case = case.with_tokens(tokens)
    ratio = operations(case, "tim_fused") / operations(case, "flow_matching")
    assert 1.1 < ratio <= most, "half of the rows with a tangent: 3.5 passes to 3, and 4 to 3 in attention"


@pytest.mark.slow
def test_the_fused_derivative_costs_less_than_the_others():
    assert operations(CASE, "tim_fused") < 0.95 * operations(CASE, "tim_separate_jvp")
    assert operations(CASE, "tim_fused") < 0.95 * operations(CASE, "tim_dde")


@functools.cache
def evaluation(case, rows):
    """Operations of a forward pass of so many rows."""
    x, time = jnp.zeros((rows, *case.latent)), jnp.zeros(rows)
    query = Query(x, time, time, {"label": jnp.zeros(rows, jnp.int32)})
    params = jax.eval_shape(lambda: bench.initial(case.network, case.latent, jax.random.key(0)))
    return flops.count(jax.make_jaxpr(lambda params: case.network.apply({"params": params}, (query,)))(params))


@pytest.mark.nightly
def test_a_teacher_costs_the_passes_that_are_asked_of_it():
    case = dataclasses.replace(CASE, batch=16)
    cost, once = functools.partial(operations, case), evaluation(case, 16)
    assert evaluation(case, 8) == once / 2
    assert cost("flow_matching") == pytest.approx(3 * once, rel=0.01)

    # One pass of all rows, for the velocity.
    assert cost("mean_flow_teacher") - cost("mean_flow") == once
    assert cost("tim_teacher") - cost("tim") == once
    assert cost("scm_distillation") - cost("scm") == once
    # For the half of the rows with r ≠ t where their jumps end instead. A tangent in r alone spares that of x_t.
    assert cost("ayf_lagrangian") == pytest.approx(cost("ayf_eulerian"), rel=0.01)
    # No images, but as many states of the teacher's.
    assert cost("tbcm") == cost("scm_distillation")
    # For half of the rows: two steps of Heun's method and one jump of the average.
    assert cost("ctm") == pytest.approx(cost("flow_matching") + (4 + 1) / 2 * once, rel=0.01)
    # Two jumps of the student, of which the last has a gradient; the score with its gradient; the teacher once more.
    assert cost("rcm") == pytest.approx(cost("scm_distillation") + (1 + 3 + 3 + 1) * once, rel=0.01)
    # A jump of the student with its gradient; of what the heads see, samples pass with a gradient in the states alone.
    assert cost("scm_distillation_adversary") == pytest.approx(cost("scm_distillation") + (3 + 2 + 1) * once, rel=0.02)
    assert cost("rcm_adversary") == pytest.approx(cost("rcm") + (2 + 1) * once, rel=0.02)


@pytest.mark.parametrize("name", ["improved_mean_flow", "low_noise_contrastive"])
def test_an_objective_has_the_heads_and_inputs_that_it_asks(name):
    assert OBJECTIVES.keys() <= bench.KNOWN.keys()
    small = bench.CASES["small"].with_tokens(64)
    assert operations(small, name) > operations(small, "flow_matching")


def test_what_is_kept_is_not_computed_again():
    network = bench.CASES["small"].network.clone(attention="blockwise")
    case = dataclasses.replace(bench.CASES["small"], network=network).with_tokens(256)

    def counted(remat):
        return operations(dataclasses.replace(case, network=network.clone(remat=remat)), "tim_fused")

    assert counted("full") > counted("attention") > counted("dots") == counted("none")
    # Of the forward pass of attention, two products of every query with every key, none is repeated.
    attention = 2 * 2 * case.batch * case.tokens**2 * network.width * network.depth
    assert counted("full") - counted("attention") == attention


@pytest.mark.slow
@pytest.mark.parametrize("variant", bench.VARIANTS)
def test_operations_are_those_that_the_compiler_counts(variant):
    """The compiler counts the body of a loop once, so that its layers are unrolled; norms and the like come on top."""
    unrolled = dataclasses.replace(CASE, network=CASE.network.clone(unroll=True))
    counted = bench.trace_step(unrolled, variant).lower().compile().cost_analysis()["flops"]
    assert operations(CASE, variant) == operations(unrolled, variant)
    assert 0.95 * counted < operations(CASE, variant) < counted


@pytest.mark.slow
def test_the_fused_derivative_needs_no_memory_of_its_own():
    case = dataclasses.replace(CASE, batch=64)  # so that activations weigh more than gradients
    memory = {
        name: timing.temporary_bytes(bench.trace_step(case, name).lower().compile())
        for name in ("flow_matching", "tim_fused")
    }
    batch_of_flow_matching = 4 * case.batch * case.tokens * case.network.width
    assert memory["flow_matching"] > 30 * batch_of_flow_matching
    assert memory["tim_fused"] <= 1.15 * memory["flow_matching"]


@pytest.mark.parametrize("tokens, latent, batch", [(16, (16, 16, 4), 32), (256, (64, 64, 4), 2), (96, (32, 48, 4), 4)])
def test_rows_of_another_size_have_as_many_positions(tokens, latent, batch):
    case = CASE.with_tokens(tokens)
    assert (case.tokens, case.latent, case.batch) == (tokens, latent, batch)


@pytest.mark.parametrize("variant", ["tim_separate_jvp", "tim_dde"])
def test_variants_have_one_loss(variant, x64):
    def net(queries):
        def F(q):
            return jnp.sin(q.x_t * (1 + q.t[:, None, None, None])) + (q.t - q.r)[:, None, None, None] ** 2

        return tuple(Output(F(q)) for q in queries)

    rng = np.random.default_rng(0)
    x, noise = (jnp.asarray(rng.standard_normal((20, 4, 4, 2))) for _ in range(2))
    label = {"label": jnp.zeros(20, jnp.int32)}
    rows = Examples(x, noise, label, label, jnp.zeros(20, bool))
    transport = TRANSPORTS["ot_fm"]()

    def loss(name):
        objective = bench.VARIANTS[name](transport)
        nets = {"online": net, "float32": net}
        return jax.jit(lambda key: objective(nets, rows, jnp.int32(0), key)[0])(jax.random.key(0))

    fused = loss("tim_fused")
    np.testing.assert_allclose(loss(variant), fused, rtol=1e-9 if variant == "tim_separate_jvp" else 1e-3)
    assert not np.allclose(loss("flow_matching"), fused, rtol=1e-2)


def test_timing_takes_turns():
    order = []
    calls = {name: functools.partial(order.append, name) for name in "abc"}
    timings = timing.interleaved(calls, repeats=3, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert all(timing.seconds > 0 for timing in timings.values())
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 100.0]) == timing.Timing(3.0, 1.0)


def test_table_is_aligned():
    text = reporting.table([{"a": 1, "b": 2.0}, {"a": 100, "b": 3.25}], (("first", "{a}"), ("second", "{b:.2f} s")))
    assert text.splitlines() == ["first  second", "1      2.00 s", "100    3.25 s"]


@pytest.mark.slow
def test_command_line_writes_rows(tmp_path, capsys, monkeypatch):
    tiny = bench.Case("tiny", bench.CASES["small"].network.clone(width=16, depth=1, encoder_depth=1), (4, 4, 1), 4)
    monkeypatch.setitem(bench.CASES, "tiny", tiny)
    file = tmp_path / "made" / "step.json"
    options = ["--networks=tiny", "--variants=tim_fused", "--tokens=4,16", "--remat=full", "--run-to=4"]
    command.main(["step", *options, "--repeats=2", f"--json={file}"])
    record = json.loads(file.read_text())
    timed, compiled = record["rows"]
    assert (timed["tokens"], timed["remat"], compiled["tokens"]) == (4, "full", 16)
    assert timed["seconds"] > 0 <= timed["spread"] and compiled["seconds"] is compiled["seconds_ratio"] is None
    for row in record["rows"]:
        assert row["network"].startswith("tiny: ") and min(row["flops"], row["temporary_bytes"]) > 0
        assert row["flops_ratio"] == row["temporary_bytes_ratio"] == 1
    assert record["repeats"] == 2 and record["machine"]["cores"] >= 1 and record["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr().out
    assert "tim_fused" in printed and "versions: python" in printed


@pytest.mark.slow
def test_sampler_and_bare_passes_evaluate_the_network_alike(tmp_path, monkeypatch):
    tiny = bench.Case("tiny", bench.CASES["small"].network.clone(width=16, depth=1, encoder_depth=1), (4, 4, 1), 4)
    monkeypatch.setitem(bench.CASES, "tiny", tiny)
    params = jax.eval_shape(lambda: bench.make_state(tiny, bench.step_settings(tiny, "flow_matching"))).params
    for guidance, evaluations in ((1.0, 1), (1.5, 2)):
        transport, sampling = TRANSPORTS["ot_fm"](), sample_bench.Sampling(guidance=guidance)
        times = sample_bench.time_grid(transport, 3, sampling)
        plan = sample_bench.padded(sample_bench.make_plan(transport, times, sampling))
        draw = sample_bench.sampler(tiny, guidance)
        once = flops.count(jax.make_jaxpr(sample_bench.sampler(tiny, 1.0))(params["online"], plan, 3)) * evaluations
        assert flops.count(jax.make_jaxpr(draw)(params["online"], plan, 3)) == once
        passes = sample_bench.bare_passes(tiny, guidance)
        assert flops.count(jax.make_jaxpr(lambda params: passes(params, 3))(params["online"])) == 3 * once

    file = tmp_path / "sample.json"
    options = ["--networks=tiny", "--steps=1,3", "--guidance=1,2", "--batch=2", "--repeats=2", f"--json={file}"]
    command.main(["sample", *options])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["guidance"], row["steps"], row["evaluations"]) for row in rows] == [
        (1, 1, 1), (1, 3, 3), (2, 1, 2), (2, 3, 6)
    ]  # fmt: skip
    for row in rows:
        assert row["overhead"] == row["seconds_per_image"] / row["bare_seconds_per_image"] - 1


@pytest.mark.slow
def test_what_a_steered_step_costs(monkeypatch, tmp_path):
    """Operations over those of an unsteered one: through the network a backward pass as well, otherwise nearly none."""
    tiny = bench.Case("tiny", bench.CASES["small"].network.clone(width=64, depth=2, encoder_depth=1), (8, 8, 1), 2)
    params = jax.eval_shape(lambda: bench.make_state(tiny, bench.step_settings(tiny, "flow_matching"))).params
    transport = TRANSPORTS["ot_fm"]()

    def operations_of(method, *flags):
        like = sample_bench.read_steering(command.parser().parse_args(["sample", "--steering=dps", *flags]))
        sampling = sample_bench.sampling_of(1.0, method, like)
        times = sample_bench.time_grid(transport, 2, sampling)
        plan = sample_bench.make_plan(transport, times, sampling)
        draw = sample_bench.sampler(tiny, 1.0, method, like)
        return flops.count(jax.make_jaxpr(draw)(params["online"], plan, 2))

    plain = operations_of("none")
    assert operations_of("flowchef") / plain < 1.05 and operations_of("resample") / plain < 1.3
    assert 1.8 < operations_of("dps") / plain < 2.3  # the gradient in the state alone: as much again as the pass
    # The plan's own prediction is made once, a jump to data for each iteration.
    assert 3.9 < operations_of("flowchef", "--estimate=end", "--iterations=3") / plain < 4.2
    with pytest.raises(ValueError, match="^--iterations is 3; it must be left out where --steering is none"):
        sample_bench.read_steering(command.parser().parse_args(["sample", "--iterations=3"]))

    monkeypatch.setitem(bench.CASES, "tiny", tiny)
    file = tmp_path / "sample.json"
    options = ["--networks=tiny", "--steps=2", "--guidance=1", "--batch=2", "--repeats=2", "--steering=flowchef,dps"]
    command.main(["sample", *options, f"--json={file}"])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["steering"], row["evaluations"]) for row in rows] == [("flowchef", 2), ("dps", 2)]
    assert all(row["over_unsteered"] > 0 for row in rows)
    assert [row["operations"] for row in rows] == [operations_of(name) / plain for name in ("flowchef", "dps")]


@pytest.mark.slow
def test_compile_reads_in_a_second_start_what_the_first_has_compiled(tmp_path, monkeypatch):
    tiny = bench.Case("tiny", bench.CASES["small"].network.clone(width=16, depth=1, encoder_depth=1), (4, 4, 1), 4)
    monkeypatch.setitem(compile_bench.NETWORKS, "tiny", tiny)
    monkeypatch.setitem(bench.CASES, "small", tiny)
    before = jax.config.jax_compilation_cache_dir
    file = tmp_path / "compile.json"
    command.main(["compile", "--networks=tiny", "--depths=1", "--buckets=1", f"--json={file}"])
    cold, cached = json.loads(file.read_text())["rows"]
    assert (cold["cache"], cold["read"], cached["cache"], cached["compiled"]) == ("cold", 0, "cached", 0)
    assert cold["compiled"] == cached["read"] >= 2
    assert cold["seconds"] == cold["trace_seconds"] + cold["compile_seconds"] > 0
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["stpe"],
            "NAME is 'stpe'; it must be one of step, sample, compile, attention, data, faults, flips, checks, "
            "endurance; see --help",
        ),
        (["step", "--networks=B4"], "--networks has 'B4': no such name; did you mean B/4?"),
        (
            ["step", "--variants=tim_teache"],
            "--variants has 'tim_teache': no such name; did you mean tim_teacher?",
        ),
        (["step", "--variants=tbcm", "--batch=12"], "--batch: 12 examples of small; tbcm takes a multiple of 8"),
        (["step", "--repeats=0"], "--repeats is 0; it must be at least 1"),
        (
            ["step", "--tokens=64,0"],
            "--tokens is '64,0'; it must be numbers of at least 1, with commas between, of nine digits at most",
        ),
        (["step", "--remat=none,som"], "--remat has 'som': no such name; did you mean none?"),
        (["sample", "--guidance=1,x"], "--guidance is '1,x'; it must be numbers with commas between"),
        (
            ["compile", "--depths=7,"],
            "--depths is '7,'; it must be numbers of at least 1, with commas between, of nine digits at most",
        ),
        (["flips", "--flips=0"], "--flips is 0; it must be at least 1"),
        (
            ["flips", "--where=params,loss"],
            "--where has 'loss'; each of them must be one of params, emas, opt_state, gradient, data, computation, "
            "broken",
        ),
        (["step", "--repeat-s"], "--repeat-s: no such argument; did you mean --repeats?"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_benchmarks_of_the_step_need_no_data_packages():
    blocked = "import sys; sys.modules |= dict.fromkeys(('grain', 'ml_collections', 'tensorflow_datasets'));"
    whole_runs = ("data", "faults", "flips", "checks")
    imports = "; ".join(f"import {module}" for name, module in BENCHES.items() if name not in whole_runs)
    subprocess.run([sys.executable, "-c", f"{blocked} {imports}"], check=True)
