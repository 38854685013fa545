"""State, pure train step, loop, sharding, checkpoints, metrics. Receives built objects; reads no configuration."""
