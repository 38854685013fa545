"""Sections on how a run was made: its configuration and how that differs from base.py, its starts, its goodput."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.config import keys, loading
from tim_jax.config.objective import resolved
from tim_jax.report import curves
from tim_jax.report.markup import Markup, facts, join, missing, more, table, tag
from tim_jax.report.reading import WRONG, Folder, is_number
from tim_jax.runs import workdir
from tim_jax.training import ledger

NOWHERE = "—"  # stands for a key that one of two configurations does not have


def recorded(folder: Folder) -> dict[str, Any]:
    """Returns a run's configuration {key: value} by today's names; by those of its file where that cannot be done."""
    raw = folder.json(workdir.CONFIG)
    if raw is None:
        return {}
    try:
        return keys.flatten(workdir.recorded(folder.path) or {})
    except WRONG as error:
        folder.note(workdir.CONFIG, " ".join(str(error).split()))
        return keys.flatten(raw)


def base() -> dict[str, Any]:
    """Returns the configuration of configs/base.py {key: value}, as JSON holds it."""
    return keys.flatten(workdir.to_json(resolved(loading.load("base").get_config())))


def text(value: Any) -> str:
    """Returns a value of a configuration as it is read."""
    if value == "":
        return "''"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) if value else "()"
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (key, value in one, value in the other) of all keys that differ, in order of their names."""
    lacks = object()

    def told(value: Any) -> str:
        return NOWHERE if value is lacks else text(value)

    pairs = {key: (one.get(key, lacks), other.get(key, lacks)) for key in sorted({*one, *other})}
    return [(key, told(a), told(b)) for key, (a, b) in pairs.items() if a != b]


def configuration_section(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> Markup:
    """Returns what a configuration changes of configs/base.py, and all of it.

    Args:
        config: {key: value}.
        starts: lines of starts.jsonl, of which the last one may have had another configuration.
    """
    if not config:
        return missing("config.json is not there, or cannot be read.")
    changed = differences(base(), config)
    rows = [[tag("th", tag("code", key), scope="row"), before, tag("strong", now)] for key, before, now in changed]
    caption = f"{len(changed)} of {len(config)} keys differ from configs/base.py"
    parts = [table(["key", "base.py", "this run"], rows, caption, texts=3)]
    if starts and isinstance(starts[-1].get("config"), dict) and len(starts) > 1:
        first, last = (keys.flatten(starts[i].get("config") or {}) for i in (0, -1))
        later = [[tag("th", tag("code", key), scope="row"), a, b] for key, a, b in differences(first, last)]
        if later:
            parts.append(table(["key", "first start", "last start"], later, "Keys that a later start changed", texts=3))
    everything = [[tag("th", tag("code", key), scope="row"), text(value)] for key, value in sorted(config.items())]
    parts.append(more("The whole configuration", table(["key", "value"], everything, "All keys of this run", texts=2)))
    return join(parts)


def moment(given: Any) -> str:
    """Returns a time as it is read, of seconds since the epoch or of a text in ISO's form."""
    if is_number(given):
        given = datetime.datetime.fromtimestamp(given, datetime.UTC).isoformat()
    return str(given)[:16].replace("T", " ")


def starts_section(starts: Sequence[Mapping[str, Any]]) -> Markup:
    """Returns a line for every start of a run, and versions, commit and hardware of the last one."""
    if not starts:
        return missing("starts.jsonl is not there: nothing says when and where this run was started.")
    rows = [
        [moment(start.get("time", "")), start.get("devices", ""), start.get("processes", ""), commit(start)]
        for start in starts
    ]
    last = starts[-1]
    versions = {name: version for name, version in (last.get("versions") or {}).items() if version != "not installed"}
    return join(
        [
            table(["start (UTC)", "devices", "processes", "commit"], rows, "Starts of this run", texts=4),
            tag("h3", "Versions at the last start"),
            facts(versions, "protocol versions"),
        ]
    )


def commit(start: Mapping[str, Any]) -> Any:
    """Returns the commit of a start, shortly; a + says that the code had been changed since."""
    value = start.get("commit")
    return tag("code", f"{value[:10]}{'+' * value.endswith('+')}", title=value) if isinstance(value, str) else "unknown"


def goodput_section(folder: Folder, command: str) -> Markup:
    """Returns how much of the time went into steps which count. command: that trains the run."""
    found = curves.read(folder)
    share = curves.last(found, "goodput")
    if share is None:
        return missing("Goodput is written with the metrics, which training writes:", command)
    parts = [bar({"steps which count": share, "all else": max(0.0, 1 - share)})]
    times = [line["time"] for line in folder.lines(curves.FILE) if is_number(line.get("time"))]
    wait, rate = (curves.last(found, name) for name in ("data_wait", "images_per_second"))
    known = {"goodput": f"{share:.1%}"}
    known |= {"last line written (UTC)": moment(times[-1])} if times else {}
    known |= {"images per second": f"{rate:,.0f}"} if rate is not None else {}
    known |= {"waiting for data, of the time of steps": f"{wait:.1%}"} if wait is not None else {}
    parts.append(tag("div", facts(known, "protocol"), curves.chart(curves.GOODPUT, found), class_="charts"))
    return join([*parts, ledger_table(folder)])


def ledger_table(folder: Folder) -> Markup | None:
    """Returns where the time since the first start of a run went, over all starts; None where nothing says it."""
    starts = [start for start in folder.lines(ledger.FILE) if ledger.is_whole(start)]
    if not starts:
        return None
    seconds = ledger.ledger(starts, workdir.first_start(folder.path))
    known = {kind: value for kind, value in seconds.items() if not math.isnan(value)}
    total, whole = sum(known.values()), len(known) == len(seconds)
    rows = [
        [tag("th", ledger.KINDS[kind], scope="row"), ledger.duration(value), f"{value / max(total, 1e-9):.1%}"]
        for kind, value in known.items()
        if value
    ]
    rows += [[tag("th", ledger.KINDS[kind], scope="row"), "?", "?"] for kind in seconds if kind not in known]
    caption = f"Where the time went: {'' if whole else 'at least '}{ledger.duration(total)} since the first start, "
    caption += (
        f"in {len(starts)} recorded start{'s' * (len(starts) > 1)}, with what came after the last line of metrics"
    )
    return table(["", "time", "share"], rows, caption)


def bar(shares: Mapping[str, float]) -> Markup:
    """Returns shares of a whole as one bar with a legend."""
    ends, at = [], 0.0
    for i, share in enumerate(shares.values()):
        x, width = f"{1000 * at:.1f}", f"{1000 * share:.1f}"
        ends.append(tag("rect", x=x, y="0", width=width, height="14", class_=f"part{i}"))
        at += share
    text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    drawn = tag("svg", *ends, viewBox="0 0 1000 14", preserveAspectRatio="none", class_="bar", role="img",
                aria_label=text)  # fmt: skip
    legend = [
        tag("li", tag("span", class_=f"key part{i}"), f"{name} ", tag("span", f"{share:.1%}", class_="figure"))
        for i, (name, share) in enumerate(shares.items())
    ]
    return join([drawn, tag("ul", *legend, class_="keys")])
