"""Rewards of samples that have been drawn: what searches look for, and what says which of two is preferred."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import rewards
from tim_jax.runs.generation import Generator
from tim_jax.runs.labels import repeated
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.rewards import OF_SCORES, OF_TARGET, REWARDS


def of_images(name: str, images: np.ndarray, condition: dict[str, Any]) -> np.ndarray:
    """The rewards (b,) of images (b, H, W, C), as files hold them. Raises ValueError if they are no finite numbers.

    Args:
        name: in REWARDS.
        images: in [−1, 1].
        condition: {"label": (b,)} or {"prompt": texts}.
    """
    return _checked(name, REWARDS[name](jnp.asarray(images), condition), len(images))


def _checked(name: str, values: Any, count: int) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(f"the reward {name!r} of {count} images is {found.shape}, or not finite")
    return found


@dataclasses.dataclass(frozen=True)
class Judge:
    """The reward of examples by their labels or prompts.

    Attributes:
        name: in REWARDS, OF_SCORES or OF_TARGET.
        kind: "label" or "prompt".
        classifier: of OF_SCORES and OF_TARGET; None of the others.
        target: (1, d) features of the image that samples are to be like; None of other rewards.
    """

    name: str
    kind: str
    classifier: rewards.FrozenClassifier | None = None
    target: np.ndarray | None = None

    def __call__(self, generator: Generator, examples: np.ndarray, conditions: Sequence[Any]) -> np.ndarray:
        """The rewards (b,) of examples (b, h, w, C), at most as many as the generator draws at a time."""
        count = len(examples)
        whole = repeated(examples, generator.batch_size)
        if self.classifier is None:
            images = pictures.as_written(generator.decode(whole)[:count])
            return of_images(self.name, images, {self.kind: self._given(conditions)})
        condition: dict[str, Any] = {"target": self.target}
        if self.target is None:
            condition = {"label": repeated(np.asarray(conditions, np.int32), generator.batch_size)}
        values = self._scored(self.classifier.params, whole, condition)
        return _checked(self.name, np.asarray(values)[:count], count)

    def _given(self, conditions: Sequence[Any]) -> Any:
        return list(conditions) if self.kind == "prompt" else jnp.asarray(conditions)

    @functools.cached_property
    def _scored(self) -> Any:
        classifier, score = self.classifier, (OF_SCORES | OF_TARGET)[self.name]
        assert classifier is not None, "a reward of scores"
        return jax.jit(lambda params, x, condition: score(classifier.net(params)(x), condition))

    def record(self) -> dict[str, Any]:
        """What settings of an output say of it."""
        of = self.classifier
        return {"reward": self.name} | ({"classifier": of.path, "fingerprint": of.fingerprint} if of else {})


def open_judge(run: Run, name: str, classifier: str = "", target: np.ndarray | None = None) -> Judge:
    """The reward of a run's samples by its name.

    Args:
        run: whose samples are judged.
        name: in REWARDS, OF_SCORES or OF_TARGET.
        classifier: the file of the one that judges; "" for `objective.reward.classifier`.
        target: the image (1, H, W, c) in [−1, 1] that samples are to be like.

    Raises:
        ValueError: one line that names what is wrong: no such reward, latents that nothing decodes, no classifier.
    """
    known = REWARDS | OF_SCORES | OF_TARGET
    if name not in known:
        raise ValueError(f"--reward is {name!r}; it must be one of {', '.join(known)}, or a plugin's own")
    if target is not None and name not in OF_TARGET:
        raise ValueError(f"--target is given; it must be left out with --reward={name}, which looks at no other image")
    by_class = run.config.model.condition == "class"
    kind = "label" if by_class else "prompt"
    if name in REWARDS:
        if classifier:
            raise ValueError(f"--classifier is {classifier!r}; it must be left out with --reward={name}")
        if not run.shows_images:
            raise ValueError(
                f"--reward is {name!r}; it must be one of {', '.join(OF_SCORES)}, as codecs.autoencoder is '' and "
                "nothing decodes latents to images"
            )
        return Judge(name, kind)
    if not by_class and name in OF_SCORES:
        raise ValueError(f"--reward is {name!r}; it must be another one, as this run is conditioned on text")
    if name in OF_TARGET and (target is None or len(target) > 1):
        raise ValueError(
            f"--reward is {name!r}; it must have one image that samples are to be like, --target=IMAGE of "
            "python -m tim_jax.sample"
        )
    if classifier:
        found = rewards.read(run, classifier, "--classifier")
    else:
        found = rewards.read(run, cast(Objective, run.trainer.step.objective).reward.classifier)
    if name in OF_SCORES or target is None:
        return Judge(name, kind, found)
    return Judge(name, kind, found, rewards.features_of(run, found, target, f"--reward is {name!r}"))
