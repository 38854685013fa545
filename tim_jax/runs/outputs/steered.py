"""What `python -m tim_jax.sample` steers samples towards, and shows of them; and by what it edits images."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.evaluation.restored import psnr
from tim_jax.runs import labels, workdir
from tim_jax.runs.encoders import Decoder, Pixels
from tim_jax.runs.generation import Generator
from tim_jax.runs.outputs.requests import Request, read_pixels
from tim_jax.runs.outputs.settings import SampleSettings
from tim_jax.runs.outputs.writer import SampleWriter
from tim_jax.runs.steering import Aim, open_aim, open_own
from tim_jax.system import paths
from tim_jax.transitions.rewards import OF_TARGET

SHOWN = 12  # images in their picture


def read_source(settings: SampleSettings, run: Run, requests: Sequence[Request]) -> list[str | int]:
    """The conditions by which images are brought to noise: those of `--source`, or those that are drawn.

    Raises:
        ValueError: one line, for labels that there are not, or not one for each image.
    """
    if settings.source is None:
        return [request.condition for request in requests]
    if run.config.model.condition == "text":
        return [settings.source] * len(requests)
    names = workdir.class_names(paths.run_folder(settings.workdir, "--workdir"))
    found = labels.read_labels(settings.source, names, run.config.model.num_classes, "--source")
    if len(found) not in (1, len(requests)):
        raise ValueError(f"--source has {len(found)}; it must have one, or one for each of {len(requests)} images")
    return [*found] * (len(requests) // len(found))


def read_aim(
    settings: SampleSettings,
    run: Run,
    decoder: Pixels | Decoder | None,
    requests: Sequence[Request],
    images: np.ndarray | None,
) -> Aim | None:
    """What is asked for; None where samples are not steered.

    Args:
        settings: of the command.
        run: that samples.
        decoder: see `open_decoder`.
        requests: what is drawn.
        images: (n, H, W, c) of `--from`, or None.

    Raises:
        ValueError: one line.
    """
    steering = run.sampling.steering
    if not steering.active:
        for name in ("mask", "target"):
            searched = name == "target" and settings.reward in OF_TARGET
            if (value := getattr(settings, name)) is not None and not searched:
                raise ValueError(f"--{name} is {value}; it needs --operator, which says what is measured")
        return None
    where = f"sampling.steering.operator is {steering.operator!r}"
    if decoder is None:
        raise ValueError(f"{where}; it must be '' for latents that nothing decodes: codecs.autoencoder is ''")
    if settings.interpolate:
        raise ValueError(f"{where}; it must be '' with --interpolate")
    target: np.ndarray | None
    mask: np.ndarray | None
    if steering.is_reward:
        if settings.mask is not None:
            raise ValueError(f"--mask is {settings.mask}; it must be left out with the reward {steering.operator!r}")
        if settings.target is None:
            return open_own(run)
        if steering.operator in OF_TARGET:
            target = read_targets(settings, run, decoder)
            return open_aim(run, target.shape[1:], target=target)
        names = workdir.class_names(paths.run_folder(settings.workdir, "--workdir"))
        label = labels.read_labels(settings.target, names, run.config.model.num_classes, "--target")
        return open_aim(run, run.image_shape, label=np.array(label, np.int32))
    sizes = {request.size for request in requests}
    if len(sizes) > 1:
        raise ValueError(f"{where}; it must be '' for images of several sizes")
    (height, width), factor = next(iter(sizes)), decoder.factor
    shape = (height * factor, width * factor, _channels(run, decoder))
    target = mask = None
    if settings.target is not None:
        target = read_targets(settings, run, decoder)
        if steering.operator == "greyscale":
            target = target[..., :1]
        elif steering.operator == "colour_statistics":
            images, target = target, None
    if settings.mask is not None:
        mask = 1 - _read(settings.mask, "--mask", 1)[..., 0] / 255
    return open_aim(run, shape, images, target, mask)


@contextlib.contextmanager
def as_typed(settings: SampleSettings) -> Iterator[None]:
    """Within it errors name the flag that an operator or a mask was given by, in place of the key."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if settings.operator is not None:
            text = text.replace("sampling.steering.operator is", "--operator is", 1)
        raise ValueError(f"--{text}" if text.startswith("mask is") else text) from None


def read_targets(settings: SampleSettings, run: Run, decoder: Pixels | Decoder) -> np.ndarray:
    """The images (n, H, W, c) of `--target`, in [−1, 1]. Raises ValueError."""
    read = [_read(name, "--target", _channels(run, decoder)) for name in str(settings.target).split(",")]
    if len({each.shape for each in read}) > 1:
        raise ValueError(f"--target is {settings.target}; it must be of images of one size")
    return np.stack(read) / np.float32(127.5) - 1


def _channels(run: Run, decoder: Pixels | Decoder) -> int:
    return 3 if isinstance(decoder, Decoder) else run.image_shape[-1]


def _read(name: str, flag: str, channels: int) -> np.ndarray:
    """The pixels (H, W, c) of a file, 0 … 255, in float32. Raises ValueError."""
    return read_pixels(name, flag, channels).astype(np.float32)


def drawn(settings: SampleSettings, generator: Generator, writer: SampleWriter) -> dict[int, np.ndarray]:
    """The images (n, H, W, c) of each step count, where all have one size."""
    found = {steps: writer.arrays.get(f"steps{steps}") for steps in settings.steps}
    return {steps: generator.decode(examples) for steps, examples in found.items() if examples is not None}


def show(settings: SampleSettings, generator: Generator, writer: SampleWriter, images: np.ndarray | None) -> list[str]:
    """Writes the picture with what was measured, samples and the images of `--from` in its rows; its name."""
    assert generator.aim is not None, "a generator that steers"
    found = drawn(settings, generator, writer)
    if not found:
        return []
    first = next(iter(found.values()))
    count = min(SHOWN, len(first))
    measured = generator.aim.shown(first[:count])
    if measured is None:
        return []
    rows: dict[str | int, np.ndarray] = {"measured": measured}
    rows |= {steps: samples[:count] for steps, samples in found.items()}
    if images is not None:
        rows["from"] = images[np.arange(count) % len(images)]
    name = f"{writer.name}_steered.png"
    pictures.any_step_grid(rows, path=writer.folder / name)
    return [name]


def show_edited(settings: SampleSettings, generator: Generator, writer: SampleWriter, images: np.ndarray) -> list[str]:
    """Writes the picture with the images of `--from` above the samples that started from them; its name."""
    found = drawn(settings, generator, writer)
    if not found:
        return []
    rows: dict[str | int, np.ndarray] = {"from": images[:SHOWN]}
    rows |= {steps: samples[:SHOWN] for steps, samples in found.items()}
    name = f"{writer.name}_edited.png"
    pictures.any_step_grid(rows, path=writer.folder / name)
    return [name]


def misses(
    settings: SampleSettings, generator: Generator, writer: SampleWriter, images: np.ndarray | None
) -> list[str]:
    """Lines with the root mean square by which samples miss what was measured, and their PSNR to `--from`."""
    assert generator.aim is not None, "a generator that steers"
    lines = []
    for steps, samples in drawn(settings, generator, writer).items():
        off = generator.aim.off(samples)
        if off is None:
            continue
        line = f"  {steps} steps: measurements {np.sqrt(np.mean(off**2)):.3g} off (RMS)"
        if images is not None:
            true = images[np.arange(len(samples)) % len(images)]
            line += f", PSNR to --from {psnr(pictures.as_written(samples), true).mean():.4g} dB"
        lines.append(line)
    return lines
