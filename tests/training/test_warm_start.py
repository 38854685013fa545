"""What a run starts from, and on what it goes on: the order, other meshes, parts, frozen parts and rates."""

import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tests.helpers.workdirs import told
from tim_jax import train as command
from tim_jax.config import identity
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import workdir
from tim_jax.runs.start import first_state
from tim_jax.training import checkpoints, names, sharding, warm_start
from tim_jax.training.nets import make_nets
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, scale_by_name

SMALL = {
    "model.width": "32", "model.depth": "2", "model.heads": "2", "model.bottleneck": "16", "model.encoder_depth": "1",
    "model.patch_size": "4", "data.batch_size": "16", "training.sample_steps": "(1,)", "training.sample_every": "0",
    "model.remat": "none",
    "training.steps": "3", "optimizer.decay_steps": "6", "training.log_every": "1", "optimizer.warmup_steps": "0",
    "ema.slow": "0.5",
}  # fmt: skip


def flags(**changes):
    texts = SMALL | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return [f"--config.{name}={text}" for name, text in texts.items()]


def make_run(devices=1, **changes):
    overrides = SMALL | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return build(load_config("digits", overrides), jax.local_devices()[:devices])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(workdir, **changes): a real run on one device."""
    data = tmp_path_factory.mktemp("data")

    def train(workdir, **changes):
        directory = f"--config.loader.directory={data}"
        command.main(["--config=digits", f"--workdir={workdir}", directory, *flags(**changes)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
        yield train


@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    """The workdir of a run of 3 steps."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    train(workdir)
    return workdir


def final(workdir, **changes):
    """The last state of a workdir, on the host."""
    manager = checkpoints.open_manager(epath.Path(workdir), 2)
    state = checkpoints.restore(manager, make_run(**changes).trainer.abstract)
    manager.close()
    return jax.device_get(state)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def fails(workdir, train, capsys, **changes):
    """The one line of an error, which leaves no trace on disk."""
    error = told(lambda words: train(workdir, **changes), [], capsys)
    assert not workdir.exists()
    return error


def steps_logged(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


@pytest.mark.nightly
def test_a_run_starts_from_its_own_checkpoint_then_the_named_one_then_weights_then_scratch(
    train, source, tmp_path, capsys
):
    scratch = jax.device_get(make_run().trainer.create().params["online"])
    learnt = final(source)
    reach = 1.02 * 1e-3  # adamw's first step moves every weight by the learning rate, and by its decay, at most

    # With nothing named, from scratch.
    train(tmp_path / "whole", training__steps=5)
    assert steps_logged(tmp_path / "whole") == [1, 2, 3, 4, 5]
    assert 0 < largest_difference(final(tmp_path / "whole").params["online"], scratch) < 5 * reach

    # Weights: from step 0, one step away from where the other run ended.
    warm = {"start__checkpoint": source, "start__ema": "online"}
    train(tmp_path / "warm", training__steps=1, **warm)
    begun = final(tmp_path / "warm")
    assert "starts with 40 of 40 parameters" in capsys.readouterr().out
    assert steps_logged(tmp_path / "warm") == [1] and int(begun.step) == 1
    assert 0 < largest_difference(begun.params["online"], learnt.params["online"]) < reach
    assert largest_difference(scratch, learnt.params["online"]) > reach, "else the two would not be told apart"

    # The named one, with step and optimizer: bit-equal with the run that never stopped.
    train(tmp_path / "named", training__steps=5, checkpoint__resume=source)
    assert f"goes on from {source}/checkpoints/3" in capsys.readouterr().out
    assert steps_logged(tmp_path / "named") == [4, 5]
    assert_equal(final(tmp_path / "named"), final(tmp_path / "whole"))

    # The named one before weights.
    run = make_run(checkpoint__resume=f"{tmp_path}/warm/checkpoints/1", **warm)
    assert_equal(jax.device_get(first_state(run, epath.Path(tmp_path / "both"))()), begun)

    # Its own before all others, even where those are gone.
    train(tmp_path / "named", training__steps=6, checkpoint__resume=tmp_path / "nowhere")
    assert steps_logged(tmp_path / "named") == [4, 5, 6]


@pytest.mark.slow
def test_a_workdir_without_a_finished_checkpoint_still_starts_warm(source, tmp_path):
    run = make_run(start__checkpoint=source)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    state = jax.device_get(first_state(run, epath.Path(tmp_path / "run"))())
    assert_equal(state.params["online"], final(source).emas["slow"])
    assert_equal(state.emas["slow"], state.params["online"])
    assert int(state.step) == 0
    fresh = jax.device_get(make_run().trainer.create())
    assert_equal(state.opt_state, fresh.opt_state)


@pytest.mark.nightly
def test_a_state_moves_over_meshes_and_back_bit_equal(tmp_path):
    """Also to fewer devices than those that the checkpoint was written from, and to more."""
    rng, first = np.random.default_rng(0), None
    meshes = [((8, 1, 1), 8), ((1, 8, 1), 8), ((2, 2, 2), 8), ((1, 1, 1), 1), ((1, 2, 2), 4)]
    for number, ((data, fsdp, tensor), devices) in enumerate(meshes):
        abstract = make_run(devices, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor).trainer.abstract
        if first is None:
            first = jax.tree.map(lambda leaf: rng.normal(0, 100, leaf.shape).astype(leaf.dtype), abstract)
            state = jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, abstract))
        else:
            state = warm_start.resume(warm_start.find(str(tmp_path / str(number - 1)), "checkpoint.resume"), abstract)
        assert_equal(jax.device_get(state), first)
        assert all(jax.tree.leaves(jax.tree.map(lambda leaf, like: leaf.sharding == like.sharding, state, abstract)))
        kernel = state.params["online"]["blocks"]["attn"]["qkv"]["kernel"]  # over fsdp by width, over tensor by heads
        assert kernel.addressable_shards[0].data.size == kernel.size // (fsdp * tensor)
        manager = checkpoints.open_manager(epath.Path(tmp_path / str(number)), 1)
        saver = checkpoints.Saver(manager)
        saver.save(1, state, {})
        saver.close()


@pytest.mark.nightly
def test_a_new_label_table_and_another_resolution(source, tmp_path):
    changes = dict(
        start__checkpoint=source, start__reinitialise="('label_embedder',)", model__num_classes=12, data__height=16
    )
    run = make_run(**changes)
    state = first_state(run, epath.Path(tmp_path / "run"))()
    before, fresh = final(source).emas["slow"], make_run(model__num_classes=12).trainer.create()
    found, there = (names.by_name(jax.device_get(tree)) for tree in (state.params["online"], before))
    for name, leaf in found.items():
        if name == "label_embedder/table":
            assert leaf.shape == (13, 32)
            np.testing.assert_array_equal(leaf, fresh.params["online"]["label_embedder"]["table"])
        else:
            np.testing.assert_array_equal(leaf, there[name])
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, 16))
    state, metrics = run.trainer(state, batch)
    assert batch["x"].shape == (16, 16, 8, 1) and int(state.step) == 1 and math.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_started_from(source, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    steps = epath.Path(tmp_path / "run" / "checkpoints")
    shutil.copytree(steps / "3", steps / "5")
    data = max(
        (path for path in pathlib.Path(steps / "5").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    assert warm_start.latest(epath.Path(tmp_path / "run")).step == 5
    assert warm_start.find(str(tmp_path / "run"), "start.checkpoint").step == 3
    with pytest.raises(
        ValueError, match=f"^start.checkpoint is '.*5'; it must be a checkpoint that can be used: .*{data.name} is al"
    ):
        warm_start.find(str(steps / "5"), "start.checkpoint")


@pytest.mark.slow
def test_weights_start_on_the_shardings_of_another_mesh(source, tmp_path):
    run = make_run(8, mesh__data=1, mesh__fsdp=4, mesh__tensor=2, start__checkpoint=source)
    state = first_state(run, epath.Path(tmp_path / "run"))()
    placed = jax.tree.map(lambda leaf, like: leaf.sharding == like.sharding, state, run.trainer.abstract)
    assert all(jax.tree.leaves(placed))
    assert_equal(jax.device_get(state.params["online"]), final(source).emas["slow"])


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(start__checkpoint="{}/nowhere"), ["start.checkpoint", "nowhere", "checkpoints/STEP"]),
        (dict(start__checkpoint="{}/run/checkpoints/7"), ["start.checkpoint", "checkpoints/7"]),
        (dict(checkpoint__resume="{}/nowhere"), ["checkpoint.resume", "nowhere", "checkpoints/STEP"]),
        (
            dict(checkpoint__resume="{}/run", optimizer__learning_rate=0.5),
            ["optimizer.learning_rate is 0.5", "checkpoints/3", "0.001"],
        ),
        (dict(start__checkpoint="{}/run", start__ema="fast"), ["start.ema", "fast", "online, slow"]),
        (
            dict(start__checkpoint="{}/run", start__reinitialise="('label_embeder',)"),
            ["start.reinitialise", "'label_embeder'", "label_embedder"],
        ),
        (dict(start__checkpoint="{}/run", start__reinitialise="(7,)"), ["start.reinitialise is (7,)", "('name',)"]),
        (
            dict(start__checkpoint="{}/run", start__reinitialise="('*',)"),
            ["start.reinitialise", "must leave something to take"],
        ),
        (
            dict(start__checkpoint="{}/run", model__num_classes=12),
            ["start.checkpoint", "label_embedder/table is (11, 32) there and (13, 32) here", "start.reinitialise"],
        ),
        (
            dict(start__checkpoint="{}/run", model__separate_interval_embedder=False),
            ["delta_embedder/in/kernel is there alone", "start.reinitialise"],
        ),
        (dict(start__checkpoint="{}/run", data__features_width=8), ["projector/in/kernel is not there", "2 more"]),
        (dict(start__ema="online"), ["start.ema", "no effect", "start.checkpoint"]),
        (dict(start__reinitialise="('blocks',)"), ["start.reinitialise", "no effect", "start.checkpoint"]),
        (dict(optimizer__frozen="('block',)"), ["optimizer.frozen", "'block'", "blocks"]),
        (dict(optimizer__frozen="('*',)"), ["optimizer.frozen", "must leave something to train"]),
        (
            dict(optimizer__learning_rate_factors="(('lable_embedder', 2.0),)"),
            ["optimizer.learning_rate_factors", "lable_embedder", "label_embedder"],
        ),
        (
            dict(optimizer__learning_rate_factors="('label_embedder', 2.0)"),
            ["optimizer.learning_rate_factors", "(('name', 0.5),)"],
        ),
        (
            dict(optimizer__learning_rate_factors="(('blocks', 0.0),)"),
            ["optimizer.learning_rate_factors", "above 0", "optimizer.frozen"],
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_touched(changes, named, train, source, tmp_path, capsys):
    before = sorted(source.rglob("*"))
    changes = {key: str(value).replace("{}", str(source.parent)) for key, value in changes.items()}
    error = fails(tmp_path / "run", train, capsys, **changes)
    for word in named:
        assert word in error, error
    assert sorted(source.rglob("*")) == before


def test_what_a_run_started_from_may_not_change_in_its_workdir():
    before = make_run(start__checkpoint="there").config
    for changes in (dict(), dict(start__checkpoint="there", start__reinitialise="('blocks',)")):
        with pytest.raises(ValueError, match=r"^start.(checkpoint|reinitialise) is "):
            identity.compare(workdir.to_json(before), make_run(**changes).config, "WORKDIR")
    named = make_run(start__checkpoint="there", checkpoint__resume="elsewhere").config
    identity.compare(workdir.to_json(before), named, "WORKDIR")


@pytest.mark.slow
def test_frozen_parts_stay_bit_equal_and_have_no_optimizer_memory(source, tmp_path):
    frozen = ("blocks", "*_embedder/in/bias")
    run = make_run(start__checkpoint=source, optimizer__frozen=frozen, optimizer__weight_decay=0.1)
    state = first_state(run, epath.Path(tmp_path / "run"))()
    before = names.by_name(jax.device_get(state.params["online"]))
    batch = made_up_batch(run.config, 16)
    for _ in range(3):
        state, _ = run.trainer(state, sharding.put_batch(run.mesh, batch))
    after, slow = (names.by_name(jax.device_get(tree)) for tree in (state.params["online"], state.emas["slow"]))
    still = {key for key in before if names.matches(key, frozen)}
    assert {key.split("/")[0] for key in still} == {"blocks", "t_embedder", "delta_embedder"}
    for key, value in before.items():
        assert (value.tobytes() == after[key].tobytes()) == (key in still), key
        assert (value.tobytes() == slow[key].tobytes()) == (key in still), key
    assert slots(state.opt_state) == sorted(2 * [key for key in before if key not in still])

    # Such a state is saved and restored, too.
    manager = checkpoints.open_manager(epath.Path(tmp_path / "run"), 1)
    saver = checkpoints.Saver(manager)
    saver.save(3, state, {})
    saver.wait()
    assert_equal(jax.device_get(checkpoints.restore(manager, run.trainer.abstract)), jax.device_get(state))
    saver.close()


def slots(opt_state):
    """For every array that an optimizer remembers of a parameter, that parameter."""
    arrays = (names.name_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state) if leaf.ndim)
    return sorted(name.split("/online/")[-1] for name in arrays if not name.endswith("/ns_coeffs"))


def test_muon_has_no_memory_for_frozen_parts():
    run = make_run(optimizer__name="muon", optimizer__frozen="('blocks/attn', 'patch')")
    parameters = names.by_name(run.trainer.abstract.params["online"])
    trained = [key for key in parameters if not key.startswith(("blocks/attn/", "patch/"))]
    once = [key for key in trained if key.startswith("blocks/") and key.endswith("/kernel")]
    assert len(once) == 6
    assert slots(run.trainer.abstract.opt_state) == sorted(trained + [key for key in trained if key not in once])


@pytest.mark.parametrize("name, count", [("adamw", 80), ("muon", 71)])
def test_an_optimizer_remembers_of_a_parameter_where_that_lies(name, count):
    abstract = make_run(4, mesh__data=1, mesh__fsdp=2, mesh__tensor=2, optimizer__name=name).trainer.abstract
    lies = {key: leaf.sharding for key, leaf in names.by_name(abstract.params["online"]).items()}
    memory = [
        (names.name_of(path).split("/online/")[-1], leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state)
        if leaf.ndim and names.name_of(path).split("/online/")[-1] in lies
    ]
    assert len(memory) == count and all(leaf.sharding == lies[key] for key, leaf in memory)
    assert any(not sharding.is_fully_replicated for sharding in lies.values())


def test_frozen_parts_take_no_share_in_the_clipped_norm():
    params = {"online": {"a": jnp.zeros(3), "b": jnp.zeros(4)}}
    grads = {"online": {"a": jnp.full(3, 30.0), "b": jnp.full(4, 4e6)}}
    tx = make_optimizer(OptimizerSettings(clip=100.0, frozen=("b",)))
    alone = make_optimizer(OptimizerSettings(clip=100.0))
    (updates, _), (expected, _) = tx.update(grads, tx.init(params), params), alone.update(
        {"online": {"a": grads["online"]["a"]}}, alone.init({"online": {"a": params["online"]["a"]}}),
        {"online": {"a": params["online"]["a"]}},
    )  # fmt: skip
    np.testing.assert_array_equal(updates["online"]["a"], expected["online"]["a"])
    np.testing.assert_array_equal(updates["online"]["b"], jnp.zeros(4))


class Product:
    """a · b, in place of a network."""

    to_F = None

    def clone(self, **fields):
        return self

    def apply(self, variables, queries, hidden=False):
        return variables["params"]["a"]["w"] * variables["params"]["b"]["w"] * queries


def test_frozen_parts_get_no_gradient():
    params = {"a": {"w": 3.0}, "b": {"w": 5.0}}
    for frozen, expected in (((), (10.0, 6.0)), (("a",), (0.0, 6.0))):
        nets = make_nets(Product(), frozen=frozen)
        grads = jax.grad(lambda params: nets["online"](params)(2.0))(params)
        assert (grads["a"]["w"], grads["b"]["w"]) == expected


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_multiply_the_learning_rate_of_their_parts(name):
    """Powers of two, so that the products are exact; weight decay is part of the update."""
    rng = np.random.default_rng(0)
    params = {"online": {"blocks": {"up": {"kernel": jnp.asarray(rng.standard_normal((2, 8, 8)), jnp.float32)}},
                          "label_embedder": {"table": jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)},
                          "patch": {"bias": jnp.ones(8)}}}  # fmt: skip
    grads = jax.tree.map(jnp.cos, params)
    given = dict(name=name, learning_rate=0.1, weight_decay=0.1)
    plain = make_optimizer(OptimizerSettings(**given))
    rated = make_optimizer(
        OptimizerSettings(**given, learning_rate_factors=(("label_embedder", 4.0), ("blocks", 0.5), ("*", 1.0)))
    )
    a, _ = plain.update(grads, plain.init(params), params)
    b, state = rated.update(grads, rated.init(params), params)
    expected = jax.tree.map(jnp.multiply, a, {"online": {"blocks": {"up": {"kernel": 0.5}},
                                                          "label_embedder": {"table": 4.0},
                                                          "patch": {"bias": 1.0}}})  # fmt: skip
    assert_equal(b, expected)
    memory = [leaf.shape for leaf in jax.tree.leaves(plain.init(params))]
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == memory


def test_the_first_matching_rate_counts():
    tx = optax.chain(optax.sgd(1.0), scale_by_name((("a/b", 2.0), ("a", 3.0))))
    params = {"part": {"a": {"b": jnp.ones(1), "c": jnp.ones(1)}, "ab": jnp.ones(1)}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert_equal(updates["part"], {"a": {"b": -2 * jnp.ones(1), "c": -3 * jnp.ones(1)}, "ab": -jnp.ones(1)})


def test_patterns():
    known = ["blocks/mlp/up/kernel", "blocks/mlp/up/bias", "label_embedder/table"]
    found = {pattern: [name for name in known if names.matches(name, (pattern,))] for pattern in
             ("blocks", "block", "blocks/", "*/bias", "label_embedder/table", "blocks/*/kernel", "")}  # fmt: skip
    assert found == {
        "blocks": known[:2], "block": [], "blocks/": [], "*/bias": [known[1]], "label_embedder/table": [known[2]],
        "blocks/*/kernel": [known[0]], "": [],
    }  # fmt: skip
