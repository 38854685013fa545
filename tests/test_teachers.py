"""Frozen teachers: never changed, saved or donated; the same on every mesh; known again; refused if they do not fit."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax.traverse_util import unflatten_dict

from tests.made_up import contents, one_device, workdir
from tim_jax import ablate, convert, sample
from tim_jax import config as configuration
from tim_jax import train as command
from tim_jax.ablation.settings import Ablation
from tim_jax.command_line import load_config
from tim_jax.plan import __main__ as planner
from tim_jax.plan.memory import Memory, shard_bytes
from tim_jax.plan.topologies import topology
from tim_jax.start import first_state
from tim_jax.teachers import check_same, record, with_teachers
from tim_jax.training import checksums, names, sharding, warm_start
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer
from tim_jax.transitions.derivative import query
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives import OBJECTIVES
from tim_jax.types import Query

STUDENT = {
    "objective.name": "taught", "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8",
    "model.encoder_depth": "1", "model.patch_size": "4", "data.batch_size": "16", "training.steps": "2",
    "training.log_every": "1", "training.sample_steps": "(1,)", "optimizer.warmup_steps": "0",
    "optimizer.weight_decay": "0.0", "ema.slow": "0.5",
}  # fmt: skip
# Another width, depth and patch size than the student's.
TEACHER = STUDENT | {
    "objective.name": "flow_matching", "model.width": "32", "model.depth": "2", "model.patch_size": "2",
    "model.dropout": "0.5", "data.features_width": "3", "training.remat": "full",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Taught(Objective):
    """F is drawn to the teacher's, less a tenth of the weaker's; that of the score to the row itself, `scale` times."""

    asks: tuple[str, ...] = ("teacher",)
    beside: tuple[str, ...] = ()
    group: int = 1
    scale: float = 1.0
    learns_from = property(lambda self: self.asks)
    parts = property(lambda self: self.beside)
    row_group = property(lambda self: self.group)

    def loss(self, nets, rows, t, r, step, key=None):
        asked = (query(self.transport, interpolate(self.transport, rows.x, rows.noise, t), t, t, rows.condition),)
        told = {name: nets[name](asked)[0].F for name in ("student", *self.asks, *self.beside)}

        def distance(F, target):
            return jnp.mean((F - jax.lax.stop_gradient(target)) ** 2, axis=(1, 2, 3))

        target = told["teacher"] - 0.1 * told.get("weaker", 0.0)
        error, zero = distance(told["student"], target), jnp.zeros_like(t)
        loss, level = error, self.transport.level(t)
        metrics = dict(error=error, denoising=error, alignment=zero, tangent=zero, t=t, r=t)
        metrics |= dict(level_t=level, level_r=level)
        for part in self.beside:
            metrics[part] = distance(told[part], rows.x)
            loss = loss + self.scale * metrics[part]
        return loss, metrics


def taught(**fields):
    return lambda transport: Taught(transport, OBJECTIVES["flow_matching"](transport).times, **fields)


@pytest.fixture(autouse=True)
def objectives(monkeypatch):
    for name, fields in {
        "taught": {}, "taught_away": dict(asks=("teacher", "weaker")), "in_fours": dict(group=4),
        "scored": dict(beside=("score",)), "scored_loudly": dict(beside=("score",), scale=1e4),
    }.items():  # fmt: skip
        monkeypatch.setitem(OBJECTIVES, name, taught(**fields))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A workdir with a teacher at step 0."""
    return workdir(tmp_path_factory.mktemp("teacher") / "run", "digits_flow_matching", **TEACHER)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One with the student's own network."""
    made = STUDENT | {"objective.name": "flow_matching"}
    return workdir(tmp_path_factory.mktemp("small") / "run", "digits_flow_matching", **made)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def changed(changes):
    return STUDENT | {name.replace("__", "."): str(value) for name, value in changes.items()}


def make_run(devices=1, **changes):
    config = load_config("digits_flow_matching", changed(changes))
    return configuration.build(config, jax.local_devices()[:devices])


def batch_of(run):
    return sharding.put_batch(run.mesh, configuration.made_up_batch(run.config, run.config.data.batch_size))


def train(folder, data, *arguments, **changes):
    """The real command, on one device."""
    flags = [f"--config.{name}={text}" for name, text in changed(changes).items()]
    with one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "can_draw", lambda run: False)
        command.main(
            ["--config=digits_flow_matching", f"--workdir={folder}", f"--config.loader.directory={data}", *flags]
            + list(arguments)
        )


def refused(folder, data, capsys, *arguments, **changes):
    """The one line of the command's error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(folder, data, *arguments, **changes)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(error.splitlines()) == 1, error
    return error


def copied(source, to, step=0, **changes):
    """A copy of a workdir whose checkpoint, which gets a manifest again, records other values of its configuration."""
    shutil.copytree(source, to)
    folder = to / "checkpoints" / "0"
    (file,) = (path for path in (folder / "record").rglob("*") if path.is_file() and b'"config"' in path.read_bytes())
    record = json.loads(file.read_text())
    for key, value in changes.items():
        section, name = key.split("__")
        assert record["config"][section][name] != value
        record["config"][section][name] = value
    file.write_text(json.dumps(record))
    (folder / "manifest-0-of-1.sha256").unlink()
    checksums.write(epath.Path(folder))
    folder.rename(folder.with_name(str(step)))
    return to


def buffers(tree):
    return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for shard in x.addressable_shards]


def asked(run, name="teacher"):
    """F of a frozen network of the run on made-up rows, on the host."""
    batch = batch_of(run)
    time = jnp.full(len(batch["x"]), 0.4)
    net = run.trainer.step.nets[name]
    with jax.set_mesh(run.mesh):
        ask = jax.jit(lambda params: net(params)((Query(batch["x"], time, time, {"label": batch["label"]}),))[0].F)
        return jax.device_get(ask(run.trainer.frozen_params[name]))


def three_steps(run, state):
    """The state after three steps, on the host, and their metrics."""
    history = []
    for _ in range(3):
        state, metrics = run.trainer(state, batch_of(run))
        history.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def after_three_steps(teacher):
    """A run with a teacher, its state after three steps and their metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "taught", taught())
        run = with_teachers(make_run(teacher__weights=teacher))
        params = run.trainer.frozen_params["teacher"]
        before, lies = jax.device_get(params), buffers(params)
        end, history = three_steps(run, run.trainer.create())
    assert run.trainer.frozen_params["teacher"] is params and buffers(params) == lies
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), before)
    return run, end, history


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_a_teacher_is_asked_and_never_changed_or_saved(teacher, after_three_steps, tmp_path, data, capsys):
    run, end, history = after_three_steps
    assert len({told["loss"] for told in history}) == 3 and history[0]["loss"] > 0
    assert set(end.params) == {"student"} and set(end.emas) == {"slow"}
    before, batch = jax.device_get(run.trainer.frozen_params["teacher"]), batch_of(run)

    # What is asked is the network of the teacher's own run, with the weights of its average.
    saved = warm_start.find(str(teacher), "start.weights")
    with one_device():
        own = configuration.build(load_config("digits_flow_matching", TEACHER))
    abstract = names.by_name(own.trainer.abstract.emas["slow"])
    weights = warm_start.read_weights(saved, "slow", abstract)
    kept = names.by_name(before)
    left_out = {name for name in abstract if name.startswith("projector")}
    assert kept.keys() == abstract.keys() - left_out and left_out, "what training alone needed is not read"
    for name in kept:
        np.testing.assert_array_equal(kept[name], weights[name])
    time, tree = jnp.full(16, 0.4), unflatten_dict(weights, sep="/")
    (output,) = own.network.apply({"params": tree}, (Query(batch["x"], time, time, {"label": batch["label"]}),))
    assert np.abs(asked(run)).max() > 0.1
    np.testing.assert_allclose(asked(run), output.F, atol=1e-5)

    # Nor does a checkpoint hold any of it, while it says what it was.
    train(tmp_path / "run", data, teacher__weights=teacher)
    found = warm_start.find(str(tmp_path / "run"), "--workdir")
    with warm_start._opened(found.directory, whole=False) as manager:
        tree = manager.item_metadata(found.step)["state"]
    shapes = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
    assert shapes == sorted(leaf.shape for leaf in jax.tree.leaves(run.trainer.abstract))
    record = warm_start.record(found)["teachers"]["teacher"]
    assert record["path"] == f"{teacher}/checkpoints/0" and record["which"] == "slow"
    starts = (tmp_path / "run" / "starts.jsonl").read_text()
    assert json.loads(starts)["teachers"]["teacher"] == record

    train(tmp_path / "nothing", data, "--check", teacher__weights=teacher)
    assert "one step of 16 rows" in capsys.readouterr().out and not (tmp_path / "nothing").exists()

    # A student is sampled without its teacher.
    moved = workdir_without(tmp_path / "run", "nowhere")
    with one_device():
        sample.main([f"--workdir={moved}", "--steps=1", "--labels=1", f"--out={tmp_path / 'out'}"])
    assert list((tmp_path / "out").iterdir())


def workdir_without(folder, path):
    """The workdir with a configuration whose teacher is not there."""
    config = json.loads((folder / "config.json").read_text())
    config["teacher"]["weights"] = path
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_teacher_is_sharded_like_the_student_and_says_the_same(teacher, after_three_steps):
    one, _, history = after_three_steps
    eight = with_teachers(make_run(8, mesh__data=1, mesh__fsdp=8, teacher__weights=teacher))
    np.testing.assert_allclose(asked(eight), asked(one), atol=1e-5)
    _, metrics = eight.trainer(eight.trainer.create(), batch_of(eight))
    assert float(metrics["loss"]) == pytest.approx(history[0]["loss"], rel=1e-5)
    params = names.by_name(eight.trainer.frozen_params["teacher"])
    boxed = nn.get_partition_spec(jax.eval_shape(configuration.initialiser(one.config, one.network), jax.random.key(0)))
    embedded = {name for name, spec in names.by_name(boxed).items() if "embed" in spec}
    for name, leaf in params.items():
        split = 8 if name in embedded else 1
        assert [shard.data.nbytes for shard in leaf.addressable_shards] == [leaf.nbytes // split] * 8, name
    assert sum(leaf.nbytes for name, leaf in params.items() if name in embedded) > 5e4


def test_a_teacher_in_half_the_bytes(teacher, after_three_steps):
    whole, _, _ = after_three_steps
    half = with_teachers(make_run(2, mesh__data=1, mesh__fsdp=2, teacher__weights=teacher, teacher__dtype="bfloat16"))
    params = half.trainer.frozen_params["teacher"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b).astype(jnp.bfloat16)),
        params,
        whole.trainer.frozen_params["teacher"],
    )
    a, b = asked(half), asked(whole)
    assert a.dtype == np.float32 and 1e-4 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


def test_a_network_that_is_told_its_guidance_is_told_that_there_is_none(tmp_path):
    told = TEACHER | {"objective.name": "improved_mean_flow", "data.features_width": "0"}
    folder = workdir(tmp_path / "told", "digits_flow_matching", **told)
    run = with_teachers(make_run(teacher__weights=folder))
    with one_device():
        own = configuration.build(load_config("digits_flow_matching", told))
    assert own.network.guidance_input and own.network.output_heads
    batch, time = batch_of(run), jnp.full(16, 0.4)
    saved = warm_start.find(str(folder), "start.weights")
    weights = warm_start.read_weights(saved, "slow", names.by_name(own.trainer.abstract.emas["slow"]))
    condition = {"label": batch["label"], "guidance": jnp.tile(jnp.array([[1.0, 0.0, 1.0]]), (16, 1))}
    tree = unflatten_dict(weights, sep="/")
    (output,) = own.network.apply({"params": tree}, (Query(batch["x"], time, time, condition),))
    np.testing.assert_allclose(asked(run), output.F, atol=1e-5)


def test_a_run_knows_its_teacher_again(teacher, tmp_path, data, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(teacher, moved)
    copied(teacher, other, training__steps=7)  # another byte in one file
    train(tmp_path / "run", data, teacher__weights=teacher)
    before = contents(tmp_path / "run")

    said = refused(tmp_path / "run", data, capsys, teacher__weights=other, training__steps=3)
    one, two = (checksums.fingerprint(epath.Path(folder) / "checkpoints" / "0")[:12] for folder in (other, teacher))
    assert f"teacher.weights is {other}/checkpoints/0 (fingerprint {one})" in said and one != two
    assert f"{teacher}/checkpoints/0 (fingerprint {two})" in said and "workdir" in said
    given = dict(checkpoint__resume=tmp_path / "run", training__steps=3)
    assert one in refused(tmp_path / "new", data, capsys, teacher__weights=other, **given)
    assert contents(tmp_path / "run") == before and not (tmp_path / "new").exists()

    # The same at another place, which is recorded from then on.
    train(tmp_path / "run", data, teacher__weights=moved, training__steps=3)
    saved = warm_start.find(str(tmp_path / "run"), "--workdir")
    assert saved.step == 3 and warm_start.record(saved)["teachers"]["teacher"]["path"] == f"{moved}/checkpoints/0"
    train(tmp_path / "new", data, teacher__weights=moved, **given | dict(training__steps=4))
    assert warm_start.find(str(tmp_path / "new"), "--workdir").step == 4

    # The teacher trains on: a workdir then means another checkpoint, and the one from before has to be named.
    shutil.copytree(other / "checkpoints" / "0", moved / "checkpoints" / "5")
    said = refused(tmp_path / "run", data, capsys, teacher__weights=moved, training__steps=4)
    assert f"{moved}/checkpoints/5" in said and f"{moved}/checkpoints/0" in said and "trained on" in said
    train(tmp_path / "run", data, teacher__weights=moved / "checkpoints" / "0", training__steps=4)
    assert warm_start.find(str(tmp_path / "run"), "--workdir").step == 4


def test_a_fingerprint_does_not_depend_on_who_wrote_the_manifests(tmp_path):
    found = []
    for count in (1, 3):
        folder = epath.Path(tmp_path / str(count))
        folder.mkdir()
        for name in "abcde":
            (folder / name).write_text(name)
        for process in range(count):
            checksums.write(folder, process, count)
        found.append(checksums.fingerprint(folder))
    assert found[0] == found[1] is not None
    (tmp_path / "3" / "manifest-1-of-3.sha256").unlink()
    assert checksums.fingerprint(folder) is None


def spoilt(source, to):
    """A copy of a workdir whose checkpoint lost its checksums."""
    shutil.copytree(source, to)
    (to / "checkpoints" / "0" / "manifest-0-of-1.sha256").unlink()
    return to


@pytest.mark.parametrize(
    "recorded, changes, named",
    [
        ({}, dict(teacher__weights=""), ["teacher.weights is ''", "'taught' learns from a teacher", "checkpoints"]),
        ({}, dict(teacher__weights="nowhere"), ["teacher.weights is 'nowhere'", "a workdir with a checkpoint"]),
        ({}, dict(teacher__which="fast"), ["teacher.which is 'fast'", "student, slow"]),
        ({}, dict(teacher__dtype="float8"), ["teacher.dtype is 'float8'", "float32, bfloat16"]),
        (dict(transport__name="vp"), {}, ["transport.name is 'vp'", "must be 'ot_fm'"]),
        (
            dict(transport__name="edm", transport__sigma_d=0.7),
            dict(transport__name="edm", objective__weight_scale="time"),
            ["transport.sigma_d is 0.7", "must be 0.5"],
        ),
        (dict(data__height=16), {}, ["data.height is 16", "must be 8"]),
        (dict(data__width=16), {}, ["data.width is 16", "must be 8"]),
        (dict(data__channels=4), {}, ["data.channels is 4", "must be 1"]),
        (dict(model__condition="text"), {}, ["model.condition is 'text'", "must be 'class'"]),
        (dict(model__num_classes=12), {}, ["model.num_classes is 12", "must be 10"]),
        (dict(times__share_equal=0.0), {}, ["times.share_equal is 0", "r = t"]),
        (dict(objective__name="gone"), {}, ["objective.name is 'gone'"]),
        (dict(model__width=16), {}, ["k_norm/bias is (2, 8)", "by its own configuration"]),
        (None, {}, ["checksums are missing", "checkpoints/0"]),
        (
            {},
            dict(objective__name="flow_matching"),
            ["teacher.weights is ", "no effect", "'flow_matching'", "asks no teacher"],
        ),
        (
            {},
            dict(objective__name="flow_matching", teacher__weights="", teacher__guidance=2.0),
            ["teacher.guidance is 2.0", "no effect", "asks no teacher"],
        ),
        ({}, dict(teacher__guidance_low=0.2), ["teacher.guidance_low is 0.2", "teacher.guidance is 1"]),
        ({}, dict(teacher__weaker="there"), ["teacher.weaker is 'there'", "teacher.guidance is 1"]),
        (
            {},
            dict(teacher__guidance=2.0, teacher__weaker_which="student"),
            ["teacher.weaker_which is 'student'", "teacher.weaker is ''"],
        ),
        ({}, dict(objective__name="taught_away"), ["teacher.weaker is ''", "learns from a teacher"]),
        (
            {},
            dict(objective__name="taught_away", teacher__guidance=2.0, teacher__weaker="nowhere"),
            ["teacher.weaker is 'nowhere'", "a workdir with a checkpoint"],
        ),
        ({}, dict(objective__name="in_fours", data__batch_size=6), ["data.batch_size is 6", "4 rows of a group"]),
    ],
)
def test_what_does_not_fit_is_one_line_and_touches_nothing(recorded, changes, named, teacher, tmp_path, data, capsys):
    folder = tmp_path / "teacher"
    made = spoilt(teacher, folder) if recorded is None else copied(teacher, folder, **recorded)
    given = {"teacher__weights": made} | changes
    for arguments in ([], ["--check"]):
        error = refused(tmp_path / "run", data, capsys, *arguments, **given)
        for word in named:
            assert word in error, error
    assert not (tmp_path / "run").exists()


def test_an_average_has_a_name_of_its_own():
    config = load_config("digits_flow_matching", changed({}))
    config.ema.teacher = 0.5
    with pytest.raises(ValueError, match="^ema.teacher: .* another network of that name"):
        configuration.build(config)


def test_a_text_teacher_must_read_the_same_text(tmp_path):
    text = {"model.condition": "text", "data.text_width": "8", "data.text_tokens": "5"}
    folder = workdir(tmp_path / "text", "digits_flow_matching", **TEACHER | text)
    changes = {key.replace(".", "__"): value for key, value in text.items()} | dict(teacher__weights=folder)
    run = with_teachers(make_run(**changes))
    rows = configuration.batch_spec(run.config, 16, (8, 8))
    run.trainer.trace(sharding.abstract_batch(run.mesh, rows))
    for key, value in (("data.text_width", "6"), ("codecs.text_states", "second_to_last")):
        with pytest.raises(ValueError, match=f"its {key} is .*as this run's"):
            with_teachers(make_run(**changes | {key.replace(".", "__"): value}))


def test_an_ablation_names_the_variant_whose_teacher_is_missing():
    config = load_config("digits_flow_matching", STUDENT | {"objective.name": "flow_matching"})
    ablation = Ablation(config, {"distilled": {"objective.name": "taught"}}, sampler_steps=(1,))
    with pytest.raises(ValueError, match="^variant 'distilled': teacher.weights is ''"):
        ablate.validate(ablation)


def test_a_weaker_teacher_is_one_more(teacher, small, data, tmp_path):
    given = dict(objective__name="taught_away", teacher__weights=teacher, teacher__guidance=2.0)
    given |= dict(teacher__weaker=small, teacher__weaker_which="student")
    train(tmp_path / "run", data, **given)
    saved = warm_start.find(str(tmp_path / "run"), "--workdir")
    recorded = warm_start.record(saved)["teachers"]
    assert {name: (about["path"], about["which"]) for name, about in recorded.items()} == {
        "teacher": (f"{teacher}/checkpoints/0", "slow"), "weaker": (f"{small}/checkpoints/0", "student"),
    }  # fmt: skip
    # One less, or one more, is another teaching.
    one, two = with_teachers(make_run(teacher__weights=teacher)), with_teachers(make_run(**given))
    with pytest.raises(ValueError, match=f"^teacher.weaker is '', but {saved} learnt from {small}/checkpoints/0 "):
        check_same(one, {"teachers": recorded}, saved)
    with pytest.raises(ValueError, match=f"^teacher.weaker is {small}/checkpoints/0 .*, but {saved} learnt from ''"):
        check_same(two, record(one), saved)
    check_same(two, {"teachers": recorded}, saved)
    check_same(two, {}, saved)  # weights that were imported have learnt from none


def test_a_score_learns_beside_the_student_and_does_not_move_it(teacher, after_three_steps):
    run = with_teachers(make_run(objective__name="scored_loudly", teacher__weights=teacher))
    state = run.trainer.create()
    first = jax.device_get(state.params["score"])
    jax.tree.map(np.testing.assert_array_equal, first, state.params["student"])
    end, history = three_steps(run, state)
    _, alone, alone_history = after_three_steps
    assert set(end.params) == {"student", "score"} and set(end.emas) == {"slow"}
    assert history[0]["grad_norm_score"] > 100 * history[0]["grad_norm"], "else clipping would have nothing to tell"
    for name in ("grad_norm", "update_norm"):
        assert [told[name] for told in history] == pytest.approx([told[name] for told in alone_history], rel=1e-4)
    assert_close((end.params["student"], end.emas), (alone.params["student"], alone.emas))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), end.params["score"], first)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert history[0]["score"] > 0
    assert "score" not in alone_history[0] and "grad_norm_score" not in alone_history[0]
    places = [[leaf.sharding for leaf in jax.tree.leaves(run.trainer.abstract.params[part])] for part in end.params]
    assert places[0] == places[1]


def test_a_score_starts_as_the_student_does(teacher, small, tmp_path):
    run = with_teachers(make_run(objective__name="scored", teacher__weights=teacher, start__weights=small))
    state = first_state(run, epath.Path(tmp_path / "run"))()
    saved, abstract = warm_start.find(str(small), "start.weights"), names.by_name(run.trainer.abstract.params["score"])
    read = warm_start.read_weights(saved, "slow", abstract)
    for tree in (*state.params.values(), state.emas["slow"]):
        jax.tree.map(np.testing.assert_array_equal, names.by_name(tree), read)
    lies = buffers(state)
    assert len(set(lies)) == len(lies), "a step donates all of them"

    # Imported weights, too.
    convert.fill(run, state.params["student"], "nothing", epath.Path(tmp_path / "imported"))
    with warm_start._opened(epath.Path(tmp_path / "imported" / "checkpoints"), whole=False) as manager:
        assert set(manager.item_metadata(0)["state"]["params"]) == {"student", "score"}


@pytest.mark.parametrize("settings", [{}, dict(name="muon"), dict(frozen=("b",)), dict(rates=(("a", 2.0),))])
def test_every_part_is_optimized_as_if_it_were_alone(settings):
    rng = np.random.default_rng(0)
    settings = OptimizerSettings(**settings, clip=1.0, learning_rate=0.1)

    def tree(scale):
        return {"a": jnp.asarray(scale * rng.standard_normal((2, 3)), jnp.float32), "b": jnp.full(4, scale)}

    params = {"student": tree(1.0), "score": tree(1.0)}
    grads = {"student": tree(10.0), "score": tree(1e5)}
    both = make_optimizer(settings, ("student", "score"))
    updates, state = both.update(grads, both.init(params), params)
    for part in params:
        alone = make_optimizer(settings, (part,))
        expected, _ = alone.update({part: grads[part]}, alone.init({part: params[part]}), {part: params[part]})
        jax.tree.map(np.testing.assert_array_equal, updates[part], expected[part])
    rated = optax.tree.norm(updates["student"]["a"]) / optax.tree.norm(updates["score"]["a"])
    assert 0.1 < rated < 10


def test_the_memory_of_the_optimizer_is_where_it_was():
    """As checkpoints of before have it: clipping, then each part."""
    params = {"student": {"a": jnp.zeros(3)}}
    settings = OptimizerSettings(clip=1.0)
    update = optax.adamw(optax.constant_schedule(settings.learning_rate), b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.01)
    before = optax.chain(optax.clip_by_global_norm(1.0), optax.partition({"student": update}, {"student": "student"}))
    found = make_optimizer(settings).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(before.init(params))


def test_the_planner_counts_what_a_teacher_needs(teacher, capsys, tmp_path):
    small = changed(dict(mesh__data=2, mesh__fsdp=4, teacher__weights=teacher))
    run = with_teachers(configuration.build(load_config("digits_flow_matching", small), jax.local_devices()))
    leaves = jax.tree.leaves(run.trainer.frozen_params)
    here = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device.id == 0)
    assert shard_bytes(run.trainer.abstract_frozen) == here < sum(leaf.nbytes for leaf in leaves)

    # A configuration in the place of weights that are not there.
    file = tmp_path / "teacher.py"
    file.write_text(
        "from tim_jax import command_line\n"
        f"def get_config():\n    return command_line.load_config('digits_flow_matching', {TEACHER!r})\n"
    )
    flags = [f"--config.{name}={text}" for name, text in small.items() if name != "teacher.weights"]
    main = ["--config=digits_flow_matching", "--topology=cpu:8,cpu:8", *flags]
    assert planner.main([*main, f"--teacher={file}", f"--json={tmp_path / 'plan.json'}"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"  teachers     {here / 2**30:9.3f}\n") == 2
    assert any("averages" in line and "teachers" in line for line in out.splitlines()), "the table of comparison"
    plan = json.loads((tmp_path / "plan.json").read_text())[0]
    assert plan["memory"]["teachers"] == here
    assert plan["memory"]["total"] == sum(plan["memory"][field.name] for field in dataclasses.fields(Memory))

    for arguments, words in (
        ([], ["--teacher: missing", "'taught' learns from a teacher"]),
        ([f"--teacher={file}", "--config.objective.name=flow_matching"], ["asks no teacher", "--teacher is"]),
        ([f"--teacher={file}", "--config.data.channels=3"], ["--teacher is", "data.channels is 1", "must be 3"]),
    ):
        with pytest.raises(SystemExit) as stop:
            planner.main(main + arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        for word in words:
            assert word in error, error
    found = planner.models_of(run.config, None, topology("cpu:8"))
    assert found["teacher"].config.model.width == 32, "the weights' own configuration where there is no other"
