"""The verification of a machine: what is right is ok, what was made wrong is seen, what is left out is named."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers.devices import for_devices
from tim_jax import verify
from tim_jax.bench import data as data_bench
from tim_jax.bench.compile import NETWORKS
from tim_jax.bench.step import CASES, Case, make_state, step_settings, trace_step
from tim_jax.networks.attention import xla
from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.system import flops
from tim_jax.training import checkpoints
from tim_jax.verification import (
    CHECKS,
    attention,
    checkpoint,
    collectives,
    exact,
    job,
    parity,
    peaks,
    report,
    setup,
    training,
)
from tim_jax.verification.verdicts import OK, SLOW, WRONG, LeftOut, Line

TINY = dataclasses.replace(setup.sizes("small"), tokens=16, message=4096)


def host(*lines, process=0, versions="1", left_out=()):
    return job.Host(process, f"m{process}", {"jax": versions}, {"device": "cpu"}, lines, left_out, {"machine": 1.5})


def line(verdict, what="it", **figures):
    return Line(what, "1", "2", verdict, figures)


def test_exact_attention_has_the_derivatives_of_its_output():
    rng = np.random.RandomState(0)
    qkv, dots = (tuple(rng.standard_normal((2, n, 2, 5)) for n in (3, 4, 4)) for _ in range(2))
    do, mask = rng.standard_normal((2, 3, 2, 5)), np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    found = exact.attention(qkv, dots, do, mask)

    def output(step):
        return exact.attention(tuple(x + step * dot for x, dot in zip(qkv, dots, strict=True)), dots, do, mask)[
            "output"
        ]

    difference = (output(1e-5) - output(-1e-5)) / 2e-5
    np.testing.assert_allclose(found["tangent"], difference, atol=1e-8)
    # The gradient of Σ o do along the tangents is what the tangent of o gives.
    along = sum((found[name] * dot).sum() for name, dot in zip(("dq", "dk", "dv"), dots, strict=True))
    np.testing.assert_allclose(along, (do * difference).sum(), atol=1e-8)
    nothing = exact.attention((0 * qkv[0], *qkv[1:]), dots, do, mask)["output"]
    np.testing.assert_allclose(nothing[0], np.broadcast_to(qkv[2][0, :2].mean(0), nothing[0].shape), atol=1e-12)


def test_a_wrong_attention_is_wrong_and_ends_with_1(monkeypatch, capsys, tmp_path, nothing_collected):
    def louder(q, k, v, mask=None, in_jvp=False):
        return xla.attention(1.001 * q, k, v, mask)

    monkeypatch.setattr(setup, "sizes", lambda name: TINY)
    monkeypatch.setattr(attention, "LIMITS", {"float32": attention.LIMITS["float32"]})
    for name in list(ATTENTION):
        monkeypatch.delitem(ATTENTION, name)
    monkeypatch.setitem(ATTENTION, "xla", xla.attention)
    assert verify.main(["--checks=attention"]) == 0
    monkeypatch.setitem(ATTENTION, "louder", louder)
    file = tmp_path / "made" / "verified.json"
    assert verify.main(["--checks=attention", f"--out={file}"]) == 1
    record = json.loads(file.read_text())
    assert [(each["what"], each["verdict"]) for each in record["lines"]] == [
        ("xla, float32", OK), ("louder, float32", WRONG)
    ]  # fmt: skip
    assert record["verdict"] == WRONG and 1e-5 < record["lines"][1]["figures"]["error"] < 1e-2
    printed = capsys.readouterr().out
    assert "wrong: 1 ok, 0 slow, 1 wrong" in printed and "on the CPU" in printed


def test_a_step_agrees_with_the_stored_numbers():
    off = parity.distances(parity.step("class", "float32"), parity.reference()["class/float32"])
    assert off.keys() == {"metrics", "times", "error", "gradient"}
    assert parity.line("step", off, parity.FLOAT32).verdict == OK


@pytest.mark.slow
def test_a_wrong_step_is_wrong(monkeypatch):
    monkeypatch.setitem(ATTENTION, "xla", lambda q, *rest, **more: xla.attention(1.01 * q, *rest, **more))
    off = parity.distances(parity.step("class", "float32"), parity.reference()["class/float32"])
    assert off["times"] < 1e-6 and parity.line("step", off, parity.FLOAT32).verdict == WRONG


def test_what_is_stored_is_complete_and_bfloat16_is_near():
    right = parity.reference()
    assert set(right) == {"sample"} | {f"{of}/{dtype}" for of in ("class", "text") for dtype in ("float32", "bfloat16")}
    assert all(np.isfinite(array).all() for found in right.values() for array in found.values())
    for of in ("class", "text"):
        off = parity.distances(right[f"{of}/bfloat16"], right[f"{of}/float32"])
        assert parity.FLOAT32 < max(off.values()) < 0.3 and off["times"] == 0, off


def test_a_number_that_is_none_is_wrong():
    right = {"loss": np.ones(3), "gradient": np.ones((2, 8))}
    assert parity.distances(right, right) == {"loss": 0, "gradient": 0}
    off = parity.distances(right | {"loss": np.array([1, 1, np.nan])}, right)
    assert parity.line("step", off, 1e9).verdict == WRONG
    # A small array counts, against a share of the whole gradient's norm.
    small = {"gradient": np.stack([np.ones(8), np.full(8, 1e-3)])}
    off = parity.distances({"gradient": np.stack([np.ones(8), np.zeros(8)])}, small)
    assert off["gradient"] == pytest.approx(1e-3 / (parity.SMALL_SHARE * np.sqrt(1 + 1e-6)))


def test_collectives_of_eight_devices_are_exact_and_a_wrong_one_is_seen(monkeypatch):
    lines = list(collectives.run(setup.Setup(TINY)))
    assert [(each.what, each.verdict) for each in lines] == [(name, OK) for name in collectives.kinds(8)]
    assert all(each.figures["bandwidth"] > 0 for each in lines)
    of, received, right = collectives.kinds(8)["permutation"]
    backwards = {
        "permutation": (lambda x: jax.lax.ppermute(x, "all", [(i, i - 1) for i in range(1, 8)]), received, right)
    }
    monkeypatch.setattr(collectives, "kinds", lambda n: backwards)
    (seen,) = collectives.run(setup.Setup(TINY))
    assert seen.verdict == WRONG and seen.measured.endswith("with wrong numbers")


@pytest.fixture
def nothing_collected(monkeypatch):
    """Without looking through all that tests before have left, which takes seconds."""
    monkeypatch.setattr(job.gc, "collect", lambda: 0)


def test_what_cannot_be_checked_is_left_out_and_errors_are_wrong(monkeypatch, nothing_collected):
    def raises(error):
        def run(setup):
            yield line(OK)
            raise error

        return run

    for error, expected in (
        (ModuleNotFoundError("no grain", name="grain.python"), LeftOut("all that follows", "grain is not installed")),
        (ModuleNotFoundError("no jax", name="jaxx"), WRONG),
        (RuntimeError("two\nlines"), WRONG),
    ):
        monkeypatch.setattr("tim_jax.verification.machine.run", raises(error))
        found = job.run(("machine",), setup.Setup(TINY))
        assert found.lines[0] == ("machine", line(OK))
        last = found.left_out[-1][1] if found.left_out else found.lines[-1][1].verdict
        assert last == expected
    assert found.lines[-1][1].measured == "RuntimeError: two lines"


def test_each_line_is_shown_while_the_checks_go_on(monkeypatch, capsys, nothing_collected):
    shown = []

    def run(setup):
        yield line(SLOW, "step")
        shown.append(capsys.readouterr().err)
        yield LeftOut("all that follows", "grain is not installed")
        shown.append(capsys.readouterr().err)

    monkeypatch.setattr("tim_jax.verification.machine.run", run)
    job.run(("machine",), setup.Setup(TINY))
    assert "machine, slow: step: 1 (2)" in shown[0].splitlines()
    assert "machine, left out: all that follows: grain is not installed" in shown[1].splitlines()


def test_what_is_not_ok_on_any_host_is_shown():
    hosts = [
        host(("machine", line(OK))),
        host(
            ("machine", line(OK)), ("parity", line(SLOW, "step")), process=1, left_out=(("data", LeftOut("all", "no")),)
        ),
    ]
    assert report.verdict(hosts) == SLOW
    text = report.show(hosts)
    assert "parity, host 1" in text and "left out: data, host 1, all: no" in text
    assert "slow: 2 ok, 1 slow, 0 wrong of 2 processes; in 2 s" in text.splitlines()[-1]
    record = json.loads(json.dumps(dataclasses.asdict(hosts[1])))
    assert job.read(record) == hosts[1]
    assert report.verdict([hosts[0], host(process=1, versions="2")]) == WRONG


def test_speeds_are_those_of_the_slowest_device_and_the_fastest_collective():
    lines = [
        ("products", line(OK, flops=3.0, exact=True)),
        ("products", line(OK, flops=2.0, exact=True)),
        ("products", line(OK, memory_bandwidth=5.0)),
        ("collectives", line(OK, bandwidth=7.0, over="link")),
        ("collectives", line(OK, bandwidth=6.0, over="link")),
    ]
    assert report.record([host(*lines)])["speeds"] == {"flops": 2.0, "memory_bandwidth": 5.0, "link": 7.0}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--checks=attentoin"], "--checks has 'attentoin': no such name; did you mean attention?"),
        (["--checks="], f"--checks has '': no such name; checks are {', '.join(CHECKS)}"),
        (["--size=big"], "--size is 'big'; it must be one of small, full; see --help"),
        (["--out={}"], "--out is '{}'; it must be a file, and is a folder"),
        (["--workdir={}/made\n"], "--workdir is '{}/made\\n'; it must be a path in UTF-8, without control characters"),
        (["--write-reference=x", "--out=y"], "--out is y; it must be left out with --write-reference"),
        (["--write-reference=x", "--checks=data"], "--checks is data; it must be left out with --write-reference"),
        (
            ["--checks=data", "--workdir=x"],
            "--workdir is x; it must be left out where checkpoint is not among --checks",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        verify.main([word.format(tmp_path) for word in arguments])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {said.format(tmp_path)}\n" and shown.out == ""
    assert list(tmp_path.iterdir()) == []


BLOCKED = ("grain", "ml_collections", "tensorflow_datasets", "pyarrow", "PIL", "scipy", "sklearn", "torch")
WITHOUT = """
import importlib, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
from tim_jax import verify
from tim_jax.verification import CHECKS
for name, module in CHECKS.items():
    if name != "data":
        importlib.import_module(module)
sys.exit(verify.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_it_needs_no_package_of_data_and_configurations(tmp_path):
    file = tmp_path / "verified.json"
    command = [sys.executable, "-c", WITHOUT, ",".join(BLOCKED), "--checks=machine,data", f"--out={file}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": for_devices(1)})
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert record["left_out"] == [{"check": "data", "what": "all that follows", "why": "pyarrow is not installed"}]
    assert {each["check"] for each in record["lines"]} == {"machine"} and record["verdict"] == OK
    assert "left out: data, all that follows: pyarrow is not installed" in done.stdout


@pytest.fixture
def tiny():
    """Sizes with a network of one narrow block."""
    network = CASES["small"].network.clone(width=16, depth=1, encoder_depth=1)
    case = Case("tiny", network, (4, 4, 1), 16)
    peaks.of_first_device.cache_clear()  # of other sizes
    return dataclasses.replace(TINY, product=64, stream=2**16, training=(case,), saved=case, repeats=1)


@pytest.mark.slow
def test_steps_stand_beside_what_the_planner_says_of_them(tiny):
    found = list(training.run(setup.Setup(tiny)))
    steps = [each.figures for each in found if isinstance(each, Line) and "planned_seconds" in each.figures]
    assert [step["step"].partition(": ")[2] for step in steps] == list(training.VARIANTS.values())
    case = tiny.training[0]
    for step, variant in zip(steps, training.VARIANTS, strict=True):
        settings = step_settings(case, variant)
        state = jax.eval_shape(functools.partial(make_state, case, settings))
        # Temporaries and code come on top of the state.
        assert step["planned_bytes"] > sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        assert step["model_flops"] == flops.count(trace_step(case, variant).jaxpr)
        assert step["utilisation"] == pytest.approx(
            step["model_flops"] / step["seconds"] / peaks.of_first_device(tiny).flops
        )
        assert np.isfinite(step["loss"])
    (left,) = (each for each in found if isinstance(each, LeftOut))
    assert "memory" in left.what
    assert {line.what.rpartition(": ")[2] for line in found if isinstance(line, Line)} == {
        *training.VARIANTS.values(), "exact over flow matching", "exact over finite difference"
    }  # fmt: skip


@pytest.mark.slow
def test_data_sampling_and_compilation_have_lines(tiny, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", tiny.saved)
    monkeypatch.setattr(data_bench, "IMAGES", 8)
    monkeypatch.setattr(data_bench, "STEPS", 2)
    sizes = dataclasses.replace(tiny, compiled=("tiny",), sampling=tiny.saved)
    found = job.run(("data", "sampling", "compile"), setup.Setup(sizes))
    assert found.left_out == () and {each.verdict for _, each in found.lines} <= {OK, SLOW}
    figures = [(check, dict(each.figures)) for check, each in found.lines]
    assert [each["steps"] for check, each in figures if check == "sampling"] == [1, 4, 32]
    assert all(each["images_per_second"] > 0 for check, each in figures if check != "compile")
    first, second = (each for check, each in figures if check == "compile")
    assert first["compiled"] == second["read"] >= 2 and (first["read"], second["compiled"]) == (0, 0)


@pytest.mark.slow
def test_a_checkpoint_that_is_read_wrong_is_wrong(tiny, monkeypatch, tmp_path):
    found = {line.what: line for line in checkpoint.run(setup.Setup(tiny, epath.Path(tmp_path)))}
    assert found["state that was read"].verdict == found["step after the restart"].verdict == OK
    assert found["writing"].figures["bytes"] == found["reading"].figures["bytes"] > 0
    assert list(tmp_path.iterdir()) == []

    restore = checkpoints.restore

    def off_by_a_bit(*args):
        state = restore(*args)
        return state.replace(emas=jax.tree.map(lambda x: x * (1 + 1e-6), state.emas))

    monkeypatch.setattr(checkpoints, "restore", off_by_a_bit)
    found = {line.what: line for line in checkpoint.run(setup.Setup(tiny))}
    assert found["state that was read"].verdict == WRONG
