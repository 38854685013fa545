"""Silent corruption: single bits that are flipped on one device are found, and named, and the run goes back."""

import contextlib
import dataclasses
import functools
import json
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers.configs import tiny_config
from tim_jax.bench.flips import Broken, WrongOnce, flipped
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.training import corruption
from tim_jax.training.array_checksums import checksum, checksums, odd_against, odd_copies, share_with_copies
from tim_jax.training.corruption import Corrupted, Excluded, Guard, RepeatedCorruption, sound
from tim_jax.training.mesh import make_mesh
from tim_jax.training.settings import TrainingSettings
from tim_jax.training.sharding import put_batch
from tim_jax.training.trainer import Trainer


def mixed(values):
    """The checksum as its definition has it, in Python's own integers."""
    total = 0
    for i, word in enumerate(np.ravel(values).view(f"u{values.itemsize}").tolist()):
        word ^= i * 0x9E3779B1 % 2**32
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        total += word ^ word >> 16
    return total % 2**32


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "uint8"])
def test_a_checksum_is_that_of_its_definition(kind):
    values = (np.random.default_rng(0).normal(size=(3, 5, 2)) * 50).astype(kind)
    assert int(checksum(jnp.asarray(values))) == mixed(values)


def test_every_bit_and_every_place_changes_a_checksum():
    values = np.array([0.0, -0.0, 1.0, -1.0, np.nan, 3e-45, np.inf, 2.0], np.float32)
    changed = np.repeat(values[None], 8 * 32, axis=0)
    for i in range(8 * 32):
        changed.view(np.uint32)[i, i // 32] ^= np.uint32(1 << i % 32)
    swapped = [np.concatenate([values[i : i + 1], values[1:i], values[:1], values[i + 1 :]]) for i in range(1, 8)]
    of_each = jax.jit(jax.vmap(checksum))(np.concatenate([values[None], changed, swapped]))
    assert len(set(np.asarray(of_each).tolist())) == 1 + 8 * 32 + 7


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1})


def placed(mesh, values, *spec):
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.fixture(scope="module")
def arrays(mesh):
    return {
        "everywhere": placed(mesh, np.arange(6, dtype=np.float16)),
        "of_four": placed(mesh, np.arange(12, dtype=np.float32).reshape(4, 3), "fsdp"),
        "of_two": placed(mesh, np.ones((8, 2), np.int32), "data"),
        "alone": placed(mesh, np.ones(8, bool), ("data", "fsdp")),
    }


@pytest.mark.parametrize(
    "name, devices, certain",
    [("everywhere", [5], True), ("of_four", [5], True), ("of_two", [4, 5], False), ("alone", [], True)],
)
def test_a_device_is_named_where_most_replicas_agree_and_two_where_there_are_two(name, devices, certain, mesh, arrays):
    before = checksums(arrays)
    assert not bool(before.differ)
    changed = arrays | {name: flipped(arrays[name], 5, 1, 0)}
    now = checksums(changed)
    odd = odd_copies(now)
    assert bool(now.differ) == bool(devices) and odd.certain == certain
    assert [mesh.devices[position].id for position in odd.positions] == devices
    assert now.names(odd.arrays) == [name] * bool(devices)
    # Against what they were, the device is known whatever others hold.
    against = checksums(changed, before)
    odd = odd_against(against.gathered(), before.gathered())
    assert bool(against.differ) and [mesh.devices[position].id for position in odd.positions] == [5]


def test_the_share_of_the_state_that_has_copies(mesh, arrays):
    bytes_with, bytes_alone = 6 * 2 + 6 * 4 + 4 * 4, 1
    assert share_with_copies(mesh, arrays) == bytes_with / (bytes_with + bytes_alone)


@dataclasses.dataclass
class Regression:
    """A trainer of weights (3,) by the mean over examples (B, 3) of w − x, and their momentum."""

    mesh: object

    @functools.cached_property
    def program(self):
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def step(state, batch):
            momentum = 0.5 * state["momentum"] + (state["w"] - batch["x"]).mean(0)
            loss = ((state["w"] - batch["x"]) ** 2).sum(-1)
            return {"w": state["w"] - 0.1 * momentum, "momentum": momentum}, {"loss": loss.mean()}, {"loss": loss}

        return jax.jit(step, out_shardings=everywhere, donate_argnums=0)

    def detailed(self, state, batch):
        with jax.numpy_rank_promotion("allow"):
            return self.program(state, batch)

    def create(self):
        return {name: placed(self.mesh, np.ones(3, np.float32)) for name in ("w", "momentum")}


@pytest.fixture(scope="module")
def trainer(mesh):
    return Regression(mesh)


@pytest.fixture(scope="module")
def batch(mesh):
    return {"x": placed(mesh, np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32), ("data", "fsdp"))}


def train(trainer, batch, folder, steps, disturb=lambda *given: given[1:], elsewhere=None, **settings):
    """The last state of so many steps; disturb: what becomes of state and batch before a step."""
    guard = Guard(epath.Path(folder), trainer, TrainingSettings(**settings), 0, elsewhere)
    state = getattr(trainer, "_trainer", trainer).create()
    sent = checksums(batch)
    for step in range(1, steps + 1):
        state, given = disturb(step, state, batch)
        state = guard.step(step, state, given)[0]
        guard.check(step, state, given, sent)
    guard.settle()
    return jax.device_get(state)


def reported(folder):
    path = folder / "corruption.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def flip_weight(step, state, batch):
    return (state | {"w": flipped(state["w"], 6, 2, 3)} if step == 2 else state), batch


def flip_example(step, state, batch):
    return state, ({"x": flipped(batch["x"], 6, 2, 30)} if step == 2 else batch)


@pytest.mark.parametrize(
    "disturb, at, check, named",
    [(flip_weight, 4, "replicas", ["w"]), (flip_example, 2, "batch", ["x"])],
)
def test_what_a_device_holds_wrongly_is_found_reported_and_ends_the_attempt(
    disturb, at, check, named, trainer, batch, tmp_path
):
    train(trainer, batch, tmp_path, 4, compare_every=2)
    assert reported(tmp_path) == []
    with pytest.raises(
        Corrupted, match=rf"step {at}: silent corruption on \S*6 \(process 0 on {socket.gethostname()}\)"
    ):
        train(trainer, batch, tmp_path, 9, disturb, compare_every=4)
    (line,) = reported(tmp_path)
    assert (line["step"], line["check"], line["certain"], line["arrays"]) == (at, check, True, named)
    assert [each["device"] for each in line["devices"]] == [str(jax.devices()[6])]


def test_with_exclude_the_host_is_named_and_with_warn_the_run_goes_on(trainer, batch, tmp_path, caplog):
    with pytest.raises(Excluded, match=f"leave out {socket.gethostname()}"):
        train(trainer, batch, tmp_path, 4, flip_weight, compare_every=2, on_corruption="exclude")
    undisturbed = train(trainer, batch, tmp_path, 4, flip_example, compare_every=0)
    assert len(reported(tmp_path)) == 1, "nothing is looked for"
    disturbed = train(trainer, batch, tmp_path, 4, flip_example, compare_every=2, on_corruption="warn")
    assert len(reported(tmp_path)) == 2 and "the run goes on with it" in caplog.text
    np.testing.assert_array_equal(undisturbed["w"], disturbed["w"])


@pytest.mark.parametrize("on_corruption", ["go_back", "exclude"])
def test_a_step_that_was_computed_wrongly_once_is_made_again_and_its_device_named(
    on_corruption, trainer, batch, tmp_path, caplog
):
    """The sum of gradients has carried it to all devices; the losses of its own examples tell whose it is."""
    expected = train(trainer, batch, tmp_path, 1, recompute_every=1)
    assert reported(tmp_path) == []
    wrong = WrongOnce(trainer, flip_example(2, None, batch)[1])
    settings = dict(recompute_every=1, compare_every=0, on_corruption=on_corruption)
    with pytest.raises(Excluded) if on_corruption == "exclude" else contextlib.nullcontext():
        found = train(wrong, batch, tmp_path, 1, **settings)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert "the run goes on with what it gave twice" in caplog.text
    (line,) = reported(tmp_path)
    assert (line["step"], line["check"], line["certain"]) == (1, "step made twice", True)
    assert [each["device"] for each in line["devices"]] == [str(jax.devices()[6])]


@pytest.fixture(scope="module")
def elsewhere(trainer, mesh):
    return Regression(Mesh(np.roll(mesh.devices, -1), mesh.axis_names, axis_types=mesh.axis_types))


def test_a_device_that_is_always_wrong_is_found_where_steps_are_made_elsewhere(trainer, elsewhere, batch, tmp_path):
    settings = dict(recompute_every=1, compare_every=0)
    expected = train(trainer, batch, tmp_path, 1, elsewhere=elsewhere, **settings)
    assert reported(tmp_path) == [] and np.isfinite(expected["w"]).all()

    def spoil(batch, part):
        return {"x": flipped(batch["x"], part, 1, 22)}

    broken, broken_elsewhere = (Broken(each, jax.devices()[3], spoil) for each in (trainer, elsewhere))
    train(broken, batch, tmp_path, 1, **settings)
    assert reported(tmp_path) == [], "on the same devices it is wrong in the same way"
    with pytest.raises(Corrupted, match="when another device did the same"):
        train(broken, batch, tmp_path, 1, elsewhere=broken_elsewhere, **settings)
    (line,) = reported(tmp_path)
    assert line["certain"] and [each["device"] for each in line["devices"]] == [str(jax.devices()[3])]


def test_elsewhere_every_device_does_the_work_of_another_one_where_examples_alone_are_shared_out(mesh):
    def elsewhere(mesh):
        return Trainer(mesh, *[None] * 3).elsewhere

    moved = elsewhere(mesh).mesh.devices
    assert (moved != mesh.devices).all() and set(moved.flat) == set(mesh.devices.flat)
    for sizes in ((1, 1, 1, 1), (2, 1, 2, 1), (2, 1, 1, 2)):
        sizes = dict(zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True))
        assert elsewhere(make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])) is None


@pytest.mark.nightly
def test_a_real_step_is_made_elsewhere_bit_for_bit_and_a_device_that_is_always_wrong_found(tmp_path, caplog):
    """The step of a network on four devices, of which each then does the work of another one."""
    config = tiny_config(changes={"data.batch_size": "16", "training.recompute_elsewhere": "True"})
    run = build(config, jax.devices()[:4])
    trainer, elsewhere = run.trainer, run.trainer.elsewhere
    batch = put_batch(run.mesh, made_up_batch(run.config, 16))
    settings = dict(recompute_every=1, compare_every=0)
    once = train(trainer, batch, tmp_path, 2, recompute_every=0)
    twice = train(trainer, batch, tmp_path, 2, elsewhere=elsewhere, **settings)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert reported(tmp_path) == [] and "sums over devices" not in caplog.text

    def spoil(batch, part):
        return batch | {"x": flipped(batch["x"], part, 5, 22)}

    broken, broken_elsewhere = (Broken(each, jax.devices()[2], spoil) for each in (trainer, elsewhere))
    train(broken, batch, tmp_path, 1, **settings)
    assert reported(tmp_path) == [], "on the same devices it is wrong in the same way"
    with pytest.raises(Corrupted, match="when another device did the same"):
        train(broken, batch, tmp_path, 1, elsewhere=broken_elsewhere, **settings)
    (line,) = reported(tmp_path)
    assert line["certain"] and [each["device"] for each in line["devices"]] == [str(jax.devices()[2])]


def test_sums_in_another_order_are_no_fault(trainer, elsewhere, batch, tmp_path, caplog):
    class Reordered(WrongOnce):
        def detailed(self, state, batch):
            state, *rest = super().detailed(state, batch)
            return state | {"w": flipped(state["w"], 0, 0, 0)}, *rest

    reordered = Reordered(elsewhere, batch)
    reordered._wrong.clear()
    train(trainer, batch, tmp_path, 3, elsewhere=reordered, recompute_every=1, compare_every=0)
    assert reported(tmp_path) == [] and caplog.text.count("sums over devices depend on") == 1


def test_a_program_that_never_gives_the_same_bits_is_no_fault(trainer, batch, tmp_path, caplog):
    class Undecided(WrongOnce):
        def __init__(self):
            super().__init__(trainer, batch)
            self._wrong = [{"x": flipped(batch["x"], 0, 0, bit)} for bit in (20, 21, 22)]

    train(Undecided(), batch, tmp_path, 2, recompute_every=1)
    assert reported(tmp_path) == [] and caplog.text.count("never gave the same bits") == 1


def test_a_run_goes_back_until_it_has_done_so_too_often_from_one_checkpoint():
    starts = iter([0, 0, 4, 4, 8])

    def attempt():
        with contextlib.suppress(StopIteration):
            raise Corrupted("step 9: …", next(starts))
        return "trained"

    assert sound(attempt) == "trained"
    starts = iter([0, 4, 4, 4, 8])
    with pytest.raises(RepeatedCorruption, match="step 9: …; found 3 times since the checkpoint of step 4"):
        sound(attempt)
    assert next(starts) == 8 and corruption.TRIES == 3
