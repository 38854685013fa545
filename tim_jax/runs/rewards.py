"""The classifier of a reward (`objective.reward.classifier`): found, checked against the run, handed to its step."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from tim_jax.codecs import tensors
from tim_jax.config.objective import are_images
from tim_jax.config.run import Run
from tim_jax.networks.classifier import Classifier, of_parameters
from tim_jax.runs.encoders import open_decoder
from tim_jax.system import paths
from tim_jax.training import sharding
from tim_jax.training.warm_start import Saved
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.terms.reward import CLASSIFIER
from tim_jax.types import ClassScores, PyTree

KEY = "objective.reward.classifier"


@dataclasses.dataclass(frozen=True)
class FrozenClassifier:
    """A classifier that nothing changes, a `trainer.FrozenNetwork`; every device has the whole of it.

    Attributes:
        path: its file.
        values: its parameters, as they were read.
        mesh: the devices.
        images: whether it judges images, of which it sees what can be shown, and not latents.
    """

    path: str
    values: PyTree
    mesh: Mesh
    images: bool

    @functools.cached_property
    def module(self) -> Classifier:
        """The network."""
        return of_parameters(self.values)

    @property
    def width(self) -> int:
        """Of the features."""
        return self.module.embedding

    @property
    def net(self) -> Callable[[PyTree], Callable[[jax.Array], ClassScores]]:
        """Parameters → the network on images or latents (B, h, w, C)."""

        def apply(params: PyTree, x: jax.Array) -> ClassScores:
            return cast(ClassScores, self.module.apply({"params": params}, jnp.clip(x, -1, 1) if self.images else x))

        return lambda params: functools.partial(apply, params)

    @property
    def abstract(self) -> PyTree:
        """Shapes, types and shardings of the parameters."""
        whole = sharding.replicated(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), self.values)

    @functools.cached_property
    def params(self) -> PyTree:
        """The parameters on the mesh."""
        whole = sharding.replicated(self.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, whole, lambda i: x[i]), self.values)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells its parameters from others."""
        found = hashlib.sha256()
        for name, array in sorted(flatten_dict(self.values, sep="/").items()):
            found.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def find_classifier(run: Run) -> dict[str, FrozenClassifier]:
    """{CLASSIFIER: that which the run's reward asks for}, {} if it asks for none. Raises ValueError, naming the key."""
    reward = cast(Objective, run.trainer.step.objective).reward
    return {name: read(run, reward.classifier) for name in reward.networks}


def read(run: Run, path: str, key: str = KEY) -> FrozenClassifier:
    """The classifier of a file. Raises ValueError, naming the key, if there is none or it does not fit the run."""
    where = f"{key} is {path!r}"
    if not path:
        raise ValueError(f"{where}; it must be a file of a classifier, which python -m tim_jax.classify trains")
    try:
        values = unflatten_dict(tensors.read(paths.given(path, key)), sep="/")
        found = FrozenClassifier(path, values, run.mesh, are_images(run.config))
        classes, _ = found.values["classes"].shape
        *_, channels, _ = found.values["convolution_0"]["kernel"].shape
        shapes = jax.eval_shape(found.module.init, jax.random.key(0), jnp.zeros((1, 1, 1, channels)))["params"]
        if jax.tree.map(jnp.shape, found.values) != jax.tree.map(jnp.shape, nn.unbox(shapes)):
            raise ValueError("its arrays are not those of a classifier")
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else "its arrays are not those of a classifier"
        raise ValueError(f"{where}; it must be a file of a classifier: {reason}") from None
    wanted = run.config.model.num_classes, run.image_shape[-1]
    if (classes, channels) != wanted:
        raise ValueError(
            f"{where}; it must be of this run's {wanted[0]} classes and {wanted[1]} channels (model.num_classes, "
            f"data.channels), and is of {classes} and {channels}"
        )
    return found


def features_of(run: Run, classifier: FrozenClassifier, images: np.ndarray, where: str) -> np.ndarray:
    """The features (n, d), of length 1, of target images (n, H, W, c) in [−1, 1]; of their latents, if it judges these.

    Raises ValueError, in one line that begins with `where`, for latents that nothing encodes.
    """
    decoder = open_decoder(run)
    if decoder is None:
        raise ValueError(f"{where}; it must be another one for latents where codecs.autoencoder is ''")
    features = jax.jit(lambda params, x: classifier.net(params)(x).features)
    return np.asarray(features(classifier.params, jnp.asarray(decoder.encode(images))))


def record(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run's classifier: {"reward": {"path", "fingerprint"}}, or {}."""
    found = run.trainer.frozen.get(CLASSIFIER)
    if found is None:
        return {}
    classifier = cast(FrozenClassifier, found)
    return {"reward": {"path": classifier.path, "fingerprint": classifier.fingerprint}}


def check_same(run: Run, recorded: dict[str, Any], student: Saved) -> None:
    """Raises ValueError, naming the key, if a checkpoint was rewarded by another classifier than the run's."""
    before, now = recorded.get("reward"), record(run).get("reward")
    if before and now and before["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"{KEY} is {now['path']!r}; it must be the classifier that {student} was rewarded by, {before['path']!r} "
            "as it was then"
        )
