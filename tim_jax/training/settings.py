"""What the `training` and `checkpoint` sections of a configuration say."""

import dataclasses
import importlib.util


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The keys of `training`, see configs/base.py."""

    steps: int = 1000
    log_every: int = 50
    sample_every: int = 0
    sample_steps: tuple[int, ...] = (1, 2, 4, 8)
    max_nonfinite: int = 20
    hang_seconds: float = 300.0
    wandb: str = ""
    compilation_cache: str = "auto"

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        least = {"steps": 1, "log_every": 1, "sample_every": 0, "max_nonfinite": 1, "hang_seconds": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be at least {value}")
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError(f"training.wandb is {self.wandb!r}; it needs the package wandb (pip install wandb)")


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """The keys of `checkpoint`, see configs/base.py."""

    every: int = 1000
    keep: int = 2
    keep_every: int = 0
    resume: str = ""

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, value in {"every": 1, "keep": 1, "keep_every": 0}.items():
            if getattr(self, name) < value:
                raise ValueError(f"checkpoint.{name} is {getattr(self, name)}; it must be at least {value}")
