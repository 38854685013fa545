"""Bucket plans to look at: as one line, as a table, and as pictures of the buckets and of their first batches."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tim_jax import data
from tim_jax.system import tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = ("bucket", "images", "batch", "tokens", "steps/epoch", "cropped %")
NAMED = 24  # labels that are listed with their names
LINE = 90  # characters in a line of a picture's title


def table(plan: data.BucketPlan, side: int) -> list[tuple[str, ...]]:
    """The table of a plan.

    Args:
        plan: of buckets.
        side: pixels, or latent positions, per token and direction.

    Returns:
        For each bucket a line of texts under HEADINGS; tokens are those of an example and of a batch.
    """
    lines: list[tuple[str, ...]] = []
    for bucket in plan.buckets:
        tokens = (bucket.height // side) * (bucket.width // side)
        steps = float(sum(bucket.amount)) / bucket.batch_size
        lines.append(
            (
                f"{bucket.height}x{bucket.width}",
                f"{sum(bucket.images):,}",
                str(bucket.batch_size),
                f"{tokens} x {bucket.batch_size} = {tokens * bucket.batch_size:,}",
                f"{steps:.1f}",
                f"{100 * bucket.cropped:.1f}",
            )
        )
    return lines


def summary(source: data.Source, plan: data.BucketPlan) -> str:
    """A plan in one line, and further ones for images that are not used, what is left out, and the names of labels."""
    images, total = plan.images(), len(source)
    cropped = sum(sum(bucket.images) * bucket.cropped for bucket in plan.buckets) / max(images, 1)
    text = f"{source.name}: {images:,} of {total:,} images in {_shapes(plan)}, {100 * cropped:.1f}% cropped"
    if plan.not_used:
        text += "\nnot used: " + ", ".join(f"{why} {count:,}" for why, count in plan.not_used.items())
    if source.left_out:
        text += "\nleft out: " + ", ".join(f"{what} {count:,}" for what, count in source.left_out.items())
    if any(name != str(label) for label, name in enumerate(source.class_names)):
        text += "\nlabels: " + labels(source.class_names)
    return text


def labels(names: tuple[str, ...]) -> str:
    """Labels with their names, the first of many."""
    more = len(names) - NAMED
    listed = ", ".join(f"{label} {name}" for label, name in enumerate(names[:NAMED]))
    return listed + (f" and {more:,} more, the last {names[-1]}" if more > 0 else "")


def _shapes(plan: data.BucketPlan) -> str:
    """How many buckets there are, and the shapes of the largest and the smallest."""
    shapes = [f"{height}x{width}" for height, width in sorted((b.shape for b in plan.buckets), key=math.prod)]
    return f"1 bucket of {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} buckets of {shapes[0]} to {shapes[-1]}"


def layout(lines: list[tuple[str, ...]]) -> str:
    """Lays out HEADINGS and lines as a table in text."""
    rows = [HEADINGS, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def picture(plan: data.BucketPlan, side: int, title: str) -> "Figure":
    """Draws a plan: the shapes of the buckets with their share of the images, and the table."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(11, max(4.5, 1.5 + 0.24 * len(plan.buckets))), layout="constrained")
    shapes, text = figure.subplots(1, 2, width_ratios=(2, 3))
    total = plan.images()
    for bucket in plan.buckets:
        share = sum(bucket.images) / total
        shapes.scatter(bucket.width, bucket.height, s=2000 * share + 8, color="tab:blue", alpha=0.5)
    longest = 1.15 * max(max(bucket.shape) for bucket in plan.buckets)
    shapes.plot([0, longest], [0, longest], color="0.8", linewidth=1, zorder=0)
    shapes.set(xlim=(0, longest), ylim=(0, longest), xlabel="width", ylabel="height", aspect="equal")
    figure.suptitle(textwrap.fill(title, LINE))
    shapes.set_anchor("N")
    text.axis("off")
    cells = text.table(cellText=table(plan, side), colLabels=HEADINGS, loc="upper center", cellLoc="right")
    cells.auto_set_font_size(False)
    cells.set_fontsize(8)
    cells.auto_set_column_width(range(len(HEADINGS)))
    cells.scale(1, 1.25)
    return figure


def first_steps(order: data.Order) -> list[int]:
    """The step at which each bucket comes first."""
    found: dict[int, int] = {}
    step = 0
    while len(found) < len(order.plan.buckets):
        found.setdefault(order.bucket(step)[0], step)
        step += 1
    return [found[bucket] for bucket in range(len(found))]


def contact_sheet(batch: dict[str, np.ndarray], title: str, names: tuple[str, ...] = ()) -> Image.Image:
    """Draws the examples of a batch on a nearly square sheet, each with its caption or the name of its label.

    Args:
        batch: as in training; of latents three channels are drawn, scaled.
        title: drawn above.
        names: of labels; () or a single one for none.
    """
    x = batch["x"]
    if x.shape[-1] not in (1, 3):
        x = x[..., :3] / max(1e-6, float(np.abs(x[..., :3]).max()))
    x = np.repeat(x, 3, -1) if x.shape[-1] == 1 else x
    count, height, width, _ = x.shape
    columns = max(1, min(count, round(math.sqrt(count * height / width))))
    shown = list(np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8))
    rows = [shown[start : start + columns] for start in range(0, count, columns)]
    return tiles.sheet(rows, tile_labels=_tile_labels(batch, names), title=title)


def _tile_labels(batch: dict[str, np.ndarray], names: tuple[str, ...]) -> list[str]:
    """What is written below the examples of a batch: [] for nothing. Names that cannot be drawn are numbers."""
    if "caption" in batch:
        return [tiles.drawable(str(caption)) for caption in batch["caption"]]
    if len(names) < 2:
        return []
    drawn = [name if tiles.drawable(name) == name else f"label {label}" for label, name in enumerate(names)]
    return [drawn[label] for label in batch["label"].tolist()]


def write(
    source: data.Source, plan: data.BucketPlan, augmentation: data.Augmentation, seed: int, folder: Path
) -> list[Path]:
    """Writes plan.png and a contact sheet per bucket.

    Args:
        source: of the examples.
        plan: its buckets.
        augmentation: as in training.
        seed: of training, so that the sheets show its first batches.
        folder: is made if need be.

    Returns:
        The files written, plan.png first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "plan.png"]
    picture(plan, augmentation.side, source.name).savefig(written[0], dpi=130)
    batches = data.global_batches(source, plan, seed, augmentation=augmentation)
    for bucket, step in zip(plan.buckets, first_steps(data.Order(plan, seed)), strict=True):
        written.append(folder / f"bucket-{bucket.height}x{bucket.width}.png")
        title = f"{bucket.height}x{bucket.width}, step {step}"
        contact_sheet(batches[step], title, source.class_names).save(written[-1])
    return written
