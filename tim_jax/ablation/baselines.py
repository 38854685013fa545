"""Baselines of an ablation: models trained elsewhere, such as the variants' teacher, which are only measured."""

import copy
import time
from typing import Any

from etils import epath

from tim_jax.ablation import runs
from tim_jax.ablation.settings import Ablation, Member
from tim_jax.config import identity, keys
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.runs import measuring, workdir
from tim_jax.runs.teachers import SHORT
from tim_jax.system import compilation_cache
from tim_jax.training import checksums, warm_start
from tim_jax.training.warm_start import Saved

# Keys in which a baseline must agree with the variants, so that their samples can be compared.
SAME = ("data.height", "data.width", "data.channels", "model.condition", "model.num_classes")


def check(ablation: Ablation, folder: epath.Path) -> None:
    """Checks that the figures in an ablation's folder are of the models that the ablation names.

    No checkpoint is looked at, so that a table can be made where there is none.

    Args:
        ablation: the ablation.
        folder: its folder.

    Raises:
        ValueError: naming a baseline that was measured as another model, or as a variant, or the reverse.
    """
    for member in ablation.members():
        result = runs.read(folder / str(member)) or {}
        if "table" not in result:
            continue
        given, before = ablation.baselines.get(member.variant), result.get("baseline", {}).get("checkpoint")
        if given != before:
            now, then = (f"a baseline, {path!r}" if path else "a variant" for path in (given, before))
            raise ValueError(
                f"{member.variant!r} is {now}, but {folder / str(member)} was measured as {then}: "
                "give that, another name or another workdir"
            )


def find(ablation: Ablation, name: str, folder: epath.Path) -> tuple[Run, Saved]:
    """Finds a baseline.

    Args:
        ablation: the ablation.
        name: of the baseline.
        folder: of the ablation.

    Returns:
        The run that trained the model, set to be measured as the variants are, and its checkpoint.

    Raises:
        ValueError: if there is none, if its samples cannot be compared with those of the variants, or if some of its
            figures in the ablation's folder are of another checkpoint.
    """
    path, key = ablation.baselines[name], f"baseline {name!r}"
    saved = warm_start.find(path, key)
    now = _identity(saved)
    for seed in range(ablation.seeds):
        place = folder / str(Member(name, seed))
        before = (runs.read(place) or {}).get("baseline", now)
        if any(before[field] != now[field] for field in now):
            raise ValueError(
                f"{key} is {path!r}; it must still be at {_short(before)}, of which {place} is, and is at "
                f"{_short(now)}: remove {folder / name}, or give another name or another workdir"
            )
    config = workdir.restored(warm_start.record(saved)["config"], saved.directory.parent)
    reference = ablation.config(ablation.reference)
    own, wanted = keys.flatten(config), keys.flatten(reference)
    for shared in SAME:
        if own[shared] != wanted[shared]:
            raise ValueError(
                f"{key} is {path!r}; it must have the {shared} of the variants, {wanted[shared]!r}, and has "
                f"{own[shared]!r}"
            )
    ema = config.sampling.ema
    config.sampling, config.mesh = copy.deepcopy(reference.sampling), copy.deepcopy(reference.mesh)
    config.sampling.ema = ema
    config.evaluation.batch_size = reference.evaluation.batch_size
    for codec in identity.CODECS:
        config.codecs[codec] = reference.codecs[codec]
    try:
        run = build(config)
        runs.network_evaluations(run, ablation.sampler_steps)
    except ValueError as error:
        raise ValueError(f"{key} is {path!r}; it must be a run that can be measured: {error}") from None
    return run, saved


def measure(ablation: Ablation, member: Member, folder: epath.Path) -> dict[str, Any]:
    """Measures a baseline as the reference variant is measured, with the weights that its own run samples with.

    Args:
        ablation: the ablation.
        member: the baseline, and the seed of the noise.
        folder: of the ablation.

    Returns:
        {"seconds" of measuring, "table": an any-step table, "baseline"}. The last is {"checkpoint": the path in the
        ablation, "ema": the weights, "steps": training steps, "fingerprint": of the checkpoint}.

    Raises:
        ValueError: as `find` does.
    """
    began = time.perf_counter()
    run, saved = find(ablation, member.variant, folder)
    reference = build(ablation.config(ablation.reference))
    compilation_cache.use(reference.training.compilation_cache, reference.training.compilation_cache_gib)
    weights = warm_start.read_network(saved, run.sampling.ema, run.trainer.abstract_online)
    nfe = runs.network_evaluations(run, ablation.sampler_steps)
    measurement = measuring.open_measurement(reference)
    generator = measuring.measurement_generator(run, measurement.sample_count())
    table = runs.table_of(measurement, generator, weights, nfe, member.seed, folder / str(member))
    of = {"checkpoint": ablation.baselines[member.variant], "ema": run.sampling.ema} | _identity(saved)
    return {"seconds": time.perf_counter() - began, "table": table, "baseline": of}


def _identity(saved: Saved) -> dict[str, Any]:
    return {"steps": saved.step, "fingerprint": checksums.fingerprint(saved.directory / str(saved.step))}


def _short(about: dict[str, Any]) -> str:
    return f"step {about['steps']} (fingerprint {(about['fingerprint'] or 'unknown')[:SHORT]})"
