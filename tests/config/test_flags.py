"""How a command reads its line: keys in both forms, and what is proposed for flags and keys that are none."""

import importlib

import pytest

from tests.helpers.workdirs import told
from tim_jax import ablate, convert, encode, pairs, sample, train
from tim_jax.__main__ import COMMANDS, module_of
from tim_jax.ablation import launch
from tim_jax.bench import attention, compile, data, step
from tim_jax.bench import sample as sample_bench
from tim_jax.bench.arguments import ARGUMENTS
from tim_jax.bench.step import check_names
from tim_jax.config import loading
from tim_jax.config.command_line import Parser
from tim_jax.data import shard_files
from tim_jax.networks.attention.modules import ATTENTION
from tim_jax.networks.block import REMAT
from tim_jax.runs.outputs.layouts import LAYOUTS
from tim_jax.system.user_errors import ArgumentParser
from tim_jax.types import DTYPES

DIGITS = "--config=digits"


@pytest.mark.parametrize(
    "words, overrides",
    [
        (["--config.training.steps=5"], {"training.steps": "5"}),
        (["--config.training.steps", "5"], {"training.steps": "5"}),
        (["--config.optimizer.weight_decay", "-0.5", "--check"], {"optimizer.weight_decay": "-0.5"}),
        (["--config.data.path=a=b", "--config.ema.mine", "0.9"], {"data.path": "a=b", "ema.mine": "0.9"}),
        (["--config.data.path="], {"data.path": ""}),
    ],
)
def test_keys_are_given_with_a_sign_or_a_space(words, overrides):
    args, found = train.parser().parse([*words, DIGITS])
    assert found == overrides and args.config == "digits" and args.check == ("--check" in words)


@pytest.mark.parametrize(
    "parser, words, said",
    [
        (train.parser, ["--steps=5"], "--steps=5: no such argument; did you mean --config.training.steps=5"),
        (train.parser, ["--steps", "5"], "--steps: no such argument; did you mean --config.training.steps"),
        (train.parser, ["--learning-rate=1"], "did you mean --config.optimizer.learning_rate=1?"),
        (train.parser, ["--training.steps=5"], "did you mean --config.training.steps=5?"),
        (train.parser, ["--batch_sise=5"], "--config.data.batch_size=5 or --config.evaluation.batch_size=5 or"),
        (train.parser, ["--wokdir=x"], "did you mean --workdir=x?"),
        (train.parser, ["--no-such=x"], "keys are changed by --config.section.key=value"),
        (train.parser, [DIGITS, "--config.steps=5"], "did you mean --config.training.steps or"),
        (train.parser, [DIGITS, "--config.times.law=x"], "renamed to --config.times.distribution"),
        (train.parser, [DIGITS, "--config.training.stpes=5"], "did you mean --config.training.steps?"),
        (train.parser, [DIGITS, "--config.training.steps"], "it must be --config.training.steps=VALUE"),
        (train.parser, [DIGITS, "--config.training.steps", "--check"], "it must be --config.training.steps=VALUE"),
        (train.parser, [DIGITS, "--workdir"], "--workdir: has no value; it must be --workdir=VALUE"),
        (train.parser, ["--config=digts"], "--config=digts: no such file or configuration; did you mean digits"),
        (sample.parser, ["--workdir=x", "--count=many"], "--count is 'many'; it must be a whole number"),
        (sample.parser, ["--workdir=x", "--guidance=x"], "--guidance is 'x'; it must be a number"),
        (sample.parser, ["--workdir=x", "--layout=x"], "--layout is 'x'; it must be one of plain, geneval, dpg, mjhq"),
        (convert.parser, ["import", "a", "b", "--dtype=x"], "--dtype=x: no such argument"),
    ],
)  # fmt: skip
def test_what_was_meant_is_proposed(parser, words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_keys_are_changed(name, capsys):
    parser = importlib.import_module(module_of(name)).parser()
    text = " ".join(parser.format_help().split())
    assert isinstance(parser, ArgumentParser)
    base = str(loading.folder() / "base.py")
    assert (
        ("--config.SECTION.KEY=VALUE" in text and base in text)
        == isinstance(parser, Parser)
        == (name not in ("bench", "verify"))
    )


def export_parser():
    return next(action.choices["export"] for action in convert.parser()._actions if action.dest == "command")


def test_names_that_arguments_spell_are_those_of_the_tables():
    """Tables import JAX, arguments must not."""
    for parser, dest, known in (
        (sample.parser(), "layout", LAYOUTS),
        (ablate.parser(), "launch", launch.KINDS),
        (export_parser(), "dtype", DTYPES),
    ):
        assert {action.dest: action.choices for action in parser._actions}[dest] == tuple(known)
    assert encode.parser().get_default("examples_per_shard") == shard_files.EXAMPLES_PER_SHARD
    parsers = {name: ArgumentParser() for name in ARGUMENTS}
    for name, parser in parsers.items():
        ARGUMENTS[name](parser)
    for name, flag, known in (
        ("step", "networks", step.CASES), ("step", "variants", step.KNOWN), ("step", "dtype", DTYPES),
        ("step", "remat", REMAT), ("sample", "networks", sample_bench.CASES), ("sample", "dtype", DTYPES),
        ("compile", "networks", compile.NETWORKS), ("attention", "modes", attention.MODES),
        ("attention", "dtype", DTYPES),
    ):  # fmt: skip
        check_names(flag, parsers[name].get_default(flag), known)
    assert {action.dest: action.choices for action in parsers["data"]._actions}["source"] == tuple(data.LAYOUTS)
    helps = {(name, action.dest): action.help or "" for name, parser in parsers.items() for action in parser._actions}
    for (name, flag), known in {
        ("step", "remat"): REMAT, ("step", "dtype"): DTYPES, ("sample", "dtype"): DTYPES,
        ("attention", "dtype"): DTYPES, ("attention", "implementations"): ATTENTION,
        ("compile", "networks"): compile.NETWORKS,
    }.items():  # fmt: skip
        assert ", ".join(known) in helps[name, flag]


@pytest.mark.parametrize(
    "main, words, said",
    [
        (pairs.main, ["--verify=x", "--workdir=y"], "--workdir is y; it must be left out with --verify"),
        (pairs.main, ["--verify=x", "--steps=3"], "--steps is 3; it must be left out with --verify"),
        (encode.main, ["--verify=x", "--examples-per-shard=7"], "--examples-per-shard is 7; it must be left out"),
        (encode.main, ["--verify=x", "--config.data.path=y"], "--config.data.path is y; it must be left out"),
        (
            ablate.main,
            ["--config=ablations/objectives", "--workdir=x", "--plan", "--report"],
            "--plan is given; it must",
        ),
        (ablate.main, ["--config=ablations/objectives", "--workdir=x", "--plan", "--launch=slurm"], "--plan is given"),
        (sample.main, ["--workdir=x", "--labels=1", "--count=3"], "--count is 3; it must be left out with --labels"),
    ],
)
def test_what_would_have_no_effect_beside_others_is_refused(main, words, said, capsys):
    assert said in told(main, words, capsys)
