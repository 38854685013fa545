"""Models beside an ablation's variants: trained elsewhere, such as their teacher, and only measured."""

import copy
import time
from typing import Any

from etils import epath

from tim_jax.ablation import runs
from tim_jax.ablation.settings import Ablation, Member
from tim_jax.config import keys
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.runs import measuring, workdir
from tim_jax.runs.teachers import SHORT
from tim_jax.system import compilation_cache
from tim_jax.training import checksums, warm_start
from tim_jax.training.warm_start import Saved

SAME = ("data.height", "data.width", "data.channels", "model.condition", "model.num_classes")


def check(ablation: Ablation, folder: epath.Path) -> None:
    """Raises ValueError if an ablation's folder has figures of another model than the ablation names.

    No checkpoint is looked at, so that a table can be made where there is none.
    """
    for member in ablation.members():
        result = runs.read(folder / str(member)) or {}
        if "table" not in result:
            continue
        given, before = ablation.beside.get(member.variant), result.get("beside", {}).get("weights")
        if given != before:
            now, then = (f"beside, {path!r}" if path else "a variant" for path in (given, before))
            raise ValueError(
                f"{member.variant!r} is {now}, but {folder / str(member)} was measured as {then}: "
                "give that, another name or another workdir"
            )


def find(ablation: Ablation, name: str, folder: epath.Path) -> tuple[Run, Saved]:
    """The run that a model was trained by, set to be measured as the variants are, and its checkpoint.

    Raises ValueError if there is none, if its samples cannot be compared with those of the variants, or if some of its
    figures in the ablation's folder are of another checkpoint.
    """
    path, key = ablation.beside[name], f"beside {name!r}"
    saved = warm_start.find(path, key)
    now = _identity(saved)
    for seed in range(ablation.seeds):
        place = folder / str(Member(name, seed))
        before = (runs.read(place) or {}).get("beside", now)
        if any(before[part] != now[part] for part in now):
            raise ValueError(
                f"{key} is {path!r}, now {_told(now)}, but {place} is of {_told(before)}: "
                f"remove {folder / name}, or give another name or another workdir"
            )
    config = workdir.restored(warm_start.record(saved)["config"])
    reference = ablation.config(ablation.reference)
    own, wanted = keys.flatten(config), keys.flatten(reference)
    for of in SAME:
        if own[of] != wanted[of]:
            raise ValueError(f"{key} is {path!r}; its {of} is {own[of]!r}, must be {wanted[of]!r} as that of variants")
    weights = config.sampling.ema
    config.sampling, config.mesh = copy.deepcopy(reference.sampling), copy.deepcopy(reference.mesh)
    config.sampling.ema = weights
    config.evaluation.batch_size = reference.evaluation.batch_size
    for place in keys.PLACES:
        config.codecs[place] = reference.codecs[place]
    try:
        run = build(config)
        runs.network_evaluations(run, ablation.sampler_steps)
    except ValueError as error:
        raise ValueError(f"{key} is {path!r}; {error}") from None
    return run, saved


def measured(ablation: Ablation, member: Member, folder: epath.Path) -> dict[str, Any]:
    """{"seconds": of measuring, "table", "beside"} of a model, on noise of the seed.

    It is measured as the reference is, with weights of the kind that it samples with itself. "beside": {"weights": the
    path as the ablation has it, "which", "steps", "fingerprint"}. folder: the ablation's. Raises ValueError.
    """
    began = time.perf_counter()
    run, saved = find(ablation, member.variant, folder)
    reference = build(ablation.config(ablation.reference))
    compilation_cache.use(reference.config.training.compilation_cache)
    weights = warm_start.read_network(saved, run.sampling.ema, run.weights(run.trainer.abstract))
    nfe = runs.network_evaluations(run, ablation.sampler_steps)
    place = folder / str(member)
    table = runs.table_of(measuring.plan(reference), run, weights, nfe, member.seed, place)
    of = {"weights": ablation.beside[member.variant], "which": run.sampling.ema} | _identity(saved)
    return {"seconds": time.perf_counter() - began, "table": table, "beside": of}


def _identity(saved: Saved) -> dict[str, Any]:
    return {"steps": saved.step, "fingerprint": checksums.fingerprint(saved.directory / str(saved.step))}


def _told(of: dict[str, Any]) -> str:
    return f"step {of['steps']} (fingerprint {(of['fingerprint'] or 'unknown')[:SHORT]})"
