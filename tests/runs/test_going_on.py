"""A run goes on by its workdir alone, says from where, and says how to extend it when it is done."""

import json

import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import contents, one_device, told
from tim_jax import train
from tim_jax.config import loading
from tim_jax.runs import training, workdir
from tim_jax.system import lock

CHANGES = TINY_NETWORK | {
    "training.steps": 2, "checkpoint.every": 1, "data.batch_size": 8, "training.sample_steps": 1,
    "optimizer.warmup_steps": 0, "optimizer.decay_steps": 9, "optimizer.learning_rate": 0.01,
}  # fmt: skip


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.slow
def test_a_workdir_alone_goes_on_and_says_how_to_extend_what_is_done(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    with one_device():
        train.main(["--config=digits", f"--workdir={folder}", *flags(CHANGES)])
        assert "going on" not in capsys.readouterr().out

        # Done: no data is opened, nothing is written, and the line says what would go on.
        before = contents(folder)
        with monkeypatch.context() as patch:
            patch.setattr(training, "fit", None)
            train.main([f"--workdir={folder}"])
        line = capsys.readouterr().out.splitlines()[-1]
        assert contents(folder) == before
        assert line.startswith(f"{folder} is trained to its last step, 2; tim-jax train --workdir={folder}")

        # That line works as it stands, from the step that was reached.
        command = line.partition("tim-jax train ")[2].removesuffix(" goes on").split()
        assert "--config.training.steps=4" in command
        train.main(command)
        out = capsys.readouterr().out
        assert "going on from step 2 of 4\n" in out and "trained to step 4" in out
        assert steps(folder)[-1] == 4

        assert "model.depth is 3; it must be 1" in told(
            train.main, [f"--workdir={folder}", "--config.model.depth=3"], capsys
        )

        # The last start counts, not the first: the run is at its end, at step 4 of 4.
        assert json.loads((folder / "config.json").read_text())["training"]["steps"] == 2
        with (folder / "starts.jsonl").open("a") as file:
            file.write('{"config": {"cut o')
        train.main([f"--workdir={folder}"])
        assert "is trained to its last step, 4;" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_damaged_last_checkpoint_is_trained_again(tmp_path, capsys):
    folder = tmp_path / "run"
    with one_device():
        train.main(["--config=digits", f"--workdir={folder}", *flags(CHANGES)])
        largest = max(
            (path for path in (folder / "checkpoints/2").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
        )
        largest.write_bytes(largest.read_bytes()[:-1])
        train.main([f"--workdir={folder}"])
        out = capsys.readouterr().out
    assert "going on from step 1 of 2\n" in out and "trained to step 2" in out


@pytest.mark.parametrize(
    "arguments, line",
    [
        (
            ["--workdir={}"],
            "error: --config: missing; it names what to train, as --workdir={} holds no run that could go on",
        ),
        (["--check"], "error: --config: missing; it names what to train, such as configs/digits.py"),
        (["--check", "--workdir={}"], "error: --config: missing; it names what to train, as --workdir={} holds no run"),
    ],
)
def test_where_there_is_no_run_a_configuration_is_asked_for(arguments, line, tmp_path, capsys):
    folder = tmp_path / "run"
    assert told(train.main, [word.format(folder) for word in arguments], capsys).startswith(line.format(folder))
    assert not folder.exists()


@pytest.mark.parametrize("change", ["model.depth", "seed"])
def test_a_run_that_another_has_forestalled_is_compared_with_it_again(change, tmp_path, capsys, monkeypatch):
    """Both have looked at the empty workdir; the other is first to lock it, records itself, and has ended."""
    folder, locked = tmp_path / "run", lock.locked

    def forestalled(*args, **kwargs):
        folder.mkdir()
        config = loading.load("digits").get_config()
        workdir.record_start(epath.Path(folder), config)
        return locked(*args, **kwargs)

    monkeypatch.setattr(lock, "locked", forestalled)
    with one_device():
        said = told(train.main, ["--config=digits", f"--workdir={folder}", *flags(CHANGES | {change: 7})], capsys)
    assert "since" in said and "holds a run with that" in said
    assert not (folder / "checkpoints").exists() and len((folder / "starts.jsonl").read_text().splitlines()) == 1
