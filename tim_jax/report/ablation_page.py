"""The page of an ablation."""

import os
import shlex
import urllib.parse
from typing import Any

from tim_jax.ablation.settings import Member
from tim_jax.report import comparison, pictures, setup
from tim_jax.report.comparison import RULES, Comparison
from tim_jax.report.markup import Markup, facts, join, missing, more, page, table, tag
from tim_jax.report.reading import Folder
from tim_jax.report.run_page import damaged, made
from tim_jax.runs import workdir
from tim_jax.system import files
from tim_jax.training import ledger

REPORT = "report.html"  # of a run, beside its files


def make(folder: Folder, out: Any) -> str:
    """Returns the page of an ablation.

    Args:
        folder: the ablation's.
        out: where the page is written, from which it links to the pages of its runs.
    """
    found = comparison.read(folder)
    command = f"tim-jax ablate --config=FILE {shlex.quote(f'--workdir={folder.path}')}"
    sections = [
        folder.section("figures", "Comparison", lambda: comparison.figures_section(found, command)),
        folder.section("spread", "Spread over seeds", lambda: comparison.spread_section(found)),
        folder.section("curves", "Training", lambda: comparison.curves_section(folder, found)),
        folder.section("differences", "What variants change", lambda: comparison.differences_section(found)),
        folder.section("variants", "Variants", lambda: variants_section(folder, found, out)),
        folder.section("failures", "Failures", lambda: comparison.failures_section(found, command)),
        folder.section("configuration", "The reference", lambda: reference_section(found)),
        folder.section("starts", "Versions and hardware", lambda: hardware_section(folder, found)),
    ]
    header = join([facts_of(found), damaged(folder)])
    return page("Report of an ablation", folder.name, lead(found), header, sections, made(folder))


def lead(found: Comparison) -> str:
    """Returns what an ablation is, in a sentence."""
    rule = RULES.get(str(found.plan.get("equal")), "what the plan says")
    many = len(found.variants)
    beside = f" beside {len(found.baselines)} trained elsewhere" if found.baselines else ""
    return f"{many} variant{'s' * (many != 1)} of one configuration{beside}, each given {rule}."


def facts_of(found: Comparison) -> Markup:
    """Returns how far an ablation is, in a few figures."""
    done = sum(about["finished"] for about in found.everything.values())
    failed = sum(len(about["failures"]) for about in found.everything.values())
    tables = [result["table"] for result in found.results.values() if "table" in result]
    known: dict[str, Any] = {
        "finished": f"{done} of {len(found.members)} runs",
        "failed": failed,
        "seeds": found.seeds,
        "reference": found.plan.get("reference", "unknown"),
    }
    known |= {"samples of each": f"{tables[0]['samples']:,}"} if tables else {}
    return facts(known)


def variants_section(folder: Folder, found: Comparison, out: Any) -> Markup:
    """Returns a part for each variant and baseline: budget, changes, samples, and the way to its runs."""
    parts = []
    for name, about in found.everything.items():
        said = [f"{about['steps']:,} steps"] if "steps" in about else []
        said += [f"each of {about['cost']:.3g} times the reference's cost"] if "cost" in about else []
        said += [f"{ledger.duration(about['train_seconds'])} of training"] if "train_seconds" in about else []
        if name in found.baselines:
            said.append(f"trained elsewhere: weights {about.get('ema')!r} of {about.get('checkpoint')}")
        said.append(f"{about['finished']} of {about['runs']} runs finished")
        body = [tag("h3", comparison.key(found, name), name), tag("p", "; ".join(said), class_="note")]
        if changes := about.get("changes"):
            rows = [[tag("th", tag("code", key), scope="row"), a, tag("strong", b)] for key, a, b in changes]
            title = ["key", str(found.plan.get("reference")), name]
            body.append(table(title, rows, f"What {name} changes of the reference", texts=3))
        members = [member for member in found.members if member.variant == name]
        links = [link(folder, member, out) for member in members]
        body += [tag("ul", *links, class_="runs")] if links else []
        body += [more("Samples of seed " + str(members[0].seed), picture(folder, members[0]))] if members else []
        parts.append(tag("article", *body, id=f"variant-{name}"))
    return join(parts)


def link(folder: Folder, member: Member, out: Any) -> Markup:
    """Returns the way to the page of a run, or the command that makes one."""
    page = folder.path / str(member) / REPORT
    if page.exists() and files.is_local(page) and files.is_local(out):
        where = os.path.relpath(os.path.abspath(page), os.path.dirname(os.path.abspath(out)))
        return tag("li", tag("a", f"{member}: its report", href=urllib.parse.quote(where)))
    if not (folder.path / str(member) / workdir.CONFIG).exists():
        return tag("li", f"{member}: no workdir")
    command = f"tim-jax report {shlex.quote(f'--workdir={folder.path / str(member)}')}"
    return tag("li", f"{member}: ", tag("code", command))


def picture(folder: Folder, member: Member) -> Markup:
    """Returns the samples that were drawn of a run when it was measured."""
    png = folder.bytes(f"{member}/any_step_samples.png")
    if not png or len(png) > pictures.LARGEST:
        return missing("There is no picture of its samples.")
    return pictures.whole(png, f"Samples of {member} by number of steps")


def reference_section(found: Comparison) -> Markup:
    """Returns what defines the reference, of which the variants are changes."""
    reference = found.plan.get("reference")
    definition = ((found.plan.get("variants") or {}).get(reference) or {}).get("definition")
    if not definition:
        return missing("plan.json does not say what the reference is.")
    base = setup.base()
    changed = setup.differences({key: base.get(key) for key in definition if key in base}, definition)
    rows = [[tag("th", tag("code", key), scope="row"), before, tag("strong", now)] for key, before, now in changed]
    whole = [[tag("th", tag("code", key), scope="row"), setup.text(value)] for key, value in sorted(definition.items())]
    return join(
        [
            table(["key", "base.py", str(reference)], rows, "What the reference changes of configs/base.py", texts=3),
            more("All keys that define it", table(["key", "value"], whole, "All keys that define it", texts=2)),
        ]
    )


def hardware_section(folder: Folder, found: Comparison) -> Markup:
    """Returns where the steps were planned, and the last start of one of the runs."""
    parts = []
    if machine := found.plan.get("machine"):
        shown = {name: value for name, value in machine.items() if value != ""}
        parts.append(facts({f"planned on: {name}": value for name, value in shown.items()}, "protocol"))
    for member in found.members:
        if starts := folder.lines(f"{member}/{workdir.STARTS}"):
            parts += [tag("h3", f"Starts of {member}"), setup.starts_section(starts)]
            break
    return join(parts) if parts else missing("No run has been started.")
