"""A trained run in the hands of a program: `tim = tim_jax.load(path)`, then `tim("a red bicycle", steps=4)`."""

import contextlib
import html
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from tim_jax.config.build import build
from tim_jax.config.keys import BY_DRAWING, check_read, flatten
from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import conversion, exports, labels, workdir
from tim_jax.runs.encoders import Pixels, open_decoder, open_text_encoder
from tim_jax.runs.generation import Generator, resampled
from tim_jax.runs.images import Images, as_array
from tim_jax.runs.judging import open_judge
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.outputs.batches import batch_size, draw
from tim_jax.runs.outputs.requests import label_requests, prompt_requests, read_size
from tim_jax.runs.restoration import coupling_of, given_truths
from tim_jax.runs.searching import Searcher, read_search
from tim_jax.runs.steering import aim_of, size_of, steering_keys
from tim_jax.system import compilation_cache
from tim_jax.training import warm_start
from tim_jax.transitions.sampling.planning import make_plan, time_grid


def load(
    path: str | os.PathLike[str],
    *,
    as_: str = "",
    ema: str = "",
    plugin: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    **overrides: Mapping[str, Any],
) -> "Tim":
    """Loads a trained run, ready to draw images.

    Args:
        path: a workdir, for its latest checkpoint, or one of its checkpoints, WORKDIR/checkpoints/STEP; or what
            `tim-jax convert export` wrote, on this machine or as hf://owner/repository; or a file that others released,
            as hf://owner/repository/file or on this machine.
        as_: what a file of others is, such as "sit_xl_2": a name of `python -m tim_jax.convert import --as`. Further
            keys of the configuration may then be changed, too.
        ema: "online", or the name of a copy in such a file; by default its first EMA. Of a run it is
            `sampling={"ema": …}` that chooses.
        plugin: Python files of one's own to run first. Those that the run was trained with are found where they were,
            but must be given where they are somebody else's.
        **overrides: sections of the configuration with the keys to change, such as
            `codecs={"autoencoder": "DIR"}`, `sampling={"guidance": 2.5}` or `mesh={"data": 1}`. Keys that make a run
            what it is cannot be changed.

    Returns:
        The run with the weights that `sampling.ema` names, on its devices.

    Raises:
        ValueError: one line that names what is wrong: no checkpoint, an unknown key, a module that is not there.
    """
    texts = {key: str(value) for key, value in flatten(overrides).items()}
    texts["plugin"] = ",".join(map(str, [plugin] if isinstance(plugin, str | os.PathLike) else plugin))
    with arguments_of_python():
        check_read(texts, BY_DRAWING, "tim_jax.load")
        if exports.is_export(str(path)):
            return _load_export(str(path), texts, as_, ema)
        for name, value in (("as_", as_), ("ema", ema)):
            if value:
                raise ValueError(f"{name} is {value!r}; it must be left out for a workdir, and {path} is no file")
        saved = warm_start.find(str(path), "path")
        folder = saved.directory.parent
        run = build(workdir.load(folder, texts))
        compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)

        def read() -> Any:
            return warm_start.read_network(saved, run.sampling.ema, run.trainer.abstract_online)

        return Tim(with_found(run, folder, saved.step), read, workdir.class_names(folder), str(saved), saved.step)


def _load_export(path: str, overrides: dict[str, str], name: str = "", copy: str = "") -> "Tim":
    """The same of exported or published weights, which have neither EMAs nor step grids."""
    config = conversion.released(name) if name else ""
    found = conversion.read_weights(path, config, overrides, same=not name, copy=copy)
    run = found.run
    if run.sampling.grid == "optimal":
        raise ValueError("sampling.grid is 'optimal'; it must be another grid: import the weights into a workdir first")
    if run.sampling.plan == "learned":
        raise ValueError("sampling.plan is 'learned'; it must be 'sampler': import the weights into a workdir first")
    compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.trainer.abstract_online)
    step = found.origin.step if found.origin else None
    return Tim(run, lambda: jax.device_put(found.params, shardings), conversion.class_names(found), path, step)


@contextlib.contextmanager
def arguments_of_python(*own: str) -> Iterator[None]:
    """Within this context errors name arguments of Python, such as sampling={'guidance': -1.0}, not flags and keys.

    own: arguments that stand for a key of `sampling`.
    """
    try:
        yield
    except ValueError as error:
        text = re.sub(r"--config\.plugin=(\S+)", r"plugin='\1'", str(error))
        text = re.sub(r"--config\.([a-z_]+)\.([a-z_.]+[a-z_])", r"\1={'\2': …}", text)
        text = re.sub(r"^--workdir=(.*?): ", r"path is '\1'; it ", text)
        text = re.sub(r"; say with --config what it is.*", "; say what it is by as_, such as as_='sit_xl_2'", text)
        text = re.sub(r"^--as is ", "as_ is ", text)
        text = re.sub(r"--ema is ", "ema is ", text)
        text = re.sub(r"^--", "", text)
        for name in own:
            text = re.sub(rf"^sampling\.{name} is ", f"{name} is ", text)
        text = re.sub(r"^sampling\.steering\.([a-z]+) is (.*?); it must", r"steer={'\1': \2}; it must", text)
        text = re.sub(r"^([a-z_]+)\.([a-z_.]+) is (.*?); it must", r"\1={'\2': \3}; it must", text)
        raise ValueError(text) from None


class Tim:
    """A trained run that draws images; `tim_jax.load` makes one.

    ```python
    tim = tim_jax.load("WORKDIR")
    tim("a red bicycle", steps=4, size=(512, 768), seed=0)  # of a run conditioned on text
    tim([3, 1, "cat"], steps=1)  # of a run conditioned on labels, which are numbers or names of `tim.classes`
    ```

    The weights lie on the devices of the run's mesh, beside the pretrained modules that images need. What is compiled
    for one call is used again by calls with other seeds, prompts and numbers of steps.

    Attributes:
        run: all that the configuration says, built.
        path: of the weights, such as WORKDIR/checkpoints/STEP.
        step: of the training, at which they were saved; None where that is not known.
        classes: what labels 0, 1, … are called; () where nothing says so.
    """

    run: Run
    path: str
    step: int | None
    classes: tuple[str, ...]

    def __init__(
        self, run: Run, read: Callable[[], Any], classes: tuple[str, ...], path: str = "", step: int | None = None
    ):
        """Reads the weights of a run; see `load`.

        Args:
            run: the run.
            read: gives its weights, on its devices.
            classes: names of its labels, or ().
            path: of the weights.
            step: at which they were saved, or None.

        Raises:
            ValueError: one line, if images cannot be made: latents without `codecs.autoencoder`, prompts without
                `codecs.text_encoder`.
        """
        if run.sampling.steering.active:
            raise ValueError(
                f"sampling.steering.operator is {run.sampling.steering.operator!r}; it must be '', and an argument "
                "of a call: tim(…, steer={'operator': …})"
            )
        decoder = open_decoder(run)
        if decoder is None:
            raise ValueError(
                "codecs.autoencoder is ''; it must name what decodes the examples of this run, which are latents"
            )
        self.run, self._decoder = run, decoder
        self.path, self.step = path, step
        self._texts = open_text_encoder(run) if run.config.model.condition == "text" else None
        self._weights = read()
        self.classes = classes
        self._generators: dict[int, Generator] = {}
        self._generator(1, None).load()

    @arguments_of_python("guidance")
    def __call__(
        self,
        conditions: str | int | Sequence[str] | Sequence[int] | Sequence[str | int],
        steps: int = 4,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        guidance: float | None = None,
        count: int = 1,
        steer: Mapping[str, Any] | None = None,
        search: str | None = None,
        reward: str | None = None,
        classifier: str = "",
        target: Image.Image | np.ndarray | None = None,
    ) -> Images:
        """Draws images: those of `python -m tim_jax.sample` with the same seed.

        Args:
            conditions: a prompt or several, of a run conditioned on text; else a label or several, each a number or
                the name of a class.
            steps: of the sampler, at least 1.
            size: (height, width) in pixels; by default the run's.
            seed: of the noise, 0 … 2³² − 1. Image j of a prompt starts from noise j of the seed; with labels, image i
                of the call from noise i.
            guidance: the guidance scale, 1 for none; by default that of the configuration.
            count: images of each prompt or label.
            steer: what they are steered towards: keys of `sampling.steering`, such as operator, method and scale, and
                `image`, which is measured, or `target`, which was, a `mask` that is white where images are drawn anew,
                or a `label` that a reward asks for. Image i is steered towards image i of several, in turn.
            search: such as "best_of:8", for images of a high reward with eight times the evaluations; "starts:8",
                "budget_forcing:8". What it found is in `found` of the images.
            reward: what is searched for: "brightness", "classifier", "similarity", "image_similarity", or a plugin's.
            classifier: the file of the one that judges; by default that of `objective.reward.classifier`.
            target: the image that "image_similarity" is the likeness to.

        Returns:
            `count` images of the first prompt or label, then those of the next, and so on: a list, which notebooks
            show as a grid.

        Raises:
            ValueError: one line that names what is wrong.
        """
        for name, value, minimum in (("steps", steps, 1), ("seed", seed, 0), ("count", count, 1)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {minimum}")
        if seed >= 2**32:
            raise ValueError(f"seed is {seed}; it must be below 2^32")
        run = self.run
        shape = run.image_shape[:2]
        if steer is not None and size is None:
            size = size_of(steer)
        if size is not None:
            shape = read_size("size is", "x".join(map(str, size)), run, self._decoder.factor)
        if coupling_of(self.run).active:
            raise ValueError("this run restores images; call .restore(images) in place of it")
        given: list[Any] = [conditions] if isinstance(conditions, str | int | np.integer) else list(conditions)
        if not given:
            raise ValueError("there must be at least one prompt or label")
        if self._texts:
            self._texts.check(given)
            requests = prompt_requests([("", {"prompt": prompt}) for prompt in given], shape, int(count), run)
        else:
            chosen = self._labels_of(given, "conditions has")
            requests = label_requests([label for label in chosen for _ in range(count)], shape)
        generator = self._generator(batch_size(run, requests), guidance, steer, shape)
        sampling = generator.run.sampling
        times = time_grid(run.transport, int(steps), sampling)
        make_plan(run.transport, times, sampling)  # raises what the sampler cannot do, before anything is drawn
        searcher = None
        if (search is None) != (reward is None):
            raise ValueError(f"search is {search!r} and reward is {reward!r}; there must be both or neither")
        if search is not None and reward is not None:
            settings = read_search(search)
            settings.check(generator.run, times)
            like = None if target is None else as_array(target, self._channels)
            searcher = Searcher(settings, open_judge(run, reward, classifier, like))
        elif classifier or target is not None:
            raise ValueError("classifier and target are of the reward of a search; give search and reward as well")
        drawn = list(draw(generator, self._weights, times, requests, seed=int(seed), searcher=searcher))
        images = np.concatenate([samples.images for samples in drawn])
        found = [one for samples in drawn for one in samples.found if one]
        drawn_of = [condition for condition in given for _ in range(count)]
        return Images(map(Image.fromarray, pictures.to_uint8(images)), drawn_of, int(steps), int(count), found)

    @arguments_of_python()
    def restore(
        self,
        images: np.ndarray | Sequence[Image.Image],
        labels: Sequence[int | str] | None = None,
        steps: int = 4,
        seed: int = 0,
    ) -> Images:
        """Restores images with a run whose noise is coupled with its data (`objective.coupling`).

        Each image is degraded first, by its own key of the seed where that is random. Operators that are not leave what
        is degraded already as it is.

        Args:
            images: pictures of one size, or an array (n, H, W, C) in [−1, 1].
            labels: (n,) classes of the images, numbers or names; by default the null condition.
            steps: of the sampler, at least 1.
            seed: of noise and masks, 0 … 2³² − 1.

        Returns:
            The restored images.

        Raises:
            ValueError: one line that names what is wrong.
        """
        run, coupling = self.run, coupling_of(self.run)
        if not coupling.active:
            raise ValueError("objective={'coupling.task': 'none'}; it must be another one for images to be restored")
        images = as_array(images, run.image_shape[-1])
        if images.ndim != 4 or images.shape[-1] != run.image_shape[-1]:
            raise ValueError(f"images has shape {images.shape}; it must be (n, H, W, {run.image_shape[-1]})")
        read_size("images has size", "x".join(map(str, images.shape[1:3])), run)
        coupling.check_shape(*images.shape[1:])
        if labels is None and run.data.condition_dropout == 0:
            raise ValueError("labels is None; it must be given, as this run has no null condition")
        found = np.full(len(images), run.config.model.num_classes)
        if labels is not None:
            found = np.array(self._labels_of(labels, "labels has"), np.int32)
        if len(found) != len(images):
            raise ValueError(f"labels has {len(found)}; it must have one for each of {len(images)} images")
        generator = self._generator(len(images), None)
        generator.truths = given_truths(np.asarray(images, np.float32), found)
        times = time_grid(run.transport, int(steps), run.sampling)
        examples = generator.integrate(self._weights, times, found, seed=int(seed), size=images.shape[1:3])
        drawn = map(Image.fromarray, pictures.to_uint8(generator.decode(examples)))
        return Images(drawn, found.tolist(), int(steps), 1)

    def _labels_of(self, given: Iterable[int | str], where: str) -> list[int]:
        """The numbers of classes by number or name; where: what they were given as. Raises ValueError."""
        return [labels.label_of(one, self.classes, self.run.config.model.num_classes, where) for one in given]

    def facts(self) -> dict[str, str]:
        """Returns what this is, by name."""
        run, config = self.run, self.run.config
        height, width, _ = run.image_shape
        factor = self._decoder.factor
        weights = jax.tree.leaves(self._weights)
        device = run.mesh.devices.flat[0]
        classes = config.model.num_classes
        return {
            "run": self.path,
            "step": "unknown" if self.step is None else f"{self.step:,}",
            "condition": "text" if config.model.condition == "text" else f"{classes:,} class{'es' * (classes > 1)}",
            "size": f"{height * factor} × {width * factor}",
            "objective": f"{config.objective.name}, {run.transport.name}",
            "sampler": f"{run.sampling.sampler}, guidance {run.sampling.guidance:g}",
            "parameters": f"{sum(leaf.size for leaf in weights):,}",
            "weights": run.sampling.ema,
            "devices": f"{run.mesh.size} × {device.device_kind}",
        }

    def __repr__(self) -> str:
        return f"Tim({', '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self.facts().items())
        return f"<table>{rows}</table>"

    @property
    def _channels(self) -> int:
        """Of images."""
        return self.run.image_shape[-1] if isinstance(self._decoder, Pixels) else 3

    def _generator(
        self,
        count: int,
        guidance: float | None,
        steer: Mapping[str, Any] | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> Generator:
        """A generator for so many images at a time; one for each power of two, so that calls share what is compiled.

        size: (h, w) of the examples, for `steer`.
        """
        batch = min(1 << (count - 1).bit_length(), max(count, self.run.config.sampling.batch_size))
        run, aim = self.run if guidance is None else resampled(self.run, {"sampling.guidance": str(guidance)}), None
        if steer is not None:
            run = resampled(run, steering_keys(steer))
            aim = aim_of(run, steer, (size[0] * self._decoder.factor, size[1] * self._decoder.factor, self._channels))
        if batch not in self._generators:
            self._generators[batch] = Generator(self.run, batch, self._texts, self._decoder)
        return self._generators[batch].sampled_by(run.sampling, aim)
