"""Sections of pictures: samples with a slider over steps, trajectories, nearest training images."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tim_jax.report.drawing import Drawn
from tim_jax.report.markup import Markup, component, join, missing, tag
from tim_jax.report.reading import Folder

LARGEST = 20_000_000  # bytes of a picture in the workdir that a page takes
SMALL = 64  # pixels of a side, below which an image is enlarged without smoothing


def uri(pixels: np.ndarray) -> str:
    """Returns bytes (h, w, 3) as the data URI of a PNG, which has one channel where the three are alike."""
    grey = (pixels == pixels[..., :1]).all()
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels)).save(png, "PNG", optimize=True)
    return embedded(png.getvalue())


def embedded(png: bytes) -> str:
    """Returns the data URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image(source: str, text: str, small: bool, **attributes: str) -> Markup:
    """Returns an image with the text that stands for it."""
    return tag("img", src=source, alt=text, class_="pixels" if small else None, **attributes)


def tiles(sources: Sequence[str], captions: Sequence[str], texts: Sequence[str], small: bool) -> Markup:
    """Returns images with captions, as many in a row as fit."""
    items = [
        tag("li", tag("figure", image(source, text, small), tag("figcaption", caption, title=caption)))
        for source, caption, text in zip(sources, captions, texts, strict=True)
    ]
    return tag("ul", *items, class_="tiles")


def samples_section(drawn: Drawn) -> Markup:
    """Returns samples with a slider over steps and a choice of the sampler."""
    steps = sorted(drawn.samples[drawn.own])
    start = len(steps) - 1
    uris = {name: [[uri(one) for one in of[n]] for n in steps] for name, of in drawn.samples.items()}
    small = next(iter(drawn.samples[drawn.own].values())).shape[1] <= SMALL
    data = {
        "steps": steps,
        "samplers": list(drawn.samples),
        "nfe": [[round(drawn.evaluations[name][n], 2) for n in steps] for name in drawn.samples],
        "images": list(uris.values()),
        "captions": drawn.captions,
    }
    texts = [f"{caption}, {steps[start]} steps, {drawn.own}" for caption in drawn.captions]
    about = f"Weights “{drawn.ema}” of step {drawn.step:,}. "
    about += "Every image keeps its noise and its condition, whatever the steps and the sampler."
    shown = tiles(uris[drawn.own][start], drawn.captions, texts, small)
    controls = [
        tag(
            "label", tag("span", "Steps"),
            tag("input", type="range", min="0", max=str(start), step="1", value=str(start), class_="steps",
                aria_label="Steps of the sampler", aria_valuetext=f"{steps[start]} steps"),
            tag("output", steps_told(steps[start], drawn.evaluations[drawn.own][steps[start]])),
        )
    ]  # fmt: skip
    if len(uris) > 1:
        radios = [
            tag("label", tag("input", type="radio", name="sampler", value=str(i), checked=i == 0), tag("span", name))
            for i, name in enumerate(uris)
        ]
        controls.append(tag("fieldset", tag("legend", "Sampler"), *radios, class_="choice"))
    return join(
        [
            tag("p", about, class_="note"),
            component("samples", data, tag("div", *controls, class_="controls panel"), shown),
        ]
    )


def steps_told(steps: int, nfe: int | float) -> str:
    """Returns a number of steps with what it costs."""
    mean = " on average" if isinstance(nfe, float) else ""
    return f"{steps} step{'s' * (steps > 1)}, {nfe:.4g} evaluation{'s' * (nfe > 1)}{mean}"


def paths_section(drawn: Drawn) -> Markup:
    """Returns the states of some samples on their way from noise to data, with a choice of the number of steps."""
    if not drawn.paths:
        return missing(
            "No trajectory was drawn: of the step counts none is from 2 to 8. They are chosen by:", "--steps"
        )
    small = next(iter(drawn.paths.values())).states.shape[2] <= SMALL
    shown = []
    longest = max(drawn.paths)
    for steps, path in drawn.paths.items():
        header = [tag("td"), *(tag("th", f"t = {time:.3g}", scope="col") for time in path.times)]
        rows = [tag("tr", *header)]
        for i, caption in enumerate(drawn.captions[: path.states.shape[1]]):
            cells = [
                tag("td", image(uri(state), f"{caption}, state at t = {time:.3g} of {steps} steps", small))
                for state, time in zip(path.states[:, i], path.times, strict=True)
            ]
            rows.append(tag("tr", tag("th", caption, scope="row", title=caption), *cells))
        body = tag("table", tag("tbody", *rows), class_="path")
        label = f"Trajectories in {steps} steps"
        holder = tag("div", body, class_="scroll", tabindex="0", role="region", aria_label=label)
        shown.append(tag("div", holder, data_choice=str(steps), hidden=steps != longest))
    radios = [
        tag("label", tag("input", type="radio", name="path", value=str(n), checked=n == longest), tag("span", n))
        for n in drawn.paths
    ]
    choice = tag("fieldset", tag("legend", "Steps"), *radios, class_="choice")
    x_t, x_r = (join([tag("i", "x"), tag("sub", tag("i", time))]) for time in "tr")
    about = join([
        "States ", x_t, f" of the first samples on their way from noise (left) to data (right), by {drawn.own}. From a "
        "column to the next is one jump ", x_t, " → ", x_r, ". Values beyond those of an image are cut off.",
    ])  # fmt: skip
    return join(
        [
            tag("p", about, class_="note"),
            component("choice", {}, tag("div", choice, class_="controls panel"), *shown),
        ]
    )


def nearest_section(drawn: Drawn | None, folder: Folder, command: str) -> Markup:
    """Returns samples beside the nearest training images, or what `evaluate` has drawn of them. command: that one."""
    if drawn is None or drawn.nearest is None:
        png = folder.bytes("nearest.png")
        if png and len(png) <= LARGEST:
            about = tag("p", "As the last evaluation of this run has drawn them (nearest.png).", class_="note")
            return join([about, whole(png, "Samples, each beside the training image that is nearest to it")])
        why = drawn.why if drawn else "No samples were drawn."
        return missing(f"{why} Samples beside their nearest training images are drawn by:", command)
    samples, training, distances = drawn.nearest
    small = samples.shape[1] <= SMALL
    pairs = [
        tag(
            "li",
            tag(
                "figure",
                image(uri(one), f"sample, {caption}", small), image(uri(other), "its nearest training image", small),
                tag("figcaption", f"{caption} · ", tag("span", f"{distance:.2f}", class_="figure")),
            ),
        )
        for one, other, caption, distance in zip(samples, training, drawn.captions, distances, strict=True)
    ]  # fmt: skip
    text = (
        f"Each pair: a sample ({drawn.own}, {max(drawn.samples[drawn.own])} steps) and the training image nearest to "
        "it, with their Euclidean distance over all pixels in [−1, 1]. Equal pairs and distances near 0 mean that "
        "training images were memorised."
    )
    return join([tag("p", text, class_="note"), tag("ul", *pairs, class_="tiles pairs")])


def whole(png: bytes, text: str) -> Markup:
    """Returns a picture that a command has drawn, as wide as it is."""
    return tag("div", tag("img", src=embedded(png), alt=text, class_="whole"), class_="scroll paper", tabindex="0",
               role="region", aria_label=text)  # fmt: skip


def kept_section(folder: Folder, reason: str, command: str) -> Markup:
    """Returns samples that the last evaluation has drawn, where none are drawn now, or how they are."""
    png = folder.bytes("any_step_samples.png")
    parts = [missing(reason, command)]
    if png and len(png) <= LARGEST:
        parts.append(tag("p", "As the last evaluation of this run has drawn them (any_step_samples.png):"))
        parts.append(whole(png, "Samples by number of steps"))
    return join(parts)
