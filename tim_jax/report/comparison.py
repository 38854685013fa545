"""What an ablation's folder says of its variants, read without the file that defines it, and sections of that."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.ablation import runs
from tim_jax.ablation import table as tables
from tim_jax.ablation.settings import RATE, Member
from tim_jax.evaluation import protocol
from tim_jax.report import curves, setup
from tim_jax.report.curves import short
from tim_jax.report.markup import Markup, component, digits, join, missing, table, tag
from tim_jax.report.reading import WRONG, Folder
from tim_jax.runs.workdir import CONFIG

RULES = {"time": "the same time on a quiet machine", "flops": "the same operations", "steps": "steps of their own"}
SEED = re.compile(r"seed_(\d+)")
POINTS = 400  # of a curve of one run
WATCHED = {
    "loss": "loss",
    "error_equal": "unweighted error at r = t",
    "error_moving": "unweighted error at r < t",
    "grad_norm": "norm of the gradient",
    "tangent_rms": "root mean square of dF/dt",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An ablation, as its folder has it.

    Attributes:
        plan: plan.json.
        members: all runs that were planned or are there.
        results: of the runs that have one.
        variants: {name: what `tables.summarise` says, with "steps", "cost" and "changes"}.
        baselines: the same of models that were trained elsewhere.
        measured: {name: the same} of all that was measured, baselines last. Where several averages of the weights of a
            variant's runs were, each is one of its own, called "NAME (EMA)", with "variant".
        winners: see `tables.winners`.
    """

    plan: dict[str, Any]
    members: list[Member]
    results: dict[Member, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, Any]]
    winners: dict[str, dict[str, Any]]

    @property
    def everything(self) -> dict[str, dict[str, Any]]:
        """Variants, then baselines."""
        return self.variants | self.baselines

    @property
    def seeds(self) -> int:
        """The most runs of a variant."""
        return max((about["runs"] for about in self.everything.values()), default=0)

    def floors(self, name: str) -> dict[str, float]:
        """{title: mean} of the figures of real images that all tables have of a distance."""
        measured = [result["table"] for result in self.results.values() if "table" in result]
        found = {}
        for key, (title, _) in tables.FLOORS.items():
            values = [table[key][name] for table in measured if name in table.get(key, {})]
            if measured and len(values) == len(measured):
                found[title.format(samples=measured[0]["samples"])] = sum(values) / len(values)
        return found

    def colour(self, name: str) -> int:
        """The number of the colour of what was measured, or of the first of a variant."""
        names = [name, *(each for each, about in self.measured.items() if about.get("variant") == name)]
        return next(i for i, each in enumerate(self.measured) if each in names)


def read(folder: Folder) -> Comparison:
    """Reads an ablation. Raises one of WRONG where its plan is not as it was written."""
    plan = folder.json("plan.json") or {}
    given = plan["variants"] if isinstance(plan.get("variants"), dict) else {}
    planned = {name: about for name, about in given.items() if isinstance(about, dict)}
    if not planned or len(planned) < len(given):
        folder.note("plan.json", "it does not say of every variant how it was planned")
    names = dict.fromkeys([*planned, *sorted(found for found in _folders(folder))])
    members: list[Member] = []
    results: dict[Member, dict[str, Any]] = {}
    variants: dict[str, dict[str, Any]] = {}
    baselines: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    reference = (planned.get(plan.get("reference")) or {}).get("definition") or {}
    for name in names:
        of: dict[int, dict[str, Any] | None] = {}
        for seed in _seeds(folder, name):
            member = Member(name, seed)
            members.append(member)
            if result := _result(folder, member):
                results[member] = result
            of[seed] = results.get(member)
        about = tables.summarise(of)
        baseline = next((one["baseline"] for one in of.values() if one and "baseline" in one), None)
        if baseline:
            baselines[name] = {**baseline, **about}
            continue
        own = planned.get(name) or {}
        changes = setup.differences(reference, own.get("definition") or reference)
        variants[name] = {key: own[key] for key in ("steps", "cost", "failure") if key in own} | about
        variants[name]["changes"] = [change for change in changes if change[0] not in ("training.steps",)]
        variants[name]["changes"] += _rate(folder, [member for member in members if member.variant == name], own)
        measured |= _measured(name, variants[name], of, (own.get("definition") or {}).get("sampling.ema", "own"))
    won = tables.winners(measured)
    return Comparison(plan, members, results, variants, baselines, measured | baselines, won)


def _rate(folder: Folder, members: Sequence[Member], planned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The learning rate of a variant's runs, where each variant takes the one that is best for it."""
    if RATE in (planned.get("definition") or {RATE: None}):
        return []
    configs = (folder.json(f"{member}/{CONFIG}") for member in members)
    rates = [config["optimizer"]["learning_rate"] for config in configs if config]
    return [(RATE, setup.NOWHERE, setup.text(rates[0]))] if rates else []


def _measured(
    name: str, about: dict[str, Any], of: dict[int, dict[str, Any] | None], own: str
) -> dict[str, dict[str, Any]]:
    """What was measured of a variant: its runs, or each average of their weights. own: that which they sample with."""
    emas = dict.fromkeys(ema for result in of.values() if result for ema in result.get("emas", {}))
    if not emas:
        return {name: about}
    found = {}
    for ema in dict.fromkeys([own, *emas]):
        results = {seed: _of_ema(result, ema) if result and ema != own else result for seed, result in of.items()}
        found[f"{name} ({ema})"] = about | tables.summarise(results) | {"variant": name}
    return found


def _of_ema(result: dict[str, Any], ema: str) -> dict[str, Any]:
    """A result with the table of another average of its run's weights, or without one."""
    rest = {key: value for key, value in result.items() if key != "table"}
    return rest | ({"table": result["emas"][ema]} if ema in result.get("emas", {}) else {})


def _folders(folder: Folder) -> list[str]:
    """Names of the folders that hold runs."""
    return [path.name for path in folder.path.iterdir() if path.is_dir() and _seeds(folder, path.name)]


def _seeds(folder: Folder, name: str) -> list[int]:
    path = folder.path / name
    inside = [each.name for each in path.iterdir()] if path.is_dir() else []
    return sorted(int(match[1]) for match in map(SEED.fullmatch, inside) if match)


def _result(folder: Folder, member: Member) -> dict[str, Any] | None:
    try:
        result = runs.read(folder.path / str(member))
        return result if result is None or tables.summarise({0: result}) else None
    except WRONG as error:
        folder.note(f"{member}/{runs.FILE}", f"{type(error).__name__}: {error}")
        return None


def figures_section(found: Comparison, command: str) -> Markup:
    """Returns plot and tables of both distances. command: that trains and measures what is missing."""
    if not any(about["rows"] for about in found.measured.values()):
        return missing("No run is finished yet. They are trained and measured by:", command)
    measured = {str(member): result["table"] for member, result in found.results.items() if "table" in result}
    apart = [tag("li", tag("strong", "Not to be compared:"), " ", line) for line in protocol.differences(measured)]
    told = [protocol.read(table["protocol"]).measured for table in measured.values() if "protocol" in table][:1]
    return join(
        [
            tag("ul", *apart, class_="warning") if apart else None,
            plot(found),
            *(distance_table(found, name) for name in tables.DISTANCES),
            *(tag("p", f"{line}.", class_="note") for line in told),
        ]
    )


def plot(found: Comparison) -> Markup:
    """Returns a chart of both distances by network evaluations, a curve for each variant and baseline."""
    panels = []
    for name, part in tables.DISTANCES.items():
        series = []
        for variant, about in found.measured.items():
            rows = [row for row in about["rows"] if name in row]
            if rows:
                of = {"name": variant, "colour": found.colour(variant), "dash": variant in found.baselines}
                of |= {"x": [row["nfe"] for row in rows], "y": [short(row[name]) for row in rows]}
                series.append(of | {"spread": [short(row[f"{name}_spread"]) for row in rows]})
        lines = [{"name": title, "y": short(value)} for title, value in found.floors(name).items()]
        label = f"Fréchet distance {part}"
        if series:
            panels.append({"name": label, "series": series, "lines": lines, "y": {"label": label}})
    spec = {"x": {"label": "network evaluations per image", "log": 2}, "y": {"log": True}, "panels": panels}
    label = "Distances of every variant by network evaluations; the tables below have the same values"
    return tag("figure", component("chart", spec | {"points": True}, aria_label=label, class_="wide"), class_="chart")


def distance_table(found: Comparison, name: str) -> Markup:
    """Returns the table of a distance: a line for each variant and baseline, winners marked."""
    columns = [str(n) for n in sorted({row["nfe"] for about in found.measured.values() for row in about["rows"]})]
    lines = []
    for variant, about in found.measured.items():
        rows = {str(row["nfe"]): row for row in about["rows"]}
        cells: list[Any] = [
            tag(
                "th",
                key(found, variant),
                tag("a", variant, href=f"#variant-{about.get('variant', variant)}"),
                scope="row",
            ),
            f"{about['steps']:,}" if "steps" in about else "",
            f"{about['cost']:.2f}" if "cost" in about else "",
            f"{about['finished']} of {about['runs']}",
        ]
        for nfe in columns:
            row = rows.get(nfe, {})
            if name not in row:
                cells.append("failed" if about["failures"] and not about["finished"] else "")
                continue
            spread = tag("span", f" ± {row[f'{name}_spread']:.1g}", class_="spread") if about["finished"] > 1 else None
            value = join([digits(row[name]), spread])
            winner = found.winners[name].get(nfe, {})
            won = winner.get("variant") == variant
            close = won and winner["second"] is not None and found.seeds > 1
            if close and winner["lead"] <= winner["lead_spread"]:
                value = join(["≈ ", value])
            tip = f"{variant}, {nfe} evaluations. By seed: "
            tip += ", ".join(f"{each:.5g}" for each in row[f"{name}_seeds"])
            cells.append(
                tag("td", tag("strong", value) if won else value, class_=f"number{' best' * won}", data_tip=tip)
            )
        lines.append(cells)
    for title, height in found.floors(name).items():
        ends = [digits(height), *[""] * (len(columns) - 1)]
        lines.append([tag("th", title, scope="row", class_="floor"), "", "", "", *ends])
    caption = f"Fréchet distance {tables.DISTANCES[name]}, by network evaluations. Bold: the smallest mean."
    caption += " ≈: the second is within the spread over seeds." if found.seeds > 1 else ""
    return table(["variant", "steps", "cost", "finished", *columns], lines, caption, class_="quality")


def key(found: Comparison, variant: str) -> Markup:
    """Returns the colour of a variant."""
    return tag("span", class_=f"key c{found.colour(variant) % 7}")


def spread_section(found: Comparison) -> Markup:
    """Returns the figures of every seed, a row for each variant, with a slider over network evaluations."""
    columns = sorted({row["nfe"] for about in found.measured.values() for row in about["rows"]})
    rows: list[dict[str, Any]] = []
    for variant, about in found.measured.items():
        by_nfe = {row["nfe"]: row for row in about["rows"]}
        values = {
            name: [[short(one) for one in by_nfe.get(nfe, {}).get(f"{name}_seeds", [])] for nfe in columns]
            for name in tables.DISTANCES
        }
        if about["rows"]:
            rows.append({"name": variant, "colour": found.colour(variant), "values": values})
    if not rows:
        return missing("No run is finished yet.")
    data = {"columns": columns, "rows": rows, "distances": tables.DISTANCES}
    about_it = f"A dot for every seed, a line at their mean; {found.seeds} seed{'s' * (found.seeds > 1)}."
    start = len(columns) // 2
    slider = tag("input", type="range", min="0", max=str(len(columns) - 1), step="1", value=str(start), class_="steps",
                 aria_label="Network evaluations", aria_valuetext=f"{columns[start]} evaluations")  # fmt: skip
    output = tag("output", f"{columns[start]} evaluations")
    controls = tag("div", tag("label", tag("span", "Evaluations"), slider, output), class_="controls panel")
    label = "Figures of every seed by variant"
    return join([tag("p", about_it, class_="note"), component("dots", data, controls, aria_label=label)])


def curves_section(folder: Folder, found: Comparison) -> Markup:
    """Returns the curves of all runs, a colour for each variant, of which one metric is seen at a time."""
    of = {member: curves.read(folder, f"{member}/") for member in found.members}
    panels = []
    for name, title in WATCHED.items():
        series = []
        for member, metrics in of.items():
            if name in metrics:
                steps, values = curves.thinned(metrics[name], POINTS)
                points = {"x": steps, "y": [None if value is None else short(value) for value in values]}
                looks = {"group": member.variant, "colour": found.colour(member.variant)}
                series.append({"name": str(member).replace("/seed_", ", seed "), **looks, **points})
        if series:
            panels.append({"name": title, "series": series, "y": {"label": title}})
    if not panels:
        return missing("No run has written metrics.jsonl yet.")
    spec = {"x": {"label": "step"}, "panels": panels, "smooth": True}
    label = "Curves of every run by step"
    return tag("figure", component("chart", spec, aria_label=label, class_="wide"), class_="chart")


def differences_section(found: Comparison) -> Markup:
    """Returns what the reference changes of base.py, and what each variant changes of the reference."""
    changed = sorted({key for about in found.variants.values() for key, _, _ in about["changes"]})
    if not changed:
        return missing("No variant changes a key of the reference.")
    reference = found.plan.get("reference")
    lines = []
    for name in changed:
        of = {variant: dict((k, (a, b)) for k, a, b in about["changes"]) for variant, about in found.variants.items()}
        before = next(each[name][0] for each in of.values() if name in each)
        values = [tag("strong", each[name][1]) if name in each else tag("span", before, class_="spread")
                  for each in of.values()]  # fmt: skip
        lines.append([tag("th", tag("code", name), scope="row"), *values])
    caption = f"Keys in which variants differ; in bold what is not as in {reference}"
    return table(["key", *found.variants], lines, caption, texts=1 + len(found.variants))


def failures_section(found: Comparison, command: str) -> Markup:
    """Returns the runs that failed or are not finished. command: that tries them again."""
    lines: list[Any] = []
    for name, about in found.everything.items():
        if "failure" in about:
            lines.append(tag("li", tag("strong", name), f": its step cannot be made: {about['failure']}"))
        for seed, line in about["failures"].items():
            lines.append(tag("li", tag("strong", f"{name}/seed_{seed}"), f" failed: {line}"))
        waiting = about["runs"] - about["finished"] - len(about["failures"])
        if waiting or not about["runs"]:
            lines.append(tag("li", tag("strong", name), f": {about['finished']} of {about['runs']} runs are finished"))
    if not lines:
        return tag("p", "All runs that were started are finished, and none failed.")
    return join([tag("ul", *lines), missing("They are tried again by:", command)])
