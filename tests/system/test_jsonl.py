"""Lines of JSON that a kill or a full disk has torn: readers leave them out and tell, writers begin on a fresh line."""

import json
import resource
import time

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from tim_jax.report.reading import Folder
from tim_jax.runs import workdir as starts
from tim_jax.runs.sweep import Store
from tim_jax.system import files, jsonl
from tim_jax.system.user_errors import few
from tim_jax.training import events
from tim_jax.training.metrics import Writer
from tim_jax.training.nonfinite import NonFinite

WHOLE = [{"step": step, "of": {"seed": step}, "config": {"seed": step}, "time": f"2026-01-0{step}"} for step in (1, 2)]
TORN = {
    "cut off": b'{"step": 3, "lo',
    "within a letter": '{"name": "ä'.encode()[:-1],
    "two in one": b'{"step": 3}{"step": 4}',
    "half of one before another": b'{"step": 3, "l{"step": 4, "loss": 1.0}',
    "no object": b"17",
    "a list": b"[]",
    "nested without end": b"[" * 200_000,
    "zeros": b"\0" * 100,
    "no text": b"\xff\xfe\x00",
}


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@pytest.fixture(params=TORN)
def torn(request, tmp_path):
    """A file name -> the path of a file whose middle line is torn, and which ends in the middle of another."""

    def make(name):
        path = epath.Path(tmp_path) / name
        path.write_bytes(lines(WHOLE[0]) + TORN[request.param] + b"\n" + lines(WHOLE[1]) + b'{"step": 9')
        return path

    return make


def test_every_reader_leaves_out_what_is_torn_and_tells(torn, caplog):
    path = torn("any.jsonl")
    assert jsonl.read(path) == WHOLE and "any.jsonl: 2 of its lines left out" in caplog.text
    folder = path.parent
    torn("nonfinite.jsonl")
    assert NonFinite(folder, 9, start=1).count == 1
    torn("starts.jsonl")
    assert starts.last_start(folder) == WHOLE[1]
    assert starts.first_start(folder) == starts.datetime.datetime.fromisoformat("2026-01-01").timestamp()
    assert Store(torn("sweep.jsonl")).get({"seed": 2}) == WHOLE[1]
    read = Folder(folder)
    assert read.lines("any.jsonl") == WHOLE and read.damaged == [f"any.jsonl: {jsonl.left_out(2)}"]


def test_a_workdir_whose_starts_are_all_torn_has_no_last_start(tmp_path):
    (tmp_path / "starts.jsonl").write_text('{"config": {}\n')
    assert starts.last_start(epath.Path(tmp_path)) is None
    assert abs(starts.first_start(epath.Path(tmp_path)) - starts.time.time()) < 60


def test_writers_begin_on_a_fresh_line(torn):
    path = torn("any.jsonl")
    files.Log(path).add(json.dumps({"step": 5}))
    assert jsonl.read(path) == [*WHOLE, {"step": 5}]


def test_a_disk_that_was_full_costs_the_lines_of_that_time_alone(tmp_path):
    path, log = epath.Path(tmp_path / "any.jsonl"), files.Log(epath.Path(tmp_path / "any.jsonl"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.add(json.dumps({"step": 1}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for step in (2, 3):
            with pytest.raises(OSError):
                log.add(json.dumps({"step": step, "text": "x" * 30}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.add(json.dumps({"step": 4}))
    assert [line["step"] for line in jsonl.read(path)] == [1, 4]


def events_in(folder):
    """{step: names} of the events of all files, oldest file first, read by their format."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag) for value in event.summary.value]
            data = data[16 + length :]
    return found


@pytest.mark.parametrize("start", [0, 2, 130])
@pytest.mark.parametrize("cut", [0, 7])
@pytest.mark.parametrize("back", [0, 10**6])
def test_a_run_that_goes_on_has_every_step_once(start, cut, back, tmp_path, monkeypatch, caplog):
    """Killed beyond its last checkpoint, it makes steps again; a kill may cut the last record off too.

    Both starts are in the same second, or the clock went backwards between them.
    """
    folder, most, clock = epath.Path(tmp_path), start + 5, [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    writer = Writer(folder, start=0)
    for step in range(1, most):
        writer.scalars(step, {"loss": step, "error": -step})
    writer.close()
    (path,) = (folder / "events").iterdir()
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + '{"step": 9999, "lo')
    clock[0] -= back
    assert "starts anew" not in caplog.text
    writer = Writer(folder, start=start)
    assert ("has made step 4, but has no checkpoint; starts anew" in caplog.text) == (start == 0)
    for step in range(start + 1, most + 2):
        writer.scalars(step, {"loss": step, "error": -step})
    writer.close()
    written = [line["step"] for line in jsonl.read(folder / "metrics.jsonl")]
    assert written == list(range(1, most + 2))
    assert events_in(folder / "events") == [(step, tag) for step in written for tag in ("loss", "error")]


def test_events_that_cannot_be_read_are_cut_off_and_hang_nothing(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a").write_bytes(rng.bytes(1000))
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"\xff" * 12)
    events.forget(epath.Path(tmp_path), 3)
    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == [0, 0, 0]


@pytest.mark.parametrize("error", [OSError("the disk is full"), RuntimeError("503 from the bucket")])
def test_a_line_that_cannot_be_written_ends_nothing(error, tmp_path, monkeypatch, caplog):
    """Object storage has errors of its own kinds."""
    path = epath.Path(tmp_path) / "any.jsonl"
    jsonl.add(path, WHOLE[0])

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.Log, "add", refuse)
        jsonl.add(path, WHOLE[1])
    assert f"{path} could not be written: {error}; the run goes on" in caplog.text
    jsonl.add(path, WHOLE[1])
    assert path.read_bytes() == lines(*WHOLE)


def test_metrics_are_written_once_their_file_can_be_opened(tmp_path, monkeypatch, caplog):
    opened, refused = files.Log, [True]

    def open_log(path, *args):
        if refused[0]:
            raise RuntimeError("503 from the bucket")
        return opened(path, *args)

    monkeypatch.setattr(files, "Log", open_log)
    writer = Writer(epath.Path(tmp_path), start=0)
    writer.scalars(1, {"loss": 1.0})
    refused[0] = False
    writer.scalars(2, {"loss": 0.5})
    writer.close()
    assert caplog.text.count("metrics could not be written: 503 from the bucket") == 1
    assert [line["step"] for line in jsonl.read(epath.Path(tmp_path) / "metrics.jsonl")] == [2]


@pytest.mark.parametrize("texts, said", [([], ""), (["a"], "a"), (["a", "b"], "a, b"), ([*"abcde"], "a, b and 3 more")])
def test_the_first_few_of_many(texts, said):
    assert few(texts, 2) == said
