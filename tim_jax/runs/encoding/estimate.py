"""How large shards will be, before they are made."""

import math

import numpy as np

from tim_jax.config.run import Run
from tim_jax.data.shard_files import EXAMPLE_OVERHEAD, SHARD_OVERHEAD
from tim_jax.runs.encoding.examples import ExampleEncoder, png
from tim_jax.runs.encoding.work import Reading, Work

SAMPLED = 64  # examples of the source whose captions, and images where shards hold them, are looked at


def size_in_bytes(run: Run, work: Work, encoder: ExampleEncoder) -> int:
    """Estimates the bytes of all shards: latents and features by their shapes, texts and images by some of them."""
    captions, tokens, per_pixel = sampled(work, encoder)
    each = EXAMPLE_OVERHEAD + captions + tokens * run.config.data.text_width * 2
    total = work.plan.images() * each + work.shards * SHARD_OVERHEAD
    for bucket in work.plan.buckets:
        pixels, row = math.prod(bucket.shape), 0.0
        if encoder.keeps_images:
            row += per_pixel * pixels
        else:
            numbers = 2 if run.codecs.latents == "sample" else 1
            row += 2 * numbers * run.image_shape[-1] * pixels / run.inputs.factor**2 * 4
        row += 2 * run.config.data.features_width * pixels / run.inputs.augmentation.side**2 * 4
        total += sum(bucket.images) * row
    return int(total)


def sampled(work: Work, encoder: ExampleEncoder) -> tuple[float, float, float]:
    """Means over examples that can be used: bytes of their captions, tokens of them, bytes of a file per pixel."""
    rows = np.flatnonzero(work.bucket >= 0)
    reading = Reading.of(work, rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int))])
    found = [row for row in map(reading, range(len(reading.rows))) if "bad" not in row]
    if not found:
        return 0.0, 0.0, 0.0
    texts = encoder.texts
    captions = [row.get("captions", ()) for row in found]
    tokens = [sum(min(texts.tokenizer.count(t), texts.length) for t in row) if texts else 0 for row in captions]
    images = [row["image"] for row in found] if encoder.keeps_images else []
    per_pixel = [len(png(image)) / math.prod(image.shape[:2]) for image in images] or [0]
    in_bytes = [sum(len(text.encode()) for text in row) for row in captions]
    return float(np.mean(in_bytes)), float(np.mean(tokens)), float(np.mean(per_pixel))
