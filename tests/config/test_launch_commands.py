"""The launch commands in the docstrings of configurations: every one has one, and it runs to the first step."""

import importlib
import pathlib
import re
import shlex

import pytest
import yaml

from tests.helpers import official
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.launch import bash
from tests.helpers.workdirs import one_device
from tim_jax.__main__ import COMMANDS
from tim_jax.config import keys, loading

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = {
    str(path.relative_to(ROOT / "configs").with_suffix("")): path for path in sorted((ROOT / "configs").rglob("*.py"))
}
del CONFIGS["base"]
START = re.compile(r"python -m tim_jax\.(\w+) ((?:import \S+ \w+|--\S+)(?:\s+--\S+)*)|(bash launch/\w+\.sh)")
# What is made small: the network, the batch, one step. With --check the examples are made up.
SMALL = TINY_NETWORK | {"model.size": "S", "model.dtype": "float32", "data.batch_size": "16", "training.steps": "1"}
FEATURES = {"data.features_width": "32", "model.projector_width": "16"}
TEXT = {"data.buckets.tokens": "8192", "data.text_width": "8", "data.text_tokens": "5", "model.projector_width": "16"}


def launches(name):
    """[(command, its words)] that the docstring of a configuration launches it by, in order; none for a script."""
    text = re.split("\nThen|\nSee", (loading.load(name).__doc__ or "").partition("Launch")[2])[0]
    return [(command, shlex.split(words)) for command, words, _ in START.findall(text) if command]


def names_of(command):
    return [name for name in CONFIGS if any(first == command for first, _ in launches(name)[-1:])]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_a_command_that_names_it(name):
    text, keys_of_base = loading.load(name).__doc__, set(keys.flatten(loading.load("base").get_config()))
    assert "Launch" in text and START.search(text.partition("Launch")[2])
    for command, words in launches(name):
        assert command in COMMANDS
        module = importlib.import_module(f"tim_jax.{command}")
        _, overrides = module.parser().parse(words) if command != "convert" else (None, {})
        assert overrides.keys() <= keys_of_base
    if launches(name) and launches(name)[-1][0] != "convert":
        released = "--as=" + name.removeprefix("released/")
        assert {f"--config=configs/{name}.py", f"--config={name}"} & set(launches(name)[-1][1]) or released in text
    config = getattr(loading.load(name), "get_config", lambda: None)()
    if config and config.data.source == "latents" and "convert" not in text:
        assert "--config.data.path=LATENTS" in text


@pytest.mark.parametrize("name", [name for name in names_of("train") if "every host" in loading.load(name).__doc__])
def test_a_pod_is_given_the_command_as_it_is_printed(name):
    ((_, words),) = launches(name)[-1:]
    manifest = yaml.safe_load(bash("kubernetes.sh", "--dry-run", *words).stdout)
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["-m", "tim_jax.train", *words]
    listed = bash("tpu.sh", "--dry-run", "train", *words)
    assert listed.returncode == 0 and f"-m tim_jax.train {' '.join(words)}" in listed.stdout
    assert ".[gcs,hub,tpu]" in listed.stdout


@pytest.fixture(scope="module")
def places(tmp_path_factory, published):
    """place(words, channels): with folders of this machine for those that the commands name."""
    root, dino = tmp_path_factory.mktemp("launched"), published("dinov2_tiny")
    for side, channels in ((32, 4), (16, 32)):
        official.make(root / f"imagenet{channels}", channels=channels, side=side)
    for image in (root / "imagenet4" / "images").rglob("*.JPEG"):
        image.with_suffix(".txt").write_text("a picture")

    def place(words, channels):
        data = root / ("imagenet32" if channels == 32 else "imagenet4")
        there = {"LATENTS": data / "latents", "IMAGES": data / "images" / "train", "DINOV2_B": dino}
        there |= {"FOLDER": there["IMAGES"], "DIR": root / "own"}
        said = [word.replace("gs://BUCKET", str(root)) for word in words]
        said = [re.sub(r"=([A-Z0-9_]+)$", lambda match: f"={there.get(match[1], match[1])}", word) for word in said]
        return [*said, f"--config.loader.directory={data / 'cache'}"]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where commands and configurations name runs/…
        yield place


DONE = set()


def step(name, places):
    """Runs the launch commands of a configuration, those that others need first, made small."""
    for command, words in launches(name):
        if (command, *words) in DONE:
            continue
        if command in ("pairs", "prefer"):
            few = {"pairs": "--examples=8", "prefer": "--pairs=8"}[command]
            importlib.import_module(f"tim_jax.{command}").main([*places(words, 4)[:-1], few, "--steps=1"])
            DONE.add((command, *words))
            continue
        config = loading.load(words[0].removeprefix("--config=")).get_config()
        if name == "imagenet256_xl_distilled":
            step("imagenet256_xl", places)
        small = dict(SMALL)
        small |= FEATURES if config.data.features_width and config.data.source == "latents" else {}
        small |= TEXT | {"data.features_width": "32"} if name == "t2i_xl" else {}
        if config.data.buckets.tokens:
            del small["data.batch_size"]
        real = config.data.source == "latents" or words != launches(name)[-1][1]  # what another learns from is written
        typed = [*places(words, config.data.channels), *flags(small), *([] if real else ["--check"])]
        importlib.import_module("tim_jax.train").main(typed)
        if real:
            DONE.add((command, *words))


COST = {"imagenet256_xl": pytest.mark.slow}  # the whole way: latents, images, features; the others have their night


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=COST.get(name, pytest.mark.nightly)) for name in names_of("train")]
)
def test_the_command_runs_to_the_first_step(name, places, capsys):
    with one_device():
        step(name, places)
    said = capsys.readouterr().out
    assert "one step of" in said or "trained" in said or "step 1" in said, said
