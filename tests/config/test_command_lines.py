"""What users type: errors in one line with exit code 2 and nothing touched; samples and tables from a real run."""

import hashlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.workdirs import told
from tim_jax import ablate, convert, encode, evaluate, grid, inspect, load, pairs, sample, search, train
from tim_jax.bench import __main__ as bench
from tim_jax.config import identity
from tim_jax.plan import __main__ as plan
from tim_jax.training import sharding

SMALL = [
    "--config.model.width=32", "--config.model.depth=2", "--config.model.heads=2", "--config.model.bottleneck=16",
    "--config.model.encoder_depth=1", "--config.model.patch_size=4", "--config.data.batch_size=32",
    "--config.training.sample_steps=1,2", "--config.training.sample_every=0", "--config.training.steps=4",
    "--config.optimizer.warmup_steps=0", "--config.optimizer.learning_rate=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
        with pytest.MonkeyPatch.context() as home:  # all of the run lies there, and nothing in a folder called ~
            home.setenv("HOME", str(folder))
            home.chdir(folder / "elsewhere")
            train.main(["--config=digits", "--workdir=~/digits", "--config.loader.directory=~/data", *SMALL])
        assert sorted(path.name for path in folder.iterdir()) == ["data", "digits", "elsewhere"]
        assert not list((folder / "elsewhere").iterdir())
        yield folder / "digits"


@pytest.mark.parametrize(
    "change, named",
    [
        ("training.step=3", ["training.step", "training.steps"]),
        ("optimizer.learning_rat=0.1", ["optimizer.learning_rate"]),
        ("model.heads=5", ["heads", "5", "32"]),
        ("model.heads=0", ["model.heads is 0", "6 of model.size 'S'", "model.width, 32"]),
        ("model.patch_size=3", ["patch_size", "3", "8"]),
        ("model.conditioning=t-q", ["conditioning", "t-q", "t,r"]),
        ("model.size=XXL", ["model.size", "XXL", "XL"]),
        ("model.dtype=float16", ["model.dtype", "float16", "bfloat16"]),
        ("model.num_classes=4", ["model.num_classes", "4", "10"]),
        ("times.share_equal=1.5", ["times.share_equal", "1.5"]),
        ("times.share_min=0.7", ["times.share_equal, times.share_min", "1.5"]),
        ("times.distribution=log_uniform", ["log_uniform", "reaches t = 0"]),
        ("transport.name=otfm", ["transport.name", "otfm", "ot_fm"]),
        ("objective.name=meanflow", ["objective.name", "meanflow", "mean_flow"]),
        ("objective.tangent.warmup_steps=x", ["tangent.warmup_steps", "'x'", "int"]),
        ("objective.bootstrap.split=uniform", ["bootstrap.split", "no effect", "semigroup"]),
        ("objective.contrast.share=0.5", ["contrast.share", "no effect", "'tim'"]),
        ("transport.sigma_d=0.3", ["transport.sigma_d", "0.3", "no effect"]),
        ("objective.weight.kernel=cubic", ["kernel", "cubic", "sqrt"]),
        ("objective.derivative=exact", ["derivative", "exact", "jvp"]),
        ("objective.alignment_weight=1.0", ["alignment_weight", "features_width"]),
        ("objective.velocity=tutor", ["velocity", "tutor", "online", "teacher"]),
        ("objective.name=ctm", ["objective.velocity", "online", "no effect", "must be 'data'"]),
        ("objective.guidance.ema=fast", ["guidance.ema", "no effect"]),
        ("optimizer.name=sgd", ["optimizer.name", "sgd", "adamw"]),
        ("optimizer.accumulation=5", ["batch_size", "32", "5"]),
        ("ema.slow=1.0", ["ema.slow", "1.0"]),
        ("sampling.ema=fast", ["sampling.ema", "fast", "slow"]),
        ("mesh.tensor=3", ["mesh.tensor", "3"]),
        ("training.steps=0", ["training.steps", "0"]),
        ("training.steps=many", ["training.steps", "many", "int"]),
        ("training.sample_steps=0,1", ["sample_steps", "0"]),
        ("model.remat=everything", ["remat", "everything", "full"]),
        ("data.source=digit", ["digit", "digits"]),
        ("data.height=16", ["data.height", "8 high", "data.buckets.enlarge=True"]),
        ("data.buckets.tokens=64", ["data.batch_size", "32", "no effect", "data.buckets.tokens"]),
        ("data.buckets.keep_rare=True", ["data.buckets.keep_rare", "no effect", "area"]),
        ("data.buckets.table=((8, 12), (10, 8))", ["data.buckets.table", "(10, 8)", "4"]),
        ("data.buckets.area=3", ["data.buckets.area", "3", "16"]),
        ("data.mixture=(('digits', '', 0),)", ["data.mixture", "weight", "0"]),
        ("data.path=nowhere", ["data.path", "nowhere"]),
        ("data.split=test", ["test", "train"]),
        ("data.flip=2.0", ["data.flip", "2.0"]),
        ("loader.max_bad_share=2.0", ["loader.max_bad_share", "2.0"]),
        ("evaluation.features=dino", ["evaluation.features", "dino", "pixels"]),
    ],
)
def test_a_wrong_configuration_is_named_and_nothing_is_touched(change, named, tmp_path, capsys):
    arguments = ["--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={tmp_path / 'data'}"]
    error = told(train.main, [*arguments, *SMALL, f"--config.{change}"], capsys)
    for word in named:
        assert word in error, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "main, arguments, named",
    [
        (train.main, ["--config=digitz", "--workdir=x"], ["digitz", "digits"]),
        (train.main, ["--config=digits"], ["--workdir"]),
        (train.main, ["--config=digits", "--wrkdir=x"], ["--wrkdir", "--workdir"]),
        (train.main, ["--config=digits", "--workdir=x", "--config.seed"], ["--config.seed=VALUE"]),
        (train.main, ["--config=digits", "--workdir={}[1]"], ["--workdir", "[1]", "none of the characters"]),
        (train.main, ["--config=digits", "--workdir=~nobody-is-called-so/x"], ["--workdir", "home folder"]),
        (train.main, ["--config=digits", "--workdir={}/config.json"], ["--workdir", "config.json is none"]),
        (train.main, ["--config=digits", "--workdir=file://{}"], ["--workdir", "without 'file:'"]),
        (train.main, ["--config=ablations/objectives", "--workdir=x"], ["no function get_config", "tim-jax ablate"]),
        (ablate.main, ["--config=digits", "--workdir=x"], ["no function get_ablation", "configs/ablations"]),
        (ablate.main, ["--config=ablations/objectives", "--workdir={}"], ["--workdir", "holds a run"]),
        (inspect.main, ["--config=digits", "--config.data.path={}"], ["data.path", "no effect", "embedded"]),
        (search.main, ["--workdir={}", "--reward=brightness", "--methods=worst_of"], ["--methods has 'worst_of'"]),
        (sample.main, ["--workdir={}/checkpoints/4"], ["checkpoints/4: holds no run; it lies in one, ", "/digits"]),
        (sample.main, ["--workdir={}/none"], ["none", "holds no run"]),
        (sample.main, ["--workdir={}", "--steps=0"], ["--steps", "0", "at least 1"]),
        (sample.main, ["--workdir={}", "--steps=1,x"], ["--steps", "1,x"]),
        (sample.main, ["--workdir={}", "--labels=3,10"], ["--labels", "10", "0 … 9"]),
        (sample.main, ["--workdir={}", "--labels=-1"], ["--labels", "-1"]),
        (sample.main, ["--workdir={}", "--seed=-1"], ["--seed", "-1"]),
        (sample.main, ["--workdir={}", "--count=0"], ["--count", "0"]),
        (sample.main, ["--workdir={}", "--guidance=-2"], ["--guidance", "-2"]),
        (sample.main, ["--workdir={}", "--config.model.depth=3"], ["model.depth", "3", "2"]),
        (sample.main, ["--workdir={}", "--from=none.png", "--labels=3"], ["--from", "none.png"]),
        (sample.main, ["--workdir={}", "--from={}/config.json", "--labels=3"], ["--from", "config.json", "no known"]),
        (sample.main, ["--workdir={}", "--from={}/any.png"], ["--from", "--labels"]),
        (sample.main, ["--workdir={}", "--start=0.5"], ["--start", "0.5", "--from"]),
        (sample.main, ["--workdir={}", "--interpolate=1"], ["--interpolate", "1", "2"]),
        (sample.main, ["--workdir={}", "--interpolate=3", "--labels=1"], ["--interpolate", "--labels"]),
        (sample.main, ["--workdir={}", "--config.sampling.sampler=dpm"], ["sampling.sampler", "dpm", "heun"]),
        (sample.main, ["--workdir={}", "--config.sampling.grid=edm2"], ["sampling.grid", "edm2", "optimal"]),
        (sample.main, ["--workdir={}", "--config.sampling.shift=2.0"], ["sampling.shift", "2.0", "no effect"]),
        (sample.main, ["--workdir={}", "--config.sampling.grid=optimal"], ["optimal", "tim_jax.grid", "grid.json"]),
        (sample.main, ["--workdir={}", "--config.sampling.plan=learned"], ["tim_jax.grid", "learned_plan.json"]),
        (train.main, ["--config=digits", "--workdir={}", *SMALL, "--config.sampling.grid=optimal"], ["optimal"]),
        (train.main, ["--config=digits", "--workdir={}", *SMALL, "--config.sampling.plan=learned"], ["learned"]),
        (grid.main, ["--workdir={}", "--steps=8", "--times=8"], ["--times", "8", "9"]),
        (grid.main, ["--workdir={}", "--factor=0"], ["--factor", "0.0", "[0.1, 10]"]),
        (grid.main, ["--workdir={}", "--count=1"], ["--count", "1", "2"]),
        (grid.main, ["--workdir={}", "--config.sampling.sampler=consistency"], ["consistency", "flow_map"]),
        (evaluate.main, ["--workdir={}", "--steps=0,4"], ["--steps", "0"]),
        (evaluate.main, ["--workdir={}", "--seeds=0"], ["--seeds", "0"]),
    ],
)
def test_wrong_arguments_are_named(main, arguments, named, workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    error = told(main, [argument.format(workdir) for argument in arguments], capsys)
    for word in named:
        assert word in error, error
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_check_takes_one_step_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--config=digits", "--check", *SMALL])
    assert "one step of 32 examples" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_samples_depend_on_seed_and_index_only(workdir, tmp_path):
    def run(name, *arguments):
        sample.main([f"--workdir={workdir}", "--steps=1,3", f"--out={tmp_path / name}", *arguments])
        (path,) = (tmp_path / name).glob("*.npz")
        return np.load(path)

    few, many = run("few", "--labels=4,2"), run("many", "--labels=4,2,7,0,1")
    np.testing.assert_allclose(few["steps3"], many["steps3"][:2], atol=1e-5)
    assert few["steps1"].shape == (2, 8, 8, 1)
    assert np.abs(run("other", "--labels=4,2", "--seed=1")["steps3"] - few["steps3"]).max() > 1e-2
    guided = run("guided", "--labels=4,2", "--guidance=3.0")
    assert np.abs(guided["steps3"] - few["steps3"]).max() > 0
    with Image.open(tmp_path / "few" / "step4_8x8_flow_map_uniform_seed0_guidance1_steps3.png") as picture:
        assert picture.size[0] > 8


@pytest.mark.slow
def test_images_in_place_of_noise(workdir, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    for name, image in zip("abc", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.fromarray(pixels[0][:, :4]).save(tmp_path / "narrow.png")
    Image.fromarray(pixels[0][:, :6]).save(tmp_path / "odd.png")
    files = f"--from={tmp_path / 'a.png'},{tmp_path / 'b.png'}"

    def run(name, *arguments):
        sample.main([f"--workdir={workdir}", f"--out={tmp_path / name}", *arguments])
        (path,) = (tmp_path / name).glob("*.npz")
        return np.load(path)

    images = pixels[:2, ..., None] / 127.5 - 1
    back = run("back", files, "--labels=3,4", "--steps=16,64", "--config.sampling.sampler=heun")
    off = [np.sqrt(np.mean((back[f"steps{steps}"] - images) ** 2)) for steps in (16, 64)]
    assert max(off) < 0.01 and back["start64"].shape == images.shape
    assert capsys.readouterr().out.count("off (RMS)") == 2
    exact = run("exact", files, "--labels=3,4", "--steps=4", "--config.sampling.sampler=leapfrog")
    assert np.abs(exact["steps4"] - images).max() < 1e-5 and exact["start4"].shape == (2, 2, *images.shape[1:])
    leapfrog = [f"--workdir={workdir}", files, "--labels=3,4", "--config.sampling.sampler=leapfrog"]
    capsys.readouterr()
    assert "--steps has 1; it must be 2 and more" in told(sample.main, [*leapfrog, "--steps=1"], capsys)
    parallel = told(sample.main, [*leapfrog, "--steps=4", "--config.sampling.parallel=8"], capsys)
    assert "sampling.parallel is 8; it must be 0" in parallel
    near, far = (run(f"to{start}", files, "--labels=3,4", "--steps=4", f"--start={start}") for start in (0.01, 1.0))
    np.testing.assert_allclose(near["steps4"], images, atol=0.15)
    plain = run("plain", "--labels=3,4", "--steps=4")
    np.testing.assert_allclose(far["steps4"], plain["steps4"], atol=1e-5)
    way = run("way", "--labels=3,4", "--steps=4", "--interpolate=5")
    assert way["labels"].tolist() == [3, 3, 3, 4, 4]
    np.testing.assert_allclose(way["steps4"][[0, -1]], plain["steps4"], atol=1e-5)
    assert run("inverted", files, "--labels=3,4", "--steps=4", "--interpolate=3")["steps4"].shape == (3, 8, 8, 1)
    capsys.readouterr()
    for names, labels, named in (
        ("a.png,narrow.png", "1,2", ["narrow.png", "8x4", "8x8"]),
        ("odd.png", "1", ["odd.png", "8x6", "patch size, 4"]),
        ("a.png", "1,2", ["--labels", "2", "1"]),
        ("a.png", "1", ["--start", "1.5", "at most 1"]),
    ):
        paths = ",".join(str(tmp_path / name) for name in names.split(","))
        arguments = [f"--workdir={workdir}", f"--from={paths}", f"--labels={labels}", "--start=1.5"]
        error = told(sample.main, arguments, capsys)
        assert all(word in error for word in named), error


def test_a_grid_is_found_and_taken_and_belongs_to_its_weights(workdir, tmp_path, capsys):
    found = ["--steps=1,2,4", "--times=7", "--count=6"]
    grid.main([f"--workdir={workdir}", *found])
    record = json.loads((workdir / "grid.json").read_text())
    assert len(record["times"]) == 7 and sorted(record["grids"]) == ["1", "2", "4"]
    for steps, times in record["grids"].items():
        assert len(times) == int(steps) + 1 and set(times) <= set(record["times"])
        assert times[0] == 1.0 and times[-1] == 0.0
    cost = np.array(record["cost"], float)
    assert np.isfinite(cost[np.triu_indices(7, 1)]).all() and np.isnan(cost[np.tril_indices(7)]).all()
    optimal = [f"--workdir={workdir}", f"--out={tmp_path}", "--labels=1,2", "--config.sampling.grid=optimal"]
    sample.main([*optimal, "--steps=1,4"])
    capsys.readouterr()
    assert "--steps=8" in told(sample.main, [*optimal, "--steps=8"], capsys)
    assert "sampler" in told(sample.main, [*optimal, "--steps=4", "--config.sampling.sampler=euler"], capsys)
    assert "weights" in told(sample.main, [*optimal, "--steps=4", "--config.sampling.ema=online"], capsys)
    # One that was recorded by the digest of the manifests, as grids once were, stays valid.
    manifests = sorted((workdir / "checkpoints" / str(record["of"]["step"])).glob("manifest-*"))
    record["of"]["checkpoint"] = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()
    (workdir / "grid.json").write_text(json.dumps(record))
    sample.main([*optimal, "--steps=1"])
    capsys.readouterr()
    record["of"]["step"] = 3
    (workdir / "grid.json").write_text(json.dumps(record))
    assert "tim_jax.grid" in told(sample.main, [*optimal, "--steps=4"], capsys)
    (workdir / "grid.json").unlink()


@pytest.mark.nightly
def test_a_plan_is_learned_and_taken_and_belongs_to_its_weights(workdir, tmp_path, capsys):
    file = workdir / "learned_plan.json"
    learn = [f"--workdir={workdir}", "--kind=learned", "--times=5", "--count=8", "--iterations=300"]
    heun = "--config.sampling.sampler=heun"
    for more, named in (("--factor=1.1", "--factor"), ("--config.sampling.stochasticity=0.5", "draw no noise"),
                        ("--config.sampling.sampler=sde", "draw no noise"),
                        ("--iterations=0", "--iterations")):  # fmt: skip
        assert named in told(grid.main, [*learn, "--steps=2", more], capsys)
    assert "--iterations" in told(grid.main, [f"--workdir={workdir}", "--iterations=9"], capsys)
    assert not file.exists()
    grid.main([*learn, "--steps=2", heun])
    grid.main([*learn, "--steps=3", heun])
    assert "| 3 |" in capsys.readouterr().out
    grid.main([*learn, "--steps=2", "--config.sampling.sampler=euler"])  # kept beside those of the other sampler
    records = json.loads(file.read_text())
    record = records["heun"]
    assert set(records) == {"heun", "euler"}
    assert sorted(record["plans"]) == ["2", "3"] and record["settings"]["sampler"] == "heun"
    for steps, measured in record["measured"].items():
        assert measured["after"] < measured["before"]
        assert len(record["plans"][steps]["t"]) == 2 * int(steps)
    plain = [f"--workdir={workdir}", f"--out={tmp_path / 'plain'}", "--labels=1,2", heun]
    taken = [f"--workdir={workdir}", f"--out={tmp_path / 'taken'}", heun, "--config.sampling.plan=learned"]
    sample.main([*plain, "--steps=2"])
    sample.main([*taken, "--labels=1,2", "--steps=2,3"])
    arrays = [np.load(next((tmp_path / name).glob("*.npz")))["steps2"] for name in ("plain", "taken")]
    assert np.abs(arrays[0] - arrays[1]).max() > 1e-4
    tim = load(workdir, sampling={"plan": "learned", "sampler": "heun"})
    assert len(tim([1, 2], steps=2)) == 2
    with pytest.raises(ValueError, match="guidance is 3.0; it must be 1.0, which sampling.plan"):
        tim([1], steps=2, guidance=3.0)
    capsys.readouterr()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    for more, named in (
        ("--steps=8", "--steps=8"),
        ("--config.sampling.sampler=dpm_solver_2s", "found for dpm_solver_2s"),
        ("--config.sampling.ema=online", "weights online"),
        ("--guidance=2", "sampling.guidance"),
        ("--config.sampling.grid=edm", "sampling.grid"),
        (f"--from={tmp_path / 'black.png'}", "it must be 'sampler' for times other"),
    ):
        assert named in told(sample.main, [*taken, "--labels=1", "--steps=2", more], capsys), more
    start = [f"--from={tmp_path / 'black.png'}", "--labels=1", "--start=0.5"]
    assert "start at 0.5" in told(sample.main, [*taken, "--steps=2", *start], capsys)
    record["of"]["step"] = 3
    file.write_text(json.dumps(records))
    assert "--kind=learned" in told(sample.main, [*taken, "--steps=2"], capsys)
    file.unlink()


def test_a_run_from_before_a_key_had_come_goes_on(workdir):
    older = json.loads((workdir / "config.json").read_text())
    del older["start"], older["data"]["buckets"], older["model"]["attention"]
    found = identity.completed(older)
    assert found == json.loads((workdir / "config.json").read_text())
    older["ema"] = {"other": 0.5}
    assert identity.completed(older)["ema"] == {"other": 0.5}, "averages have the names that a run gave them"


def test_the_any_step_table_of_a_run(workdir):
    evaluate.main([f"--workdir={workdir}", "--steps=1,4,128", "--seeds=2", "--config.evaluation.num_samples=60"])
    table = json.loads((workdir / "any_step.json").read_text())
    assert [(row["steps"], row["nfe"]) for row in table["rows"]] == [(1, 1), (4, 4), (128, 128)]
    fields = {"steps", "nfe", "frechet", "kernel", "frechet_held_out", "seconds_per_image", "frechet_spread"}
    assert fields <= set(table["rows"][0])
    assert table["samples"] == 60 and table["step"] == 4 and table["floor"]["frechet"] > 0
    for name in ("any_step.png", "any_step_samples.png", "nearest.png", "any_step.md"):
        assert (workdir / name).stat().st_size > 0
    evaluate.main([f"--workdir={workdir}", "--steps=2", "--seeds=1", "--config.evaluation.num_samples=60",
                   "--config.sampling.guidance=2.0"])  # fmt: skip
    assert json.loads((workdir / "any_step.json").read_text())["rows"][0]["nfe"] == 4
    assert (workdir / "any_step.1.json").exists(), "an earlier table is kept"


def test_a_run_is_not_trained_in_the_folder_of_an_ablation(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{}")
    error = told(train.main, ["--config=digits", f"--workdir={tmp_path}", *SMALL], capsys)
    assert error == f"error: --workdir is '{tmp_path}'; it must be a folder of its own, and holds an ablation"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("name, what", [("a.png", "is no Python file"), ("folder", "is no Python file")])
def test_what_is_no_configuration_is_refused_in_a_short_line(name, what, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    error = told(train.main, [f"--config={tmp_path / name}", "--workdir=x"], capsys)
    assert error.startswith(f"error: --config={tmp_path / name}: {what}; ") and len(error) < 400


@pytest.mark.parametrize(
    "main, arguments, option",
    [
        (convert.main, ["import", "x.safetensors", "{}"], "WORKDIR"),
        (convert.main, ["export", "x", "{}.safetensors"], "OUT"),
        (encode.main, ["--config=photos_t2i", "--out={}"], "--out"),
        (pairs.main, ["--workdir=x", "--out={}"], "--out"),
        (inspect.main, ["--config=photos", "--out={}"], "--out"),
        (plan.main, ["--config=digits", "--topology=cpu:8", "--json={}"], "--json"),
        (bench.main, ["data", "--json={}"], "--json"),
        (ablate.main, ["--config=ablations/objectives", "--workdir={}"], "--workdir"),
        (train.main, ["--config=digits", "--workdir={}"], "--workdir"),
    ],
)
def test_where_results_go_is_looked_at_first(main, arguments, option, tmp_path, capsys):
    """Of those commands that need no run; sampling and measuring are tested where a run is."""
    (tmp_path / "file").write_text("no folder")
    error = told(main, [argument.format(tmp_path / "file" / "below") for argument in arguments], capsys)
    assert error.startswith(f"error: {option} is '{tmp_path}/file/below") and f"{tmp_path}/file is none" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
