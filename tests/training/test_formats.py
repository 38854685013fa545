"""Checkpoints of older formats are read bit-equal, whole or by their weights; those of newer ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tim_jax.training import checkpoints, formats, names, warm_start
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer
from tim_jax.training.state import TrainState
from tim_jax.types import Auxiliary


def state(online, seed=0, **settings):
    """A state after two updates, the network that trains being called `online`, with a second one beside it."""
    rng = np.random.default_rng(seed)

    def network():
        return {
            "blocks": {"up": {"kernel": jnp.asarray(rng.standard_normal((2, 4, 6)), jnp.float32)}},
            "embedder": {"table": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)},
        }

    parts = (online, "score")
    tx = make_optimizer(OptimizerSettings(**settings), dict.fromkeys(parts, Auxiliary()))
    params = {part: network() for part in parts}
    opt_state = tx.init(params)
    for _ in range(2):
        updates, opt_state = tx.update(jax.tree.map(jnp.sin, params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return TrainState(jnp.int32(2), params, {"slow": network(), "student": network()}, opt_state)


def saved(folder, state, record):
    """The checkpoint of a state in a new workdir."""
    saver = checkpoints.Saver(checkpoints.open_manager(epath.Path(folder), 1))
    saver.save(2, state, record)
    saver.close()
    assert saver.failures == []
    return warm_start.find(str(folder), "--workdir")


def abstract(tree):
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"name": "muon", "clip": 0.0}, {"frozen": ("embedder",)}], ids=str)
def test_a_state_of_format_1_is_read_bit_equal(settings, tmp_path):
    """It called the network that trains "student", in the parameters and in the optimizer's labels."""
    then, today = state("student", **settings), state("online", **settings)
    found = saved(tmp_path, then, {"format": 1})
    restored = warm_start.resume(found, abstract(today))
    assert jax.tree.structure(restored) == jax.tree.structure(today)
    jax.tree.map(np.testing.assert_array_equal, restored, today)

    shapes = warm_start.weights_of(found)
    assert list(shapes) == ["online", "slow", "student"]
    for name, tree in {"online": today.params["online"], "student": today.emas["student"]}.items():
        assert shapes[name] == {key: leaf.shape for key, leaf in names.by_name(tree).items()}
        read = warm_start.read_network(found, name, abstract(tree))
        jax.tree.map(np.testing.assert_array_equal, read, tree)


def test_a_checkpoint_of_a_later_version_is_refused_by_its_format(tmp_path):
    later = formats.FORMAT + 1
    found = saved(tmp_path, state("online"), {"format": later})
    for read in (warm_start.weights_of, lambda saved: warm_start.resume(saved, abstract(state("online")))):
        with pytest.raises(formats.UnknownFormat, match=f"checkpoints/2 is a checkpoint of format {later}; this"):
            read(found)


@pytest.mark.slow
def test_a_state_that_remembers_nothing_is_stored_as_before_there_was_a_memory(tmp_path):
    """So that checkpoints of before are read, and these by versions of before; a memory is stored beside the rest."""
    without = state("online")
    with_memory = without.replace(memory={"queue": jnp.arange(6.0)})
    for name, tree, parts in (("without", without, set()), ("with", with_memory, {"memory"})):
        found = saved(tmp_path / name, tree, {})
        with checkpoints.opened(found.directory, whole=False) as manager:
            stored = manager.item_metadata(found.step)["state"]
        assert {key for key, _ in stored.items()} == {"step", "params", "emas", "opt_state"} | parts
        restored = warm_start.resume(found, abstract(tree))
        assert jax.tree.structure(restored) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, restored, tree)
