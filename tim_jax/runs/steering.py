"""What samples of a run are steered towards: a measurement of images, or a reward; see `transitions/sampling/steering`.

Measurements and rewards are of images. Where examples are latents x̂ goes through the decoder first, and gradients come
back through it; a classifier judges latents as they are, on which it was trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tim_jax.codecs.settings import CodecSettings
from tim_jax.config.objective import are_images
from tim_jax.config.run import Run
from tim_jax.networks.classifier import of_parameters
from tim_jax.runs import rewards
from tim_jax.runs.encoders.module import in_tiles, open_module
from tim_jax.runs.images import as_array
from tim_jax.runs.restoration import check_path, measured, open_truths
from tim_jax.transitions.operators import OPERATORS, Shape, feathered, parse, picture
from tim_jax.transitions.rewards import OF_SCORES, OF_TARGET, REWARDS
from tim_jax.transitions.sampling.steering import Steer, Steering, of_residual
from tim_jax.types import ClassScores, PyTree

KEY = "sampling.steering.operator"
# What there is of "y" (B, …), "label" (B,), "target" (B, d), "mask" (1, h, w, 1), "autoencoder", "classifier".
Given = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a batch is steered by what it is given: what a program is compiled for.

    Attributes:
        settings: of the steering.
        codecs: of the decoder.
        images: whether examples are images.
    """

    settings: Steering
    codecs: CodecSettings
    images: bool

    def __call__(self, given: Given, condition: PyTree) -> Steer:
        """What steers a batch of this condition."""
        name, numbers = parse(self.settings.operator)

        def decode(x: jax.Array) -> jax.Array:
            return in_tiles(self.codecs, given["autoencoder"], "decode", x) if "autoencoder" in given else x

        if name in OPERATORS:
            return of_residual(self.settings, lambda x: residual(name, numbers, decode(x), given))
        condition = condition | {name: given[name] for name in ("label", "target") if name in given}
        if name in REWARDS:
            return Steer(self.settings, lambda x: -REWARDS[name](jnp.clip(decode(x), -1, 1), condition))
        params = given["classifier"]
        module = of_parameters(params)

        def loss(x: jax.Array) -> jax.Array:
            scores = module.apply({"params": params}, jnp.clip(x, -1, 1) if self.images else x)
            return -(OF_SCORES | OF_TARGET)[name](cast(ClassScores, scores), condition)

        return Steer(self.settings, loss)


def residual(name: str, numbers: tuple[float, ...], images: jax.Array, given: Given) -> jax.Array:
    """g √w (A(x) − y) of images x (B, H, W, C), w being the mask, of what is known."""
    operator = OPERATORS[name]
    off = operator.gain(images.shape[1:], *numbers) * (operator.measure(images, *numbers) - given["y"])
    return off * jnp.sqrt(given["mask"]) if "mask" in given else off


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the samples of a generator are steered towards.

    Attributes:
        recipe: how.
        y: numbers (n,) of images → what was measured of each, (n, …); None for rewards.
        mask: (1, H, W, 1), 1 where the measurement is known; None where it is everywhere.
        label: (n,) whom a reward asks for; None for the images' own.
        target: (n, d) features of the images that samples are to be like; None of other rewards.
        modules: what is needed besides, on the run's mesh.
    """

    recipe: Recipe
    y: Callable[[np.ndarray], np.ndarray] | None = None
    mask: np.ndarray | None = None
    label: np.ndarray | None = None
    target: np.ndarray | None = None
    modules: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def given(self, numbers: np.ndarray, put: Callable[[np.ndarray], jax.Array]) -> dict[str, Any]:
        """What a program gets for images with these numbers (B,); put: places (B, …) on the mesh."""
        found = dict(self.modules)
        if self.y is not None:
            found["y"] = put(self.y(numbers))
        if self.label is not None:
            found["label"] = put(in_turn(self.label)(numbers))
        if self.target is not None:
            found["target"] = put(in_turn(self.target)(numbers))
        return found if self.mask is None else found | {"mask": self.mask}

    def shown(self, images: np.ndarray) -> np.ndarray | None:
        """The measurements of images 0 … n − 1, as pictures like them (n, H, W, c); None where they are none."""
        if self.y is None:
            return None
        found = picture(self.y(np.arange(len(images))), images.shape[1:3], images.shape[-1])
        return found if found is None or self.mask is None else self.mask * found

    def off(self, images: np.ndarray) -> np.ndarray | None:
        """By how much images 0 … n − 1 miss what was measured, (n,), root mean squares; None for rewards."""
        if self.y is None:
            return None
        name, numbers = parse(self.recipe.settings.operator)
        square = np.square(OPERATORS[name].measure(jnp.asarray(images), *numbers) - self.y(np.arange(len(images))))
        weight = np.broadcast_to(1.0 if self.mask is None else self.mask, square.shape)
        axes = tuple(range(1, square.ndim))
        return np.sqrt((weight * square).sum(axes) / np.maximum(weight.sum(axes), 1e-12))


def in_turn(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Numbers of images → the values (n, …) that are theirs, in turn."""
    return lambda numbers: values[np.asarray(numbers, np.int64) % len(values)]


def open_own(run: Run) -> Aim | None:
    """What a run is steered towards by its configuration alone; None where by nothing.

    That is a reward of the images' own labels, or what the operator measures of the run's held-out images, which are
    restored in turn (`restoration.open_truths`).

    Raises:
        ValueError: one line, for an operator that needs to be told what was measured.
    """
    steering = run.sampling.steering
    if not steering.active:
        return None
    if steering.is_reward:
        return open_aim(run, run.image_shape)
    if not are_images(run.config):
        raise ValueError(
            f"{KEY} is {steering.operator!r}; it must be '' for latents where nothing says what was measured, as "
            "--from of python -m tim_jax.sample does"
        )
    truths = open_truths(run)
    assert truths is not None, "a run that is steered by a measurement"
    first = open_aim(run, run.image_shape, truths(np.arange(1))[0])
    return dataclasses.replace(first, y=lambda numbers: measured(run, truths(numbers)[0]))


def open_aim(
    run: Run,
    shape: Shape,
    images: np.ndarray | None = None,
    target: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    label: np.ndarray | None = None,
) -> Aim:
    """What samples of a run are steered towards.

    Args:
        run: whose `sampling.steering` says how.
        shape: (H, W, c) of all images.
        images: (n, H, W, c) that are measured.
        target: (n, …), what has been measured, in place of them; or images (n, H, W, c) that samples are to be like.
        mask: (H, W), 1 where the measurement is known.
        label: (n,) whom a reward asks for.

    Raises:
        ValueError: one line that names what is wrong.
    """
    settings = run.sampling.steering
    check_path(run)
    recipe = Recipe(settings, run.codecs, are_images(run.config))
    name, numbers = parse(settings.operator)
    where = f"{KEY} is {settings.operator!r}"
    modules: dict[str, Any] = {}
    if run.codecs.autoencoder and name not in OF_SCORES | OF_TARGET:
        modules["autoencoder"] = open_module(run.codecs, "autoencoder", run.mesh)
    if settings.is_reward:
        if name in OF_TARGET:
            if images is not None or mask is not None or label is not None:
                raise ValueError(f"{where}; it must be another for images that are measured, a mask or a label")
            return _open_likeness(run, recipe, target, where)
        if images is not None or target is not None or mask is not None:
            raise ValueError(f"{where}; it must be a measurement for images or a mask to say what is asked for")
        if name in OF_SCORES:
            if run.config.model.condition != "class" and label is None:
                raise ValueError(f"{where}; it must be another for a run conditioned on text, unless labels are given")
            modules["classifier"] = rewards.read(run, settings.classifier, "sampling.steering.classifier").params
        return Aim(recipe, label=label, modules=modules)
    operator = OPERATORS[name]
    if label is not None:
        raise ValueError(f"{where}; it must be a reward for a label to be what is asked for")
    if wrong := operator.refuses(shape, *numbers):
        raise ValueError(f"{where}; it must {wrong}")
    if operator.masked and mask is None:
        raise ValueError(f"{where}; it must be another one where there is no mask, --mask=FILE")
    if settings.feather and mask is None:
        raise ValueError(f"sampling.steering.feather is {settings.feather}; it must be 0 where there is no mask")
    if (images is None) == (target is None):
        raise ValueError(f"{where}; it must be '' unless images that are measured, or what was measured, are given")
    if images is not None:
        y = np.asarray(operator.measure(jnp.asarray(images), *numbers))
    else:
        y = np.asarray(target, np.float32)
    wanted = jax.eval_shape(lambda x: operator.measure(x, *numbers), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    if y.shape[1:] != wanted.shape[1:]:
        raise ValueError(
            f"{where}; it must measure what is given, which is {_sides(y.shape[1:])}, and would be "
            f"{_sides(wanted.shape[1:])} of images of {_sides(shape)}"
        )
    if mask is not None:
        if mask.shape != wanted.shape[1:3] or len(wanted.shape) != 4:
            raise ValueError(
                f"mask is {_sides(mask.shape)}; it must be as large as what {settings.operator!r} measures, "
                f"{_sides(wanted.shape[1:])}"
            )
        mask = feathered(np.asarray(mask, np.float32), settings.feather)[None, :, :, None]
    return Aim(recipe, in_turn(y), mask, modules=modules)


def _open_likeness(run: Run, recipe: Recipe, target: np.ndarray | None, where: str) -> Aim:
    """What samples are steered towards that are to be like target images (n, H, W, c)."""
    if target is None:
        raise ValueError(f"{where}; it must have an image that samples are to be like, --target=IMAGE")
    classifier = rewards.read(run, recipe.settings.classifier, "sampling.steering.classifier")
    features = rewards.features_of(run, classifier, np.asarray(target, np.float32), where)
    return Aim(recipe, target=features, modules={"classifier": classifier.params})


# What `Tim.__call__` takes in `steer` besides the keys of `sampling.steering`.
GIVEN = ("image", "target", "mask", "label")


def steering_keys(steer: Mapping[str, Any]) -> dict[str, str]:
    """{"sampling.steering.KEY": text} of what a program says. Raises ValueError for other keys."""
    known = [field.name for field in dataclasses.fields(Steering)]
    for name in steer:
        if name not in (*known, *GIVEN):
            raise ValueError(f"steer has {name!r}; it must have some of {', '.join([*known, *GIVEN])}")
    keys = {name: value for name, value in steer.items() if name not in GIVEN}
    if "mask" in steer:
        keys = {"operator": "inpainting"} | keys
    return {f"sampling.steering.{name}": str(value) for name, value in keys.items()}


def size_of(steer: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the images that are measured; None where there are none."""
    image = steer.get("image")
    if image is None:
        return None
    height, width = as_array(image, 1).shape[1:3]
    return height, width


def aim_of(run: Run, steer: Mapping[str, Any], shape: Shape) -> Aim:
    """What a program asks for, of images (H, W, c); see `Tim.__call__`. Raises ValueError."""
    if not run.sampling.steering.active:
        raise ValueError("steer has no 'operator'; it must say what images are steered towards")
    found: dict[str, Any] = {name: steer[name] for name in ("image", "target") if steer.get(name) is not None}
    channels = 1 if run.sampling.steering.operator == "greyscale" else shape[-1]
    arrays = {name: as_array(value, channels if name == "target" else shape[-1]) for name, value in found.items()}
    mask = steer.get("mask")
    if mask is not None:
        mask = np.asarray(mask.convert("L"), np.float32) / 255 if isinstance(mask, Image.Image) else np.asarray(mask)
        mask = 1 - mask.astype(np.float32)
    label = None if steer.get("label") is None else np.atleast_1d(np.asarray(steer["label"], np.int32))
    return open_aim(run, shape, arrays.get("image"), arrays.get("target"), mask, label)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
