"""Workdirs and data in object storage: real runs against an emulator of Google Cloud Storage on this machine."""

import http
import io
import json
import tarfile

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboardX import record_writer

from tim_jax import data, evaluate, sample
from tim_jax import train as command
from tim_jax.system import files
from tim_jax.training import checkpoints, removal, sharding, warm_start
from tim_jax.training.metrics import Writer

SMALL = [
    "--config.model.width=32", "--config.model.depth=2", "--config.model.heads=2", "--config.model.bottleneck=16",
    "--config.model.encoder_depth=1", "--config.model.patch_size=4", "--config.data.batch_size=16",
    "--config.training.sample_steps=1", "--config.training.log_every=2", "--config.checkpoint.every=2",
    "--config.optimizer.warmup_steps=0", "--config.optimizer.decay_steps=6", "--config.ema.slow=0.5",
]  # fmt: skip


def with_generations(handle, missing):
    """What the emulator leaves out and tensorstore needs: an object's generation in answers, and as a condition.

    missing: what the emulator raises where there is no object.
    """

    def generation(storage, bucket, name):
        try:
            return storage.get_file_obj(bucket, name)["generation"]
        except missing:
            return "0"

    def handled(request, response, storage, *args, **kwargs):
        bucket, name = request.params["bucket_name"], request.params.get("object_id")
        name = name or request.query.get("name", [None])[0] or request.data["meta"]["name"]
        before = generation(storage, bucket, name)
        if request.query.get("ifGenerationMatch", [before])[0] != before:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            return
        handle(request, response, storage, *args, **kwargs)
        response["x-goog-generation"] = generation(storage, bucket, name)

    return handled


@pytest.fixture(scope="module")
def bucket():
    """gs://tests, empty."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    exceptions = pytest.importorskip("gcp_storage_emulator.exceptions")
    pytest.importorskip("gcsfs")
    for pattern, methods in server_module.HANDLERS:
        for method, handle in methods.items():
            if handle.__name__ in ("get", "download", "insert") and handle.__module__.endswith("objects"):
                methods[method] = with_generations(handle, exceptions.NotFound)
    server = server_module.create_server("127.0.0.1", 0, in_memory=True, default_bucket="tests")
    server.start()
    # Writers of events send all once more when the process ends; the emulator has gone by then.
    record_writer.GCSRecordWriter.__del__ = lambda self: None
    address = "http://{}:{}".format(*server._api._httpd.socket.getsockname())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs (epath) and google.cloud.storage (TensorBoard's events)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)  # the arrays of checkpoints
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google's own servers about the bucket
        patch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
        yield epath.Path("gs://tests")
    server.stop()


def train(workdir, directory, *arguments):
    command.main(["--config=digits", f"--workdir={workdir}", f"--config.loader.directory={directory}", *SMALL,
                  *arguments])  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The digits on a local disk; one device trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.local_devices()[:1]: first)
        yield tmp_path_factory.mktemp("data")


@pytest.mark.nightly
def test_a_run_in_a_bucket_is_stopped_resumed_sampled_and_evaluated(bucket, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "local", cache, "--config.training.steps=6")
    train(bucket / "run", cache, "--config.training.steps=4")
    train(bucket / "run", cache, "--config.training.steps=6")
    local, remote = epath.Path(tmp_path / "local"), bucket / "run"
    a, b = (warm_start.latest(workdir) for workdir in (local, remote))
    assert a.step == b.step == 6
    shapes = warm_start.weights_of(b)["slow"]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=device) for name, shape in shapes.items()}
    weights = [warm_start.read_weights(saved, "slow", abstract) for saved in (a, b)]
    for name in shapes:
        np.testing.assert_array_equal(weights[0][name], weights[1][name])

    assert [line["step"] for line in lines(remote / "metrics.jsonl")] == [2, 4, 6]
    assert [line["config"]["training"]["steps"] for line in lines(remote / "starts.jsonl")] == [4, 6]
    assert sorted(path.name for path in (remote / "checkpoints").iterdir()) == ["4", "6"]  # the latest two stay
    assert [path.name for path in (remote / "samples").iterdir()] == ["samples_00000004.png", "samples_00000006.png"]
    events = list((remote / "events").iterdir())
    assert len(events) == 2 and all(event.read_bytes().count(b"grad_norm") for event in events)

    sample.main([f"--workdir={remote}", "--steps=1,2", "--count=4"])
    with np.load(io.BytesIO((remote / "sampled/step6_8x8_flow_map_uniform_seed0_guidance1.npz").read_bytes())) as found:
        assert found["steps2"].shape == (4, 8, 8, 1) and np.isfinite(found["steps2"]).all()
    for _ in range(2):
        evaluate.main([f"--workdir={remote}", "--steps=1", "--seeds=1", "--config.evaluation.num_samples=32"])
    assert json.loads((remote / "any_step.json").read_text())["step"] == 6
    assert (remote / "any_step.1.json").exists()

    # A damaged checkpoint is set aside, and the one before it is used.
    manifest = next(path for path in (remote / "checkpoints" / "6").iterdir() if path.name.startswith("manifest"))
    manifest.write_bytes(manifest.read_bytes().replace(b"a", b"b", 1))
    train(remote, cache, "--config.training.steps=6")
    assert "altered" in capsys.readouterr().err and (remote / "damaged" / "6" / manifest.name).exists()
    assert [line["step"] for line in lines(remote / "metrics.jsonl")] == [2, 4, 6, 6]

    # Another run starts from it, whole or by its weights.
    train(tmp_path / "warm", cache, "--config.training.steps=1", f"--config.start.checkpoint={remote}")
    train(tmp_path / "on", cache, "--config.training.steps=7", f"--config.checkpoint.resume={remote}/checkpoints/6")
    told = capsys.readouterr().out
    assert f"parameters from {remote}/checkpoints/6, slow" in told and f"goes on from {remote}/checkpoints/6" in told
    assert [line["step"] for line in lines(tmp_path / "on/metrics.jsonl")] == [7]

    # Nothing of it is on the disk by mistake.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "on", "warm"]


def test_checkpoints_in_a_bucket_are_seen_by_others_at_once(bucket):
    """They are written by another library than the one that lists them, which must not remember what was there."""
    tensorstore = pytest.importorskip("tensorstore")
    assert not (bucket / "listed").exists()
    (bucket / "listed" / "first").write_text("x")
    assert [path.name for path in (bucket / "listed").iterdir()] == ["first"]
    store = tensorstore.KvStore.open({"driver": "gcs", "bucket": "tests", "path": "listed/"}).result()
    store.write("second", b"y").result()
    assert sorted(path.name for path in (bucket / "listed").iterdir()) == ["first", "second"]
    assert (bucket / "listed" / "second").read_text() == "y"


def test_a_checkpoint_that_is_not_committed_is_never_taken_for_whole(bucket):
    """In a bucket a folder comes file by file; the mark of the commit is the last, and before it there is nothing."""
    workdir, state = bucket / "commits", {"x": np.arange(8.0, dtype=np.float32)}
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 2))
    for step in (1, 2):
        saver.save(step, state, {"format": 2})
    saver.close()
    assert not saver.failures and latest_good(workdir) == 2
    folder = workdir / "checkpoints" / "2"
    content = {path: path.read_bytes() for path in files_below(folder)}
    mark = folder / removal.COMMITTED
    assert mark in content and len(content) > 5
    folder.rmtree()
    for number, path in enumerate(sorted(content, key=lambda path: path == mark)):
        if number % 4 == 1 or path == mark:
            assert latest_good(workdir) == 1, f"before {path.name}"
        path.write_bytes(content[path])
    assert latest_good(workdir) == 2
    mark.unlink()
    (workdir / "checkpoints" / "2.keep" / "x").write_text("a user's own")
    assert latest_good(workdir) == 1
    checkpoints.open_manager(workdir, 2).close()  # as a start does, which removes what is not whole
    assert sorted({path.name for path in (workdir / "checkpoints").iterdir()}) == ["1", "2.keep"]


def files_below(folder):
    """All files below a folder of a bucket, in which epath looks for no ** by itself."""
    for path in folder.iterdir():
        yield from files_below(path) if path.is_dir() else [path]


def latest_good(workdir):
    manager = checkpoints.open_manager(workdir, 2, read_only=True)
    try:
        return checkpoints.latest_good(manager)[0]
    finally:
        manager.close()


@pytest.mark.parametrize("seconds, written", [(0.0, ["one", "two", "three"]), (1e9, ["one"])])
def test_a_log_in_a_bucket_keeps_what_is_there(bucket, seconds, written):
    path = bucket / f"log-{seconds:g}"
    log = files.Log(path, seconds)
    for line in ("one", "two", "three"):
        log.add(line)
    assert path.read_text().splitlines() == written
    log.close()
    files.Log(path).add("four")
    assert path.read_text().splitlines() == ["one", "two", "three", "four"]


def test_a_log_on_a_disk_is_written_line_by_line(tmp_path):
    path = epath.Path(tmp_path / "log")
    path.write_text("none\n")
    first, second = files.Log(path, 1e9), files.Log(path, 1e9)
    first.add("one")
    second.add("two")
    assert path.read_text() == "none\none\ntwo\n"


def test_metrics_pictures_and_events_of_two_starts(bucket):
    workdir = bucket / "writer"
    for step in (1, 2):
        writer = Writer(workdir)
        writer.scalars(step, {"loss": step, "bad": float("nan")})
        writer.picture(step, "samples", Image.new("L", (8, 8), step))
        writer.close()
    assert [(line["step"], line["loss"], line["bad"]) for line in lines(workdir / "metrics.jsonl")] == [
        (1, 1.0, None),
        (2, 2.0, None),
    ]
    with Image.open(io.BytesIO((workdir / "samples/samples_00000002.png").read_bytes())) as picture:
        assert picture.getpixel((0, 0)) == 2


def test_files_are_replaced(bucket, tmp_path):
    for folder in (bucket / "replaced", epath.Path(tmp_path)):
        for content in (b"a long text", b"short"):
            files.replace(folder / "file", content)
            assert (folder / "file").read_bytes() == content
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_paths_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.absolute(epath.Path("gs://tests/run")) == epath.Path("gs://tests/run")
    assert files.absolute(epath.Path("run")) == epath.Path(tmp_path / "run")


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_data_in_a_bucket_is_read(bucket, tmp_path):
    root = bucket / "data"
    manifest, shard = [], io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for i in range(6):
            name = f"class{i // 3}/{i}.png"
            (root / "images" / name).write_bytes(png(i))
            manifest.append(json.dumps({"image_file": f"images/{name}", "captions": ["a grey"], "bucket": "6x5"}))
            for end, content in (("png", png(i)), ("cls", str(i // 3).encode())):
                about = tarfile.TarInfo(f"{i}.{end}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    (root / "tar" / "0.tar").write_bytes(shard.getvalue())
    (root / "rows.jsonl").write_text("\n".join(manifest) + "\n")
    for name, path, classes in (("folder", "images", 2), ("tar", "tar", 2), ("manifest", "rows.jsonl", 0)):
        source = data.open_source(name, str(tmp_path), path=str(root / path), channels=3, num_classes=classes)
        rows = [source[i] for i in range(len(source))]
        assert [(int(row["image"].max()), row["image"].shape) for row in rows] == [(i, (6, 5, 3)) for i in range(6)]
        assert [row["label"] for row in rows] == [i // 3 if classes else 0 for i in range(6)]
        assert [source.header(i) for i in range(6)] == [(6, 5)] * 6


@pytest.mark.parametrize(
    "work, named",
    [
        (lambda tmp: data.open_source("digits", "gs://tests/cache"), ["loader.directory", "gs://tests/cache"]),
        (lambda tmp: data.open_source("shards", tmp, path="gs://tests/rows"), ["data.path", "gs://tests/rows"]),
        (lambda tmp: data.write_shards("gs://tests/rows", []), ["folder", "gs://tests/rows"]),
    ],
)
def test_what_needs_a_local_disk_says_so(work, named, tmp_path):
    with pytest.raises(ValueError) as raised:
        work(str(tmp_path))
    assert all(word in str(raised.value) for word in named) and "\n" not in str(raised.value)


def test_a_directory_in_a_bucket_is_refused_before_anything_is_written(tmp_path, capsys, cache):
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run", "gs://tests/cache")
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("error: loader.directory is 'gs://tests/cache'"), error
    assert list(tmp_path.iterdir()) == []
