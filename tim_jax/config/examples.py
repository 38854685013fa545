"""What is trained on: `data` and `loader` for a network on a mesh."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs
from tim_jax.training import sharding
from tim_jax.training.optimizer import OptimizerSettings
from tim_jax.transitions.objective import Objective


def check_batch_size(data: DataSettings, mesh: Mesh, optimizer: OptimizerSettings, objective: Objective) -> None:
    """Raises ValueError for a batch that devices, microbatches and groups of the objective do not divide.

    Also for one that is too small for the objective. Batches of `data.buckets.tokens` have sizes of their own.
    """
    if data.buckets.tokens:
        return
    shards, group = sharding.batch_shards(mesh), objective.batch_multiple
    if data.batch_size % (shards * optimizer.accumulation * group):
        groups = f" × {group} examples of a group" if group > 1 else ""
        raise ValueError(
            f"data.batch_size is {data.batch_size}; it must be a multiple of {shards} devices × "
            f"{optimizer.accumulation} microbatches (optimizer.accumulation){groups}"
        )
    objective.check_batch(data.batch_size // optimizer.accumulation)


def make_inputs(
    config: ConfigDict,
    data: DataSettings,
    loader: LoaderSettings,
    codecs: CodecSettings,
    batch_multiple: int = 1,
    tokens_multiple: int = 1,
) -> Inputs:
    """What sources are opened with, and how their images are read.

    Args:
        config: whose `model` is read besides.
        data: its section.
        loader: its section.
        codecs: its section.
        batch_multiple: what the size of a global batch must be a multiple of.
        tokens_multiple: what the number of tokens of an example must be a multiple of, `mesh.sequence`.

    Raises:
        ValueError: values exclude each other.
    """
    model = config.model
    if data.images and not codecs.image_encoder:
        raise ValueError("codecs.image_encoder is ''; it must name what makes features of the images in data.images")
    return Inputs.read(
        data,
        loader,
        factor=codecs.factor_of_images(data.encode, model.condition, data.features_width),
        side=model.patch_size,
        batch_multiple=batch_multiple,
        tokens_multiple=tokens_multiple,
        num_classes=model.num_classes if model.condition == "class" else 0,
        captions=model.condition == "text",
    )
