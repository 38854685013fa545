"""All that a configuration says, built."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.networks import Transformer
from tim_jax.training import power_ema, sharding
from tim_jax.training.settings import CheckpointSettings, PosthocEMASettings, StartSettings, TrainingSettings
from tim_jax.training.trainer import Trainer
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.transports import Transport


class FrozenNetwork(Protocol):
    """A network that nothing changes, see `teachers.FrozenModel`."""

    @property
    def source(self) -> Any: ...

    @property
    def net(self) -> Callable[[Any], Net]: ...

    @property
    def params(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a configuration says, built and checked. Sections have their names.

    Of an objective that learns from a teacher the trainer takes no step before `teachers.with_teachers` has found it;
    sampling needs none.

    Attributes:
        config: the resolved configuration itself.
        inputs: what `data` and `loader` mean for this network and mesh.
        batch_multiple: what the size of a global batch is a multiple of.
        refiner: the network of `sampling.refiner`, see `refiners.with_refiner`; None where there is none.
    """

    config: ConfigDict
    mesh: Mesh
    network: Transformer
    transport: Transport
    trainer: Trainer
    data: DataSettings
    loader: LoaderSettings
    codecs: CodecSettings
    teacher: Teacher
    posthoc_ema: PosthocEMASettings
    start: StartSettings
    training: TrainingSettings
    checkpoint: CheckpointSettings
    sampling: Sampling
    evaluation: EvaluationSettings
    inputs: Inputs
    batch_multiple: int
    refiner: FrozenNetwork | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of an example, or of samples where examples differ."""
        return self.data.height, self.data.width, self.data.channels

    @property
    def shows_images(self) -> bool:
        """Whether examples are images, or latents that an autoencoder decodes."""
        return bool(self.codecs.autoencoder) or self.data.channels in (1, 3)

    def net(self, params: Any) -> Net:
        """The network with given parameters, as samplers take it."""
        return lambda queries: sharding.apply_on_mesh(self.mesh, self.trainer.init, self.network, params, queries)

    def weights(self, state: Any, name: str = "") -> Any:
        """The parameters of that name in a state: "online" or an EMA; those that `sampling.ema` names by default."""
        name = power_ema.canonical(name or self.sampling.ema)
        return state.params["online"] if name == "online" else state.emas[name]
