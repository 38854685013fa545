"""What the sections `start`, `mesh`, `training` and `checkpoint` of a configuration say."""

import dataclasses
import importlib.util
from typing import Literal

from tim_jax.training.power_ema import MAX_SIGMA_REL, PowerFunction, name_of

UNUSED = {
    ("start.ema", "start.reinitialise"): ("start.checkpoint is ''", lambda c: not c.start.checkpoint),
    ("posthoc_ema.every", "posthoc_ema.dtype"): ("posthoc_ema.sigma_rel is ()", lambda c: not c.posthoc_ema.sigma_rel),
    ("training.compilation_cache_gib",): (
        "training.compilation_cache is ''",
        lambda c: c.training.compilation_cache == "",
    ),
    ("training.on_corruption",): (
        "training.compare_every and training.recompute_every are 0",
        lambda c: not (c.training.compare_every or c.training.recompute_every),
    ),
    ("training.recompute_elsewhere",): ("training.recompute_every is 0", lambda c: not c.training.recompute_every),
    ("checkpoint.max_share",): (
        "neither checkpoint.every nor checkpoint.local_every is 'auto'",
        lambda c: c.checkpoint.every != "auto" and not (c.checkpoint.local and c.checkpoint.local_every == "auto"),
    ),
    ("checkpoint.local_every",): ("checkpoint.local is ''", lambda c: not c.checkpoint.local),
}


GO_BACK, EXCLUDE, WARN = "go_back", "exclude", "warn"
ON_CORRUPTION = (GO_BACK, EXCLUDE, WARN)
SNAPSHOT_DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class PosthocEMASettings:
    """The EMAs that others are synthesised from."""

    # Standard deviations of what they average over, as shares of the steps so far, such as (0.05, 0.1); (): none.
    sigma_rel: tuple[float, ...] = ()
    every: int = 1000  # steps between snapshots of them, which all stay; some 50 in a run serve any length
    dtype: str = "float16"  # of snapshots: float16, bfloat16, float32

    @property
    def decays(self) -> dict[str, PowerFunction]:
        """The decays by names such as "sigma_rel:0.05"."""
        return {name_of(sigma_rel): PowerFunction(sigma_rel) for sigma_rel in self.sigma_rel}

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        if not all(0 < sigma_rel <= MAX_SIGMA_REL for sigma_rel in self.sigma_rel):
            raise ValueError(
                f"posthoc_ema.sigma_rel is {self.sigma_rel}; each of them must lie in (0, {MAX_SIGMA_REL}]"
            )
        if len(self.decays) < len(self.sigma_rel):
            raise ValueError(f"posthoc_ema.sigma_rel is {self.sigma_rel}; each of them must differ from the others")
        if self.every < 1:
            raise ValueError(f"posthoc_ema.every is {self.every}; it must be at least 1")
        if self.dtype not in SNAPSHOT_DTYPES:
            raise ValueError(f"posthoc_ema.dtype is {self.dtype!r}; it must be one of {', '.join(SNAPSHOT_DTYPES)}")


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """The weights that a run starts from."""

    checkpoint: str = ""  # a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000
    ema: str = "slow"  # of its weights: the name of an EMA, or "online"
    reinitialise: tuple[str, ...] = ()  # parameters that start from scratch all the same, such as ("label_embedder",)


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The sizes of the mesh's axes."""

    data: int = -1
    fsdp: int = 0  # 0: chosen by the width of the network; 1 for small ones
    tensor: int = 1
    sequence: int = 1
    # Microbatches that this mesh makes of each of optimizer.accumulation, so that a batch fits fewer devices; 0: 1, or
    # what --min-processes needs where processes are missing.
    accumulation: int = 0


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How long training goes on, and what it says and does on the way."""

    steps: int = 1000
    log_every: int = 50  # steps between lines in metrics.jsonl
    sample_every: int = 0  # steps between pictures of samples; 0: only at the end
    sample_steps: tuple[int, ...] = (1, 2, 4, 8)  # step counts of those pictures
    max_nonfinite: int = 20  # updates in a row that are left out as not finite before the run stops
    hang_seconds: float = 300.0  # a step that takes longer, and 10 times the usual, ends the process; 0: none
    # Silent corruption, of devices that compute or remember wrongly (docs/robustness.md):
    compare_every: int = 10  # steps between comparisons of replicas, with those of batches after each; 0: neither
    recompute_every: int = 1000  # steps between those that are made twice and must give the same bits; 0: none
    recompute_elsewhere: bool = False  # on other devices of the same process; the step is compiled once more
    # "go_back": to what last agreed; "exclude": end with exit code 75 and name the host; "warn": go on with it
    on_corruption: str = GO_BACK
    wandb: str = ""  # Weights & Biases project that metrics go to as well; "": none
    # Folder of compiled programs, so that a second start compiles nothing; a gs:// path serves hosts that come and go.
    # "auto": JAX_COMPILATION_CACHE_DIR, or else ~/.cache/tim_jax/xla ($XDG_CACHE_HOME/tim_jax/xla); "": none are kept.
    compilation_cache: str = "auto"
    # GiB that compiled programs in that folder may take, on a local disk: those used longest ago go; 0: no limit. A
    # folder of JAX_COMPILATION_CACHE_DIR has the limit of JAX_COMPILATION_CACHE_MAX_SIZE.
    compilation_cache_gib: float = 10.0

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        least = {"steps": 1, "log_every": 1, "sample_every": 0, "max_nonfinite": 1, "hang_seconds": 0}
        least |= {"compare_every": 0, "recompute_every": 0, "compilation_cache_gib": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be at least {value}")
        if not self.sample_steps:
            raise ValueError("training.sample_steps is (); it must name at least one step count")
        if any(steps < 1 for steps in self.sample_steps):
            raise ValueError(f"training.sample_steps is {self.sample_steps}; each of them must be at least 1")
        if self.on_corruption not in ON_CORRUPTION:
            raise ValueError(
                f"training.on_corruption is {self.on_corruption!r}; it must be one of {', '.join(ON_CORRUPTION)}"
            )
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"training.wandb is {self.wandb!r}; it must be '' without the package wandb (pip install wandb)"
            )


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoints are written and kept."""

    every: int | Literal["auto"] = 1000  # steps; "auto": again once the last save has ended, within max_share
    max_share: float = 0.05  # of the time by which saving may hold up the steps, where it is "auto"; 1: no limit
    keep: int = 2  # latest checkpoints that stay; with 1, a damaged one has none before it
    keep_every: int = 0  # multiples of so many steps stay for good; 0: none
    resume: str = ""  # where the workdir has none yet: another's, whose whole state goes on here
    # A folder of every host, from the root, on a disk or in memory (/dev/shm/…), for a second tier that a restart of
    # the same host, or of one with peers that hold the same, goes on from; two of these states must fit. "": none.
    local: str = ""
    local_every: int | Literal["auto"] = "auto"  # as every, of those in that folder, of which the latest alone stays

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name in ("every", "local_every"):
            if (value := getattr(self, name)) != "auto" and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1, or 'auto'")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"checkpoint.max_share is {self.max_share}; it must lie in (0, 1]")
        for name, value in {"keep": 1, "keep_every": 0}.items():
            if getattr(self, name) < value:
                raise ValueError(f"checkpoint.{name} is {getattr(self, name)}; it must be at least {value}")
