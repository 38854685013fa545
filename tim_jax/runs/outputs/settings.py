"""What python -m tim_jax.sample is asked for, as it is typed."""

import dataclasses
import math
from collections.abc import Collection

from etils import epath

from tim_jax.system import paths

COUNT = 40  # images per step count where no labels are given
MOST_IMAGES = 10**7  # of a step count
LAYOUTS = ("plain", "geneval", "dpg", "mjhq")  # of files, as layouts.py writes them


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """The arguments of the command.

    Attributes:
        workdir: the run's folder.
        steps: step counts.
        labels: labels with commas between; "" for every class in turn.
        count: images per step count where no labels are given.
        prompt: what the images are to show.
        prompts: a file or a folder of prompts.
        per_prompt: images of each prompt.
        layout: a name in LAYOUTS.
        size: height x width of images; "" for the run's.
        guidance: the scale; None for the configuration's.
        seed: of the noise.
        images: paths of images to start from in place of noise, with commas between (`--from`).
        restored: what a coupled run restores: a folder or files of images, with commas between (`--images`); None for
            the held-out part of its data.
        start: the time that those are noised to; None to bring them to noise by the sampler.
        strength: how far up the sampler brings them, a share of the time domain; None for all the way.
        source: labels with commas between, or the prompt, by which it brings them there; None for those that are drawn.
        operator: `sampling.steering.operator`; None for the configuration's, or inpainting where there is a mask.
        mask: the file of a mask, white where images are drawn anew.
        target: files of what was measured, in place of `images`; or the label or image that a reward asks for.
        interpolate: images on the way from each to the next.
        out: the folder to write to; None for one in the workdir.
        search: such as best_of:8; None to draw samples as they come.
        radius: of the search starts; None for its own.
        reward: what is searched for, by its name.
        classifier: the file of the one that judges; "" for that of the configuration.
    """

    workdir: str
    steps: list[int]
    labels: str = ""
    count: int | None = None
    prompt: str | None = None
    prompts: str | None = None
    per_prompt: int | None = None
    layout: str = "plain"
    size: str = ""
    guidance: float | None = None
    seed: int = 0
    images: str | None = None
    restored: str | None = None
    start: float | None = None
    strength: float | None = None
    source: str | None = None
    operator: str | None = None
    mask: str | None = None
    target: str | None = None
    interpolate: int | None = None
    out: str | None = None
    search: str | None = None
    radius: float | None = None
    reward: str | None = None
    classifier: str = ""

    @property
    def folder(self) -> epath.Path:
        """The folder to write to, or that of another layout's own folder."""
        if self.out is not None:
            return paths.given(self.out, "--out")
        return paths.run_folder(self.workdir, "--workdir") / "sampled"

    @property
    def steering(self) -> dict[str, str]:
        """The keys of `sampling.steering` that flags stand for."""
        operator = self.operator or ("inpainting" if self.mask is not None else None)
        return {"sampling.steering.operator": operator} if operator else {}

    def inverts(self, steered: bool) -> bool:
        """Whether images are brought to noise by the sampler; steered: whether a measurement of them is asked for."""
        if not self.images or self.start is not None:
            return False
        return not steered or self.strength is not None or self.source is not None

    def check(self, overrides: Collection[str] = ()) -> None:
        """Raises ValueError for arguments that cannot be, whatever the run. overrides: keys that are changed too."""
        if self.guidance is not None and "sampling.guidance" in overrides:
            raise ValueError(
                "--config.sampling.guidance is given; it must be left out with --guidance, which says the same"
            )
        for name, minimum in (("count", 1), ("per_prompt", 1), ("seed", 0), ("interpolate", 2)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {minimum}")
        if self.count is not None and self.count > MOST_IMAGES:
            raise ValueError(f"--count is {self.count}; it must be at most {MOST_IMAGES}")
        for flag, value in (("labels", self.labels), ("images", self.restored)):
            if self.count is not None and value:
                raise ValueError(f"--count is {self.count}; it must be left out with --{flag}, which says how many")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ValueError(f"--guidance is {self.guidance}; it must be at least 0 and finite")
        if self.seed >= 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be below 2^32")
        for name in ("start", "strength", "source"):
            if (value := getattr(self, name)) is not None and not self.images:
                raise ValueError(f"--{name} is {value}; it needs images, --from=FILE")
        for name in ("strength", "source"):
            value = getattr(self, name)
            if value is not None and self.start is not None:
                raise ValueError(f"--{name} is {value} and --start is {self.start}; give one of them")
            if value is not None and self.interpolate:
                raise ValueError(f"--{name} is {value} and --interpolate is {self.interpolate}; give one of them")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"--strength is {self.strength}; it must be above 0 and at most 1")
        if self.images and self.target:
            raise ValueError(f"--target is {self.target}; it must be left out with --from, which is measured")
        if self.start is not None and self.interpolate:
            raise ValueError(f"--start is {self.start} and --interpolate is {self.interpolate}; give one of them")
        if self.images and not (self.labels or self.prompt or self.prompts):
            raise ValueError(f"--from is {self.images}; it needs --labels or prompts, one for each image")
        if self.search is None:
            for name in ("radius", "reward", "classifier"):
                if value := getattr(self, name):
                    raise ValueError(f"--{name} is {value}; it needs --search")
        elif self.reward is None:
            raise ValueError(f"--search is {self.search}; it needs --reward")
        elif self.images or self.interpolate or self.restored is not None:
            raise ValueError(f"--search is {self.search}; it takes neither --from, nor --images, nor --interpolate")
        if self.images and self.size:
            raise ValueError(f"--size is {self.size}; with --from the size is that of the images")
