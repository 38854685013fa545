"""What shards depend on, which may not change while they are made."""

import json
from typing import Any

from tim_jax.codecs import loading, packaged, stand_in, tokenizer
from tim_jax.config.run import Run
from tim_jax.data.sources.base import digest
from tim_jax.runs.encoding.work import Work

START = 2**20  # bytes of a file of weights that tell it from others: its header and the first weights


def shard_settings(run: Run, work: Work) -> dict[str, Any]:
    """Returns all that the shards of a run depend on, as JSON has it."""
    config, codecs = run.config, run.codecs
    by_text = config.model.condition == "text"
    used = {
        "autoencoder": bool(codecs.autoencoder),
        "text_encoder": by_text,
        "image_encoder": config.data.features_width > 0,
    }
    escapes = {"escapes": True} if codecs.text_escapes else {}  # told only where they are: shards of before had none
    settings = {
        "source": {"name": work.source.name, "rows": len(work.source), "fingerprint": work.source.fingerprint()},
        "rows_per_shard": work.rows_per_shard,
        "buckets": {f"{bucket.height}x{bucket.width}": sum(bucket.images) for bucket in work.plan.buckets},
        "features": {"width": config.data.features_width, "side": run.inputs.augmentation.side},
        "text": {"tokens": config.data.text_tokens, "states": codecs.text_states} | escapes if by_text else None,
        "codecs": {name: module_identity(getattr(codecs, name)) if needed else None for name, needed in used.items()}
        | {"latents": codecs.latents, "dtype": codecs.dtype, "tile": codecs.tile},
    }
    return json.loads(json.dumps(settings))


def module_identity(path: str) -> dict[str, Any]:
    """Tells a pretrained module from others.

    Args:
        path: as `codecs` has it: a folder, hf://…, or a name such as that of the stand-in.

    Returns:
        {"path", "fingerprint"}; the fingerprint is of the module's configuration and of the name, size and beginning
        of each file of weights.
    """
    if path == stand_in.NAME:
        return {"path": path, "fingerprint": digest(stand_in.CONFIG, stand_in.SEED)}
    folder, files = loading.find(packaged.local(path))
    found = []
    for file in [folder / "config.json", tokenizer.file_in(folder), *files]:
        if file.exists():
            with file.open("rb") as opened:
                found.append((file.name, file.stat().st_size, digest(opened.read(START))))
    return {"path": path, "fingerprint": digest(found)}
