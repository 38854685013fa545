"""The page of a run."""

import datetime
import shlex
from collections.abc import Mapping
from typing import Any

from tim_jax.report import curves, diagnosis, pictures, quality, setup, sweeps
from tim_jax.report.drawing import Drawn
from tim_jax.report.markup import Markup, Section, digits, facts, join, more, page, tag
from tim_jax.report.reading import Folder, is_number
from tim_jax.runs import workdir


def make(folder: Folder, drawn: Drawn | None, reason: str) -> str:
    """Returns the page of a run.

    Args:
        folder: its workdir.
        drawn: what was drawn of it, if anything.
        reason: why nothing was, if so.
    """
    where = shlex.quote(f"--workdir={folder.path}")

    def command(name: str, more: str = "") -> str:
        return f"tim-jax {name} {where}{more}"

    config, starts = setup.recorded(folder), folder.lines(workdir.STARTS)
    train, evaluate = command("train"), command("evaluate")
    if drawn:
        shown = folder.section("samples", "Samples", lambda: pictures.samples_section(drawn))
        paths = folder.section("trajectories", "Trajectories", lambda: pictures.paths_section(drawn))
    else:
        again = command("report", " --samples=16")
        shown = folder.section("samples", "Samples", lambda: pictures.kept_section(folder, reason, again))
        paths = Section("trajectories", "Trajectories", pictures.missing(f"{reason} They are drawn by:", again))
    sections = [
        shown,
        folder.section("quality", "Quality by steps", lambda: quality.section(folder, evaluate), evaluate),
        paths,
        folder.section(
            "nearest", "Nearest training images", lambda: pictures.nearest_section(drawn, folder, evaluate), evaluate
        ),
        folder.section("curves", "Training", lambda: curves.section(folder, train)),
        folder.section(
            "diagnostics", "Errors by (t, r)", lambda: diagnosis.section(folder, command("diagnose")),
            command("diagnose"),
        ),
        folder.section("goodput", "Goodput", lambda: setup.goodput_section(folder, train)),
        folder.section("configuration", "Configuration", lambda: setup.configuration_section(config, starts)),
        folder.section("starts", "Versions and hardware", lambda: setup.starts_section(starts)),
    ]  # fmt: skip
    if (folder.path / sweeps.FILE).exists():
        sections.insert(2, folder.section("sweep", "Sweep", lambda: sweeps.section(folder)))
    header = folder.section("facts", "Facts", lambda: facts_of(folder, config, starts)).body
    return page(
        "Report of a run", folder.name, lead(config, starts), join([header, damaged(folder)]), sections, made(folder)
    )


def lead(config: Mapping[str, Any], starts: list[dict[str, Any]]) -> str:
    """Returns what a run is, in a sentence."""
    if not config:
        return "A run whose configuration cannot be read."
    of = {name: config.get(name, "unknown") for name in ("objective.name", "transport.name", "data.source")}
    height, width = (config.get(f"data.{side}", "?") for side in ("height", "width"))
    condition = config.get("model.condition")
    by = f"{config.get('model.num_classes', '?')} classes" if condition == "class" else "captions"
    where = f" Trained on {starts[-1]['devices']}." if starts and "devices" in starts[-1] else ""
    return (
        f"Objective {of['objective.name']}, transport {of['transport.name']}; data {of['data.source']}, "
        f"{height} × {width}, {by}.{where}"
    )


def facts_of(folder: Folder, config: Mapping[str, Any], starts: list[dict[str, Any]]) -> Markup:
    """Returns how far a run is and how good, in a few figures, and what its classes are called."""
    found = curves.read(folder)
    step, total = max((steps[-1] for steps, _ in found.values()), default=0), config.get("training.steps", 0)
    known: dict[str, Any] = {"training": f"{step:,} of {total:,} steps" if is_number(total) else f"{step:,} steps"}
    loss = curves.last(found, "loss")
    known |= {"loss": f"{loss:.4g}"} if loss is not None else {}
    measured = folder.json(quality.FILE)
    if measured and measured.get("rows"):
        rows = measured["rows"]
        name = quality.figures(rows)[0]
        value = quality.best(rows, name)
        row = next((row for row in rows if row.get(name) == value), rows[-1])
        known[f"{quality.title(measured, name)}, best"] = f"{digits(row[name])} at {row['steps']} steps"
        known[f"{quality.title(measured, name)}, {rows[0]['steps']} step"] = digits(rows[0][name])
    share = curves.last(found, "goodput")
    known |= {"goodput": f"{share:.0%}"} if share is not None else {}
    known |= {"first start": setup.moment(starts[0].get("time", ""))} if starts else {}
    classes = folder.json(workdir.CLASSES, list) or []
    named = tag("ol", *(tag("li", name) for name in classes), class_="classes", start="0")
    return join([facts(known), more(f"Names of the {len(classes)} classes", named) if classes else None])


def damaged(folder: Folder) -> Markup | None:
    """Returns what could not be read, if anything."""
    if not folder.damaged:
        return None
    lines = [tag("li", line) for line in folder.damaged]
    return tag("div", tag("p", "Some files are damaged, and are shown as far as they could be read:"),
               tag("ul", *lines), class_="warning")  # fmt: skip


def made(folder: Folder) -> str:
    """Returns when a page was made, and by what."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")[:16].replace("T", " ")
    return f"Made on {now} UTC of {folder.path} by tim_jax {workdir.versions()['tim-jax']}."
