"""The job of python -m tim_jax.report: looks at a folder, draws what there is to draw, and writes one page."""

import dataclasses
import shlex
from collections.abc import Callable

import jax
from absl import logging
from etils import epath

from tim_jax.report import ablation_page, drawing, run_page
from tim_jax.report.ablation_page import REPORT
from tim_jax.report.drawing import Undrawable
from tim_jax.report.reading import Folder
from tim_jax.runs import workdir
from tim_jax.system import files, paths

STEPS, SAMPLES, MOST_SAMPLES = (1, 2, 4, 8, 16, 32), 16, 1000
NOT_ASKED = "No samples were drawn, as --samples=0 asks."


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """The arguments of the command.

    Attributes:
        workdir: the folder of a run or of an ablation.
        out: the page; None for report.html in the folder.
        samples: how many are drawn; None for SAMPLES.
        steps: step counts that they are drawn at; None for STEPS.
        samplers: names of samplers; None for the run's own and others that suit its training.
    """

    workdir: str
    out: str | None = None
    samples: int | None = None
    steps: list[int] | None = None
    samplers: list[str] | None = None

    def check(self) -> None:
        """Raises ValueError for arguments that cannot be, whatever the folder."""
        if self.samples is not None and not 0 <= self.samples <= MOST_SAMPLES:
            raise ValueError(f"--samples is {self.samples}; it must be 0, for none, to {MOST_SAMPLES}")
        if self.out is not None and not self.out.endswith(".html"):
            raise ValueError(f"--out is {self.out!r}; it must end with .html")
        if self.samples == 0:
            for flag, value in self.given().items():
                if flag != "--samples":
                    raise ValueError(f"{flag} is {value!r}; it must be left out with --samples=0")

    def given(self) -> dict[str, str]:
        """{flag: value} of those that say what is drawn of a run."""
        values = {"--samples": self.samples, "--steps": self.steps, "--samplers": self.samplers}
        return {flag: _typed(value) for flag, value in values.items() if value is not None}


def _typed(value: int | list[int] | list[str]) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclasses.dataclass(frozen=True)
class ReportJob:
    """A report that is about to be made; all that the user can have got wrong has been checked.

    Attributes:
        folder: of the run or the ablation.
        out: the page.
        make: gives its text, and may raise ValueError for what cannot be drawn.
    """

    folder: Folder
    out: epath.Path
    make: Callable[[], str]

    def write(self) -> str:
        """Makes the page and writes it; returns what to tell the user.

        Raises:
            ValueError: for step counts that a sampler cannot take.
        """
        text = self.make().encode("utf-8", "replace")
        if jax.process_index() == 0:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self.out, text)
        noted = "".join(f"damaged: {line}\n" for line in self.folder.damaged)
        return f"{noted}written: {self.out} ({len(text) / 1e6:.1f} MB); open it in a browser"


def open_report(settings: ReportSettings, overrides: dict[str, str]) -> ReportJob:
    """Checks all that a command asks for, and builds the run that is drawn from.

    Args:
        settings: the arguments.
        overrides: {"section.key": text} of the configuration.

    Raises:
        ValueError: one line that names what is wrong.
    """
    settings.check()
    path = paths.run_folder(settings.workdir, "--workdir")
    out = paths.given(settings.out, "--out") if settings.out is not None else path / REPORT
    folder = Folder(path)
    is_run, is_ablation = ((path / name).exists() for name in (workdir.CONFIG, workdir.PLAN))
    if not (is_run or is_ablation):
        raise ValueError(
            f"--workdir={path}: holds neither a run nor an ablation; "
            f"tim-jax train --config=NAME {shlex.quote(f'--workdir={path}')} makes a run"
        )
    paths.check_file(out, "--out")
    changes = {f"--config.{key}": value for key, value in overrides.items()}
    if not is_run:
        for flag, value in {**settings.given(), **changes}.items():
            raise ValueError(f"{flag} is {value!r}; it must be left out, since {path} holds an ablation")
        return ReportJob(folder, out, lambda: ablation_page.make(folder, out))
    if settings.samples == 0:
        for flag, value in changes.items():
            raise ValueError(f"{flag} is {value!r}; it must be left out with --samples=0")
        return ReportJob(folder, out, lambda: run_page.make(folder, None, NOT_ASKED))
    steps, count = settings.steps or STEPS, settings.samples or SAMPLES
    try:
        runs = drawing.open_run(path, overrides, settings.samplers)
        sampling = next(iter(runs.values())).sampling
        if settings.steps is not None and sampling.grid != "optimal" and sampling.plan != "learned":
            drawing.check_steps(runs, steps)
    except Undrawable as error:
        return ReportJob(folder, out, _undrawn(folder, str(error)))

    def make() -> str:
        try:
            drawn = drawing.draw(path, runs, steps, count)
        except Undrawable as error:
            return _undrawn(folder, str(error))()
        return run_page.make(folder, drawn, "")

    return ReportJob(folder, out, make)


def _undrawn(folder: Folder, reason: str) -> Callable[[], str]:
    """Makes the page of a run without samples, and says why there are none."""

    def make() -> str:
        logging.warning("no samples are drawn: %s", reason)
        return run_page.make(folder, None, f"No samples were drawn: {reason.rstrip('.')}.")

    return make
