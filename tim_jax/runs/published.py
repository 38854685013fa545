"""What the published code can do with the weights of a run, which is decided before the run is trained."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from tim_jax.codecs.official import INTERVAL, unpublished
from tim_jax.config.run import Run
from tim_jax.training import names

GUIDANCE = "guidance_embedder"  # the one module of ours without which F is another
IMAGE = "image_patch"  # of runs that restore images


def only_squares(config: ConfigDict) -> bool:
    """Whether a configuration says that all examples are squares."""
    buckets = config.data.buckets
    if buckets.table:
        return all(height == width for height, width in buckets.table)
    return not buckets.area and config.data.height == config.data.width


def is_transposed(config: ConfigDict) -> bool:
    """Whether weights are exported transposed, which on squares makes the published order of positions of ours."""
    return config.model.network == "tim" and config.model.rope_order == "row_major" and only_squares(config)


def obstacles(config: ConfigDict, modules: Iterable[str]) -> list[str]:
    """Why the published code would compute something else with exported weights; [] if it would not.

    Args:
        config: of the run.
        modules: of its network that the published one does not have.
    """
    found = []
    tim = config.model.network == "tim"
    if INTERVAL in modules:
        found.append("both times are inputs of the network, and the published one knows t alone")
    if GUIDANCE in modules:
        found.append("guidance is an input of the network (objective.input_guidance), which the published one lacks")
    if tim and config.transport.prediction != "F":
        found.append(f"the network's output stands for transport.prediction {config.transport.prediction!r}, not for F")
    for key in ("class_tokens", "guidance_tokens", "decoupled_depth") if tim else ():
        if config.model[key]:
            found.append(f"model.{key} is {config.model[key]}, and the published network has no such thing")
    if IMAGE in modules:
        found.append("a degraded image is an input of the network (objective.coupling), which the published one lacks")
    if config.model.slices > 1:
        found.append("the network runs one slice of its layers a step (model.slices), and the published one all")
    if tim and config.model.rope_order != "official" and not is_transposed(config):
        found.append(
            f"model.rope_order is {config.model.rope_order!r} and examples are not all squares: only 'official' has "
            "positions that the published code can read"
        )
    if config.model.condition == "text" and config.model.use_text_mask:
        found.append("model.use_text_mask is True, and the published code attends to the padding of captions")
    return found


def note(run: Run) -> str:
    """One line for the start of a run that the published code will not be able to use; "" for others."""
    abstract: Any = run.trainer.abstract_online
    modules = set(unpublished(names.by_name(abstract), run.config.model.network))
    found = obstacles(run.config, modules - {INTERVAL})  # which every any-step model has
    if not found:
        return ""
    return "note: the published code will not be able to use an export of this run: " + "; ".join(found)
