"""Whatever is typed: every command line and every key with values of wrong types, empty, negative, huge, missing.

Each call ends with exit code 2 and one line, and nothing is touched; or what was asked for is built, up to where work
would begin, with the value that was typed. What a text means is found here by Python's own reader of literals.
"""

import argparse
import ast
import contextlib
import io
import math
import pathlib
import random
import shutil
import sys
import typing

import jax
import pytest

from tests.helpers.ablations import write_file
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.tally import OTHER, REFUSED, TAKEN
from tests.helpers.workdirs import one_device, workdir
from tim_jax import ablate, classify, convert, diagnose, encode, evaluate, grid, inspect, pairs, sample, train
from tim_jax.ablation import budget
from tim_jax.bench import BENCHES
from tim_jax.bench import __main__ as bench
from tim_jax.config import automatic, keys, values
from tim_jax.data import summary
from tim_jax.plan import __main__ as plan
from tim_jax.plan import job as plan_job
from tim_jax.runs import classifying, conversion, diagnosis, learned_plan, shard_job, step_grid, training
from tim_jax.runs.any_step import AnyStepJob
from tim_jax.runs.outputs.job import SampleJob
from tim_jax.system import compilation_cache

CALLS_AT_LEAST = 500
# Texts for each key, and for each flag, of those below; by default, and where there is time.
EACH = [1, pytest.param(4, marks=pytest.mark.nightly)]
HUGE = "9" * 30
TEXTS = [
    "", " ", "x", "None", "True", "nan", "-inf", "-1", "0", "1", "2", "0.5", "1.5", "-0.5", "1e400", HUGE, f"-{HUGE}",
    "4294967295", "2147483648", "[]", "()", "[1, 2]", "(1, 2)", "(8, 8)", "((8, 8),)", "[[8, 8]]", "(0,)", "(1.5,)",
    "('a', 'b')", "('digits', '', 1)", "(('digits', '', 1),)", "{}", "{1: 2}", "(1", "'a'", "1,2", "1_0", "0x10",
    "__import__('os')", "~nobody-is-called-so/x", "file:///x", "http://x/y", "a\nb", "\udcff", "💥", "x" * 5000,
    "(" * 300,
]  # fmt: skip

NUMBERS = ["-1", "0", "1", "2", "3", "8", "16", "0.25", "1.0", "1e-30", "1e30", "2147483647", HUGE, "True", "nan"]
OF_KIND = {
    bool: ["True", "false", "1", "yes", "None"],
    str: ["", "x", "default", "online", "train", "1", "~/x", "a b"],
    tuple: [
        "()",
        "[]",
        "[1, 2]",
        "(1,)",
        "8",
        "((8, 8),)",
        "[[4, 8]]",
        "(8, 8)",
        "(0,)",
        "(1.5,)",
        "['a']",
        "(('a', 2),)",
    ],
}  # more likely ones, by the type of the key
STRAY = ("--no-such=1", "--config.x", "--config.=1", "--config.ema.=0.5", "--config.ema.a.b=1", "--", "word", "-x")


class ReachedError(BaseException):
    """Where work would begin. args: what it would begin with."""


def reach(*args, **_):
    raise ReachedError(*args)


@pytest.fixture(scope="module")
def places(data_directory, tmp_path_factory):
    """A trained run, without training, folders, and stand-ins for all work."""
    folder = tmp_path_factory.mktemp("fuzz")
    small = TINY_NETWORK | {"model.patch_size": "4", "loader.directory": str(data_directory)}
    run = workdir(folder / "run", "digits", **small)
    with pytest.MonkeyPatch.context() as patch, one_device():
        for owner, name in (
            (training, "fit"), (SampleJob, "run"), (AnyStepJob, "table"), (AnyStepJob, "export"),
            (diagnosis, "diagnose"), (classifying, "fit"), (step_grid, "find_grids"),
            (learned_plan, "learn"), (shard_job, "make_shards"), (summary, "write"),
            (plan_job, "make_plan"), (conversion, "write_workdir"), (conversion, "write_export"), (budget, "make"),
        ):  # fmt: skip
            patch.setattr(owner, name, reach)
        patch.chdir(folder)
        programs = jax.config.jax_compilation_cache_dir
        yield folder, run, small
        compilation_cache.change(programs)  # of the tests that come after


def call(main, arguments):
    """(exit code or None, what was reached, lines on standard error) of a command."""
    errors, code, reached = io.StringIO(), None, None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(arguments)
        except ReachedError as error:
            reached = error.args
        except SystemExit as error:
            code = error.code
    return code, reached, errors.getvalue().splitlines()


def wrong(main, arguments, name):
    """What is wrong with how a command answered, or None; and what was reached. name: What a refusal must name."""
    shown, before = ascii(arguments[-1:])[:120], sorted(pathlib.Path().iterdir())
    try:
        code, reached, lines = call(main, arguments)
    except Exception as error:
        return f"{shown}: {type(error).__name__}: {error}"[:300], None
    lines = [line for line in lines if not line.startswith("warning: ") and "% " not in line]  # but for progress
    if reached is not None:
        shutil.rmtree("new", ignore_errors=True)
        return None, reached
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{shown}: exit code {code}, {len(lines)} lines: {lines[:2]}"[:300], None
    if name not in lines[0]:
        return f"{shown}: does not name it: {lines[0]}"[:300], None
    if sorted(pathlib.Path().iterdir()) != before:
        return f"{shown}: refused, and something was written", None
    return None, None


def words_of(kind):
    """The words that a key takes besides numbers."""
    return [word for one in typing.get_args(kind) for word in typing.get_args(one) if isinstance(word, str)]


def meant(text, kind):
    """What a text means for a key of that type, as Python reads it; None where that is nothing of the type."""
    if kind is str:
        return text
    if text in words_of(kind):
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None

    def fit(value, kind):
        if typing.get_origin(kind) is typing.Union:
            return fit(value, int)
        if typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)
            kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
            return tuple(fit(one, each) for one, each in zip(value, kinds, strict=True))
        assert isinstance(value, bool) == (kind is bool)
        assert isinstance(value, {float: int | float}.get(kind, kind)) and (kind is str or math.isfinite(value))
        return kind(value)

    many = typing.get_origin(kind) is tuple
    try:
        return fit(value if not many or isinstance(value, tuple | list) else (value,), kind)
    except (AssertionError, TypeError, ValueError, OverflowError):
        return None


def texts_for_key(rng, key, each):
    kind = values.type_of(key)
    return rng.sample(OF_KIND.get(typing.get_origin(kind) or kind, NUMBERS), each) + rng.sample(TEXTS, each)


def key_calls(each):
    """[(key, text)], the same in every run."""
    rng = random.Random(each)
    return [(key, text) for key in [*values.types(), "ema.slow"] for text in texts_for_key(rng, key, each)]


@pytest.mark.slow
@pytest.mark.parametrize("each", EACH)
def test_every_key(each, places, tally):
    """Through `train`: all that it builds before it compiles."""
    folder, _, small = places
    failed, built, refused = [], 0, 0
    for key, text in key_calls(each):
        changes = {name: value for name, value in small.items() if name != key}
        if key == "loader.directory":
            changes = changes | {"data.source": "digits"}
        arguments = ["--config=digits", f"--workdir={folder / 'new'}", *flags(changes), f"--config.{key}={text}"]
        problem, reached = wrong(train.main, arguments, key)
        if problem:
            failed.append(problem)
        elif reached is None:
            refused += 1
        else:
            built += 1
            found = keys.flatten(reached[0].config)[key]
            asked = meant(text, values.type_of(key))
            chosen = key in automatic.KEYS and asked == automatic.AUTO and found >= 0  # in place of it
            if found != asked and not chosen:
                failed.append(f"{key}={text!r}: built with {found!r}")
    for outcome, count in ((REFUSED, refused), (TAKEN, built), (OTHER, len(failed))):
        tally("keys of a configuration", outcome, count)
    assert not failed, f"{len(failed)}:\n" + "\n".join(failed)
    assert built > 40 and refused > 200


def options_of(main, *names):
    """The actions of a command's parser, or of that of its subcommand."""
    actions = sys.modules[main.__module__].parser()._actions
    for name in names:
        (choices,) = (action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
        actions = choices[name]._actions
    return actions


def command_calls(places, each):
    """[(main, arguments, what a refusal names)]: every flag of every command, and what is missing or too much."""
    folder, run, small = places
    rng, found = random.Random(each), []
    here, new = f"--workdir={run}", folder / "new"
    commands = {
        train.main: ["--config=digits", f"--workdir={new}", *flags(small)],
        sample.main: [here], evaluate.main: [here], diagnose.main: [here], grid.main: [here],
        encode.main: ["--config=photos_t2i", f"--out={new}", *flags(small)], pairs.main: [here, f"--out={new}"],
        inspect.main: ["--config=digits", f"--out={new}", *flags(small)],
        classify.main: ["--config=digits", f"--out={new}.safetensors", *flags(small)],
        ablate.main: [f"--config={write_file(folder, {'one': {}})}", f"--workdir={new}", *flags(small)],
        plan.main: ["--config=digits", "--topology=v5e:2x2", *flags(small)],
    }  # fmt: skip
    for main, arguments in commands.items():
        for action in options_of(main):
            name = action.option_strings[-1]
            if isinstance(action, argparse._HelpAction):
                continue
            rest = [argument for argument in arguments if not argument.startswith(f"{name}=")]
            takes_none = action.nargs == 0
            lines = [[*rest, f"{name}={text}"] for text in ("", "-1", HUGE, *rng.sample(TEXTS, each))]
            lines += [[*rest, name]] if not takes_none else []
            lines += [rest] if rest != arguments else []
            found += [(main, line, name) for line in lines]
        found += [(main, [*arguments, more], more.partition("=")[0].removeprefix("--config.")) for more in STRAY]
        found.append((main, [], "--"))
    file = "x.safetensors"
    for words in (
        [], ["import"], ["export"], ["other"], ["import", "x", "[y]"], ["import", "", ""], ["export", "x", "y"],
        ["import", "/", str(new)], ["import", "file:///x", str(new)], ["import", "hf://x", str(new)],
        ["export", str(run), "x.bin"], ["export", str(run), f"~nobody-is-called-so/{file}"], ["export", "", file],
        ["export", str(run), file, "--ema=fast"], ["export", str(run), file, "--dtype=x"], ["export", "[x]", file],
    ):  # fmt: skip
        found.append((convert.main, words, ""))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("each", EACH)
def test_every_command_line(each, places, tally):
    calls, failed, reached = command_calls(places, each), [], 0
    for main, arguments, name in calls:
        problem, found = wrong(main, arguments, name)
        reached += found is not None
        if problem:
            failed.append(f"{main.__module__} {problem}")
    refused = len(calls) - len(failed) - reached
    for outcome, count in ((REFUSED, refused), (TAKEN, reached), (OTHER, len(failed))):
        tally("command lines", outcome, count)
    assert not failed, f"{len(failed)}:\n" + "\n".join(failed)
    assert len(calls) + len(key_calls(each)) >= CALLS_AT_LEAST


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark(name, places, monkeypatch, tally):
    module = sys.modules.get(BENCHES[name]) or __import__(BENCHES[name], fromlist=["run"])
    for work in ("measure_case", "measure", "compile_buckets", "Trial", "target", "watched", "Laboratory"):
        if hasattr(module, work):
            monkeypatch.setattr(module, work, reach)
    rng, failed = random.Random(2), []
    for action in options_of(bench.main, name):
        if not isinstance(action, argparse._HelpAction):
            for text in ("", "-1", "0", "[1,2]", HUGE, *rng.sample(TEXTS, 3)):
                flag = action.option_strings[-1]
                problem, reached = wrong(bench.main, [name, f"{flag}={text}"], flag)
                failed += [problem] if problem else []
                tally("command lines", OTHER if problem else TAKEN if reached is not None else REFUSED)
    assert not failed, f"{len(failed)}:\n" + "\n".join(failed)
