"""Shapes and types of the batches of a configuration."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tim_jax.config.objective import inputs_of

Spec = dict[str, tuple[tuple[int, ...], type[np.generic]]]


def batch_spec(config: ConfigDict, rows: int, shape: tuple[int, int]) -> Spec:
    """{name: (shape, type)} of what a train step takes of a batch of `rows` examples of height and width `shape`."""
    data = config.data
    spec: Spec = {"x": ((rows, *shape, data.channels), np.float32)}
    if config.model.condition == "class":
        spec["label"] = ((rows,), np.int32)
    else:
        for name, count in (("", rows), ("null_", 1)):
            spec[f"{name}text"] = ((count, data.text_tokens, data.text_width), np.float32)
            spec[f"{name}mask"] = ((count, data.text_tokens), np.bool_)
    if data.paired_noise:
        spec["noise"] = spec["x"]
    for name in inputs_of(config):
        spec[name] = spec["x"] if name == "loser" else ((rows,), np.float32)
    if data.features_width:
        tokens = shape[0] * shape[1] // config.model.patch_size**2
        spec["features"] = ((rows, tokens, data.features_width), np.float32)
        spec["features_mask"] = ((rows,), np.bool_)
    return spec


def made_up_batch(
    config: ConfigDict, rows: int, shape: tuple[int, int] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Random examples of the right shapes and types, to try a step without data; shape: `data.height` and `width`."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
        if dtype == np.float32:
            return rng.standard_normal(shape, np.float32)
        if dtype == np.int32:
            return rng.integers(0, config.model.num_classes, shape, np.int32)
        if name == "features_mask":
            return np.ones(shape, bool)
        lengths = rng.integers(1, shape[1] + 1, shape[0]) if name == "mask" else np.ones(1, int)
        return np.arange(shape[1])[None] < lengths[:, None]

    spec = batch_spec(config, rows, shape or (config.data.height, config.data.width))
    return {name: draw(name, *of) for name, of in spec.items()}
