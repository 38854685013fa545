"""State, pure train step, loop, sharding, checkpoints and metrics. This room gets built objects and reads no
configuration."""
