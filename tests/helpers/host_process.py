"""One of two processes of two devices, each a host of its own: it saves a small state locally, or restores it.

Arguments: ADDRESS INDEX FOLDER DATA FSDP save|restore. It says what became of it.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tim_jax.training.local_checkpoints import LocalCheckpoints

VALUES = {
    "kernel": np.arange(64, dtype=np.float32).reshape(8, 8).astype(jnp.bfloat16),
    "zero": np.array([-0.0, 0.0] * 4, np.float32),  # as a sum over processes, the first would become the second
    "step": np.int32(7),
}
SPECS = {"kernel": PartitionSpec("fsdp"), "zero": PartitionSpec(), "step": PartitionSpec()}


def main():
    address, index, folder, data, fsdp, do = sys.argv[1:]
    jax.distributed.initialize(address, 2, int(index))
    mesh = jax.make_mesh((int(data), int(fsdp)), ("data", "fsdp"))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    abstract = {
        name: jax.ShapeDtypeStruct(np.shape(value), value.dtype, sharding=shardings[name])
        for name, value in VALUES.items()
    }
    local = LocalCheckpoints(pathlib.Path(folder))
    if do == "save":
        make = jax.make_array_from_callback
        state = {name: make(np.shape(x), shardings[name], lambda i, x=x: x[i]) for name, x in VALUES.items()}
        for step in (5, 7):
            local.save(step, state, 0, 0.0)
            local.wait()
        print("ready", local.failures, flush=True)
        time.sleep(1000.0)  # until it is killed
    restored = local.restore(abstract, 0, 0)
    same = restored and all(
        np.asarray(shard.data).tobytes() == np.asarray(VALUES[name][shard.index]).tobytes()
        for name, leaf in restored[0].items()
        for shard in leaf.addressable_shards
    )
    print("bit-equal" if same else "nothing" if restored is None else "different", flush=True)


if __name__ == "__main__":
    main()
