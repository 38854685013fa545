"""The job of python -m tim_jax.sample: from a workdir and what is asked for to files of samples."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.evaluation.restored import psnr
from tim_jax.runs import labels as by_name
from tim_jax.runs import workdir
from tim_jax.runs.conditions import known_labels
from tim_jax.runs.encoders import Decoder, Pixels, open_decoder, open_text_encoder
from tim_jax.runs.generation import Generator, alpha_sigma, load_weights
from tim_jax.runs.judging import open_judge
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.outputs import steered
from tim_jax.runs.outputs.batches import batch_size, draw
from tim_jax.runs.outputs.layouts import LAYOUTS
from tim_jax.runs.outputs.prompts import read_prompts
from tim_jax.runs.outputs.requests import (
    Request,
    label_requests,
    prompt_requests,
    read_images,
    read_labels,
    read_size,
)
from tim_jax.runs.outputs.settings import COUNT, SampleSettings
from tim_jax.runs.outputs.writer import SampleWriter
from tim_jax.runs.restoration import Truths, around, check_path, coupling_of, given_truths, inputs, open_truths
from tim_jax.runs.searching import Searcher, read_search
from tim_jax.system import compilation_cache, paths
from tim_jax.system.progress import Bar
from tim_jax.transitions.rewards import OF_TARGET
from tim_jax.transitions.sampling.noise import slerp
from tim_jax.transitions.sampling.planning import check_pairs, make_plan, time_grid
from tim_jax.transitions.sampling.samplers import SAMPLERS

SHOWN = 12  # restorations in their picture


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """Samples of a run that are about to be drawn; all that the user can have got wrong has been checked.

    Attributes:
        settings: of the command.
        generator: of the run, its modules loaded.
        weights: parameters of the network.
        step: of training.
        requests: what states are started from: one for each image of `--from`, or all that is asked for.
        images: (n, H, W, C) of `--from`, or None.
        decoder: turns examples into images; None where they are latents that nothing decodes.
        source: the conditions by which images are brought to noise.
        searcher: looks for samples of a high reward; None to draw them as they come.
    """

    settings: SampleSettings
    generator: Generator
    weights: Any
    step: int
    requests: list[Request]
    images: np.ndarray | None
    decoder: Pixels | Decoder | None
    source: Sequence[str | int] = ()
    searcher: Searcher | None = None

    def run(self) -> str:
        """Draws and writes all samples.

        Returns:
            What was written, to be printed; "" but for the first process.

        Raises:
            OSError: if a file cannot be written.
        """
        settings, generator = self.settings, self.generator
        examples = None if self.images is None else generator.decode.encode(self.images)
        requests = interpolated(self.requests, settings.interpolate) if settings.interpolate else self.requests
        factor = self.decoder.factor if self.decoder else None
        names = workdir.class_names(paths.run_folder(settings.workdir, "--workdir"))
        writer = SampleWriter(settings, generator.run, self.step, requests, factor, names, self.searcher)
        total = len(settings.steps) * sum(request.count for request in requests)
        counted: dict[int, list[np.ndarray]] = {steps: [] for steps in settings.steps}
        with Bar(total=total, unit="image", disable=jax.process_index() > 0, mininterval=1.0) as bar:
            for steps in settings.steps:

                def progress(count: int, counts: list[np.ndarray] = counted[steps]) -> None:
                    counts.append(generator.evaluations[-count:])
                    bar.update(count)

                times = generator.times(steps, start_time(settings, generator.run))
                start = self.start_states(times, examples)
                if examples is not None and start is not None:
                    writer.arrays[f"start{steps}"] = start
                for samples in draw(
                    generator, self.weights, times, requests, seed=settings.seed, start=start, progress=progress,
                    searcher=self.searcher,
                ):  # fmt: skip
                    writer.add(steps, samples)
        if jax.process_index() > 0:
            return ""
        written = writer.finish()
        truths = generator.truths
        if truths:
            written.append(self.show_restored(truths, writer))
        elif generator.aim:
            written += steered.show(settings, generator, writer, self.images)
        elif self.images is not None and self.decoder is not None and not settings.interpolate:
            written += steered.show_edited(settings, generator, writer, self.images)
        lines = [
            f"{total // len(settings.steps)} images at each of {','.join(map(str, settings.steps))} steps, from "
            f"training step {self.step}, in {writer.folder}:"
        ]
        lines += writer.rewards()
        if SAMPLERS[generator.run.sampling.sampler].skips:
            for steps, counts in counted.items():
                lines.append(f"  {steps} steps: mean NFE {np.concatenate(counts).mean():.4g}")
        if examples is not None and self.inverts and settings.source is None and not settings.interpolate:
            for steps in settings.steps:
                off = np.sqrt(np.mean((writer.arrays[f"steps{steps}"] - examples) ** 2))
                lines.append(f"  to noise and back in {steps} + {steps} steps: {off:.3g} off (RMS)")
        if truths:
            lines += self.ratios(truths, writer)
        elif generator.aim:
            lines += steered.misses(settings, generator, writer, self.images)
        return "\n".join(lines + [f"  {file}" for file in written])

    def show_restored(self, truths: Truths, writer: SampleWriter) -> str:
        """Writes the picture with input, restorations and truth in its rows; its name."""
        shown = {steps: writer.arrays[f"steps{steps}"][:SHOWN] for steps in self.settings.steps}
        rows = around(self.generator.run, truths, shown, self.settings.seed)
        name = f"{writer.name}_restored.png"
        pictures.any_step_grid(rows, path=writer.folder / name)
        return name

    def ratios(self, truths: Truths, writer: SampleWriter) -> list[str]:
        """Lines with the mean PSNR of inputs and of restorations."""
        numbers = np.arange(len(self.requests))
        given = inputs(self.generator.run, truths, self.settings.seed, numbers)
        found = {"input": given} | {f"{steps} steps": writer.arrays[f"steps{steps}"] for steps in self.settings.steps}
        real = truths(numbers)[0]
        return [f"  {name}: PSNR {psnr(pictures.as_written(one), real).mean():.4g} dB" for name, one in found.items()]

    @property
    def inverts(self) -> bool:
        """Whether images are brought to noise by the sampler."""
        return self.settings.inverts(steered=self.generator.aim is not None)

    def start_states(self, times: np.ndarray, examples: np.ndarray | None) -> np.ndarray | None:
        """The states (n, h, w, C) that sampling along `times` starts from; None for noise of the seed.

        Where images are brought to noise by a reversible sampler they are two of each, (n, 2, h, w, C), so that the way
        back is exact.

        Args:
            times: falling.
            examples: (len(requests), h, w, C) of `--from`, or None. With `--interpolate` there are as many states for
                each two neighbours as it says.
        """
        settings, generator = self.settings, self.generator
        if examples is not None and generator.aim:
            examples = examples[np.arange(sum(request.count for request in self.requests)) % len(examples)]
        if settings.start is not None and examples is not None:
            return generator.add_noise(examples, settings.start, seed=settings.seed)
        if examples is not None and self.inverts:
            states = generator.integrate(
                self.weights, times[::-1], self.source, seed=settings.seed, start=examples,
                pair=returns_exactly(settings, generator.run),
            )  # fmt: skip
        elif settings.interpolate:
            noise = generator.noise(settings.seed, len(self.requests), size=self.requests[0].size)
            states = alpha_sigma(generator.run, times[0])[1] * noise
        else:
            return None
        if not settings.interpolate:
            return states
        u = np.linspace(0, 1, settings.interpolate)
        return np.concatenate([slerp(*pair, u) for pair in zip(states, states[1:])])


def returns_exactly(settings: SampleSettings, run: Run) -> bool:
    """Whether images are brought to noise and back by a sampler that returns the way that it came.

    States between two noises are on no way that it came; with `--interpolate` it starts from them anew.
    """
    inverts = settings.inverts(run.sampling.steering.active) and not settings.interpolate
    return inverts and SAMPLERS[run.sampling.sampler].reversible


def start_time(settings: SampleSettings, run: Run) -> float | None:
    """The time at which sampling starts; None for T_max."""
    if settings.strength is None or settings.strength == 1:
        return settings.start
    return run.transport.T_min + settings.strength * (run.transport.T_max - run.transport.T_min)


def open_job(settings: SampleSettings, overrides: dict[str, str]) -> SampleJob:
    """Checks all that a command asks for, and reads the weights.

    Args:
        settings: the arguments.
        overrides: {"section.key": text} of the configuration.

    Raises:
        ValueError: one line that names what is wrong.
    """
    settings.check(overrides)
    if settings.guidance is not None:
        overrides = overrides | {"sampling.guidance": str(settings.guidance)}
    overrides = overrides | settings.steering
    folder = paths.run_folder(settings.workdir, "--workdir")
    with steered.as_typed(settings):
        run = build(workdir.load(folder, overrides))
    paths.check_folder(settings.folder, "--out")
    compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    decoder = open_decoder(run)
    truths = read_truths(settings, run)
    if settings.start is not None:
        check_path(run)
    requests, images = read_requests(settings, run, decoder, truths)
    source = steered.read_source(settings, run, requests)
    with steered.as_typed(settings):
        aim = steered.read_aim(settings, run, decoder, requests, images)
    check_layout(settings, run, requests, decoder is not None)
    texts = open_text_encoder(run) if run.config.model.condition == "text" else None
    if texts:
        texts.check([str(request.condition) for request in requests])
        if settings.source is not None:
            texts.check([str(one) for one in source])
    weights, step = load_weights(run, folder)
    run = with_found(run, folder, step)
    check_times(settings, run)
    searcher = open_searcher(settings, run, decoder)
    generator = Generator(run, batch_size(run, requests), texts, decoder or Pixels(), truths, aim)
    generator.load()
    return SampleJob(settings, generator, weights, step, requests, images, decoder, source, searcher)


def open_searcher(settings: SampleSettings, run: Run, decoder: Pixels | Decoder | None) -> Searcher | None:
    """The search that a command asks for, or None. Raises ValueError, in one line, for what is wrong with it."""
    if settings.search is None or settings.reward is None:
        return None
    search = read_search(settings.search, settings.radius)
    for steps in settings.steps:
        search.check(run, time_grid(run.transport, steps, run.sampling))
    target = None
    if decoder is not None and settings.target is not None and settings.reward in OF_TARGET:
        target = steered.read_targets(settings, run, decoder)
    return Searcher(search, open_judge(run, settings.reward, settings.classifier, target))


def read_requests(
    settings: SampleSettings, run: Run, decoder: Pixels | Decoder | None, truths: Truths | None = None
) -> tuple[list[Request], np.ndarray | None]:
    """Reads what is asked for.

    Args:
        settings: of the command.
        run: that samples.
        decoder: see `open_decoder`.
        truths: what is restored; None of a run that restores nothing.

    Returns:
        The requests, and the images (n, H, W, C) to start from or None.

    Raises:
        ValueError: one line.
    """
    factor = decoder.factor if decoder else 1
    images, size = None, run.image_shape[:2]
    if settings.images:
        images = read_images(settings.images.split(","), run, factor if decoder else None)
        size = images.shape[1] // factor, images.shape[2] // factor
    elif settings.size:
        size = read_size("--size is", settings.size, run, factor)
    if truths is not None:
        count = truths.count if settings.restored else settings.count or COUNT
        numbers = np.arange(count)
        examples, labels = truths(numbers)
        return label_requests(labels.tolist(), examples.shape[1:3]), None
    by_class = run.config.model.condition == "class"
    requests = _of_labels(settings, run, size) if by_class else _of_prompts(settings, run, size, factor)
    flag = "--labels" if by_class else "--prompts"
    measured_alone = run.sampling.steering.active and images is not None and len(images) == 1
    if settings.interpolate or settings.images and not measured_alone:
        requests = one_image_each(requests, images, size, flag)
    if settings.interpolate and len(requests) < 2:
        raise ValueError(f"--interpolate is {settings.interpolate}; it needs two images, and {flag} has one")
    return requests, images


def read_truths(settings: SampleSettings, run: Run) -> Truths | None:
    """What the command restores, for a coupled run; None for another one. Raises ValueError."""
    coupling = coupling_of(run)
    if not coupling.active:
        if settings.restored is not None:
            raise ValueError(f"--images is {settings.restored}; it needs a run with objective.coupling, and has 'none'")
        return None
    flags = {"from": settings.images, "interpolate": settings.interpolate, "size": settings.size}
    flags |= {"prompt": settings.prompt, "prompts": settings.prompts, "per-prompt": settings.per_prompt}
    for flag, value in flags.items():
        if value:
            raise ValueError(f"--{flag} is {value}; a run with objective.coupling takes --images alone")
    if settings.restored is None:
        if settings.labels:
            raise ValueError(f"--labels is {settings.labels}; it needs --images: those of the held-out part are known")
        return open_truths(run)
    images = read_images(files_of(settings.restored), run, 1, "--images")
    coupling.check_shape(*images.shape[1:])
    labels = np.full(len(images), run.config.model.num_classes)  # the null condition
    if settings.labels:
        folder = paths.run_folder(settings.workdir, "--workdir")
        labels = np.array(
            by_name.read_labels(settings.labels, workdir.class_names(folder), len(known_labels(run, folder)))
        )
    elif run.data.condition_dropout == 0:
        raise ValueError(f"--images is {settings.restored}; it needs --labels, as this run has no null condition")
    if len(labels) != len(images):
        raise ValueError(f"--labels has {len(labels)}; --images has {len(images)} images and needs one for each")
    return given_truths(images, labels, settings.restored)


def files_of(text: str) -> list[str]:
    """The files that `--images` names: those of a folder by name, or as they are. Raises ValueError for none."""
    folder = paths.given(text, "--images")
    if not folder.is_dir():
        return text.split(",")
    found = sorted(str(file) for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not found:
        raise ValueError(f"--images is {text}; it must have files, and there is none")
    return found


def _of_labels(settings: SampleSettings, run: Run, size: tuple[int, int]) -> list[Request]:
    """The requests of a run that is conditioned on labels. Raises ValueError."""
    for name in ("prompt", "prompts", "per_prompt"):
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: this run is conditioned on labels, not on text")
    folder = paths.run_folder(settings.workdir, "--workdir")
    counts, names = known_labels(run, folder), workdir.class_names(folder)
    return read_labels(settings.labels, settings.count or COUNT, size, counts, names)


def _of_prompts(settings: SampleSettings, run: Run, size: tuple[int, int], factor: int) -> list[Request]:
    """The requests of a run that is conditioned on text. Raises ValueError."""
    for name, instead in (("labels", "--prompt"), ("count", "--per-prompt")):
        if value := getattr(settings, name):
            raise ValueError(f"--{name} is {value}; it must be {instead}, as this run is conditioned on text")
    if (settings.prompt is None) == (settings.prompts is None):
        raise ValueError("--prompt, --prompts: this run is conditioned on text; give one of them")
    prompts = [("00000", {"prompt": settings.prompt})] if settings.prompts is None else read_prompts(settings.prompts)
    return prompt_requests(prompts, size, settings.per_prompt or LAYOUTS[settings.layout].count, run, factor)


def one_image_each(
    requests: Sequence[Request], images: np.ndarray | None, size: tuple[int, int], flag: str
) -> list[Request]:
    """The requests with the noises 0, 1, … in turn, for `--from` and `--interpolate`.

    Args:
        requests: what is asked for.
        images: to start from, or None.
        size: (h, w) that all examples must have.
        flag: that asks for them.

    Raises:
        ValueError: if a request is for several images or another size, or there are not as many requests as images.
    """
    if any(request.count > 1 or request.size != size for request in requests):
        raise ValueError(
            f"{flag} has prompts with several images or other sizes; --from and --interpolate take neither"
        )
    if images is not None and len(requests) != len(images):
        raise ValueError(f"{flag} has {len(requests)}; --from has {len(images)} images and needs one for each")
    return [dataclasses.replace(request, first=i) for i, request in enumerate(requests)]


def interpolated(requests: Sequence[Request], count: int) -> list[Request]:
    """`count` requests on the way from each request to the next, each with the condition of the nearer one."""
    nearer = [i if k < count / 2 else i + 1 for i in range(len(requests) - 1) for k in range(count)]
    return [dataclasses.replace(requests[i], first=k, name=f"{k:05}") for k, i in enumerate(nearer)]


def check_layout(settings: SampleSettings, run: Run, requests: Sequence[Request], is_picture: bool) -> None:
    """Raises ValueError for a layout that does not suit what is asked for."""
    if settings.layout == "plain":
        return
    where = f"--layout is {settings.layout!r}"
    if run.config.model.condition != "text":
        raise ValueError(f"{where}, which is for prompts; this run is conditioned on labels")
    if not is_picture:
        raise ValueError(
            f"{where}; examples of this run are latents, and codecs.autoencoder, which decodes them, is ''"
        )
    if settings.images or settings.interpolate:
        raise ValueError(f"{where}; with --from and --interpolate it must be 'plain'")
    LAYOUTS[settings.layout].check(settings.layout, requests, settings.steps)


def check_times(settings: SampleSettings, run: Run) -> None:
    """Raises ValueError for step counts, or a `--start`, that the run's transport and sampler cannot take."""
    start = start_time(settings, run)
    if settings.start is not None and start is not None and not run.transport.T_min < start <= run.transport.T_max:
        ends = f"above {run.transport.T_min:g} and at most {run.transport.T_max:g}"
        raise ValueError(f"--start is {start}; it must be {ends} for {run.transport.name}")
    upwards = settings.inverts(run.sampling.steering.active)
    for steps in settings.steps:
        if returns_exactly(settings, run):
            if steps < 2:
                raise ValueError(f"--steps has {steps}; it must be 2 and more for a way back by {run.sampling.sampler}")
            check_pairs(run.sampling, steps)
        times = time_grid(run.transport, steps, run.sampling, start)
        make_plan(run.transport, times[::-1] if upwards else times, run.sampling)
