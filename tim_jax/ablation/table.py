"""The table of an ablation and its plot, from the results of its runs."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from tim_jax.ablation import budget, rates, runs
from tim_jax.ablation.settings import RATE, Ablation, Member
from tim_jax.evaluation import figures, protocol
from tim_jax.system import files, lock

NAMES = ("ablation.md", "ablation.json", "ablation.png")
ONLY_NAMES = ("ablation_only.md", "ablation_only.json", "ablation_only.png")  # of the runs that --only names
LOCK = "ablation.lock"
NOT_TRAINED = "not trained here"
BASELINE_COLOUR = "#8a8a8a"
DASHES = ("-", "--", ":", "-.")
# Figures of real images, by the key of a table: what a line is called, in a plot and in the table, and how it is drawn.
FLOORS = {"floor": ("floor, halves", (0, (4, 2))), "floor_at_count": ("floor, {samples:,} samples", (0, (1, 2)))}
PERFECT = "what as many perfect samples, drawn from the distribution of the training part, score on average"
DISTANCES = {"frechet": "to the training part", "frechet_held_out": "to the held-out part"}


def collect(ablation: Ablation, folder: epath.Path, members: Sequence[Member] | None = None) -> dict[str, Any]:
    """Collects all that is known of an ablation, or of some of its runs alone.

    Args:
        ablation: the ablation.
        folder: its folder.
        members: the runs, all by default.

    Returns:
        A dict that JSON can hold: {"equal", "reference", "seeds", "samples", "protocol", "measured_otherwise", "floor",
        "floor_at_count", "variants", "baselines", "others", "winners"}; see `summarise` and `winners`. Baselines win
        nothing, since they were trained otherwise. "protocol" is that of the first run, "measured_otherwise" says in
        lines which were measured by another. Where several EMAs of each run are measured, each is a variant of its own
        called "NAME (EMA)", with "variant" and "ema". "others" are the variants and baselines that are not among the
        runs.
    """
    planned = (budget.read(folder) or {"variants": {}})["variants"]
    members = ablation.members() if members is None else members
    seeds = {name: [each.seed for each in members if each.variant == name] for name in ablation.names}
    variants: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name in (name for name in ablation.names if seeds[name]):
        results = {seed: runs.read(folder / str(Member(name, seed))) for seed in seeds[name]}
        good = [result for result in results.values() if result and "table" in result]
        tables |= {f"{name}/seed_{seed}": result["table"] for seed, result in results.items() if result in good}
        if name in ablation.baselines:
            about = good[0]["baseline"] if good else {"checkpoint": ablation.baselines[name]}
            baselines[name] = {**about, **summarise(results)}
        else:
            about = {key: value for key, value in planned.get(name, {}).items() if key != "definition"}
            about = {"changes": dict(ablation.variants[name]), **about}
            if ablation.learning_rates:
                about["scores"] = {f"{rate:g}": value for rate, value in rates.scores(ablation, folder, name).items()}
            own, *more = ablation.emas_of(name)
            variants |= {name: about | summarise(results)} if not more else {}
            for ema in (own, *more) if more else ():
                of_ema = {seed: _of_weights(result, own, ema) for seed, result in results.items()}
                variants[f"{name} ({ema})"] = {"variant": name, "ema": ema, **about, **summarise(of_ema)}
    first: dict[str, Any] = next(iter(tables.values()), {})
    return {
        "equal": ablation.equal,
        "reference": ablation.reference,
        "seeds": max(map(len, seeds.values())),
        "samples": first.get("samples"),
        "protocol": first.get("protocol"),
        "measured_otherwise": protocol.differences(tables),
        **{key: mean_floor([table.get(key, {}) for table in tables.values()]) for key in FLOORS},
        "variants": variants,
        "baselines": baselines,
        "others": [name for name in ablation.names if not seeds[name]],
        "rates": rates.note(ablation) if ablation.learning_rates else None,
        "winners": winners(variants),
    }


def _of_weights(result: dict[str, Any] | None, own: str, ema: str) -> dict[str, Any] | None:
    """What a result says of one of its run's weights; own: those that samples are drawn with."""
    found = runs.tables(result, own)
    if result is None or not found:
        return result
    rest = {key: value for key, value in result.items() if key not in ("table", "emas")}
    return rest | ({"table": found[ema]} if ema in found else {})


def mean_floor(floors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure that all of them have."""
    names = [name for name in (floors or [{}])[0] if all(name in floor for floor in floors)]
    return {name: float(np.mean([floor[name] for floor in floors])) for name in names}


def summarise(results: Mapping[int, dict[str, Any] | None]) -> dict[str, Any]:
    """Summarises the runs of a variant or of a baseline.

    Args:
        results: {seed: of that run}, None for those that are not finished.

    Returns:
        {"runs": how many, "finished": how many of them, "failures": {seed: line}, "train_seconds": mean, for what was
        trained here, "rows"}. Rows, in ascending network evaluations, hold "steps" of the sampler, "nfe" and, for every
        distance NAME, its mean over runs, NAME_spread (standard deviation, 0 for one run) and NAME_seeds.
    """
    good = [result for result in results.values() if result and "table" in result]
    failures = {seed: result["failure"] for seed, result in results.items() if result and "failure" in result}
    about: dict[str, Any] = {"runs": len(results), "finished": len(good), "failures": failures, "rows": []}
    if not good:
        return about
    if "train_seconds" in good[0]:
        about["train_seconds"] = float(np.mean([result["train_seconds"] for result in good]))
    for of_steps in zip(*(result["table"]["rows"] for result in good), strict=True):
        row = {key: of_steps[0][key] for key in ("steps", "nfe")}
        for name in [key.removesuffix("_seeds") for key in of_steps[0] if key.endswith("_seeds")]:
            values = [float(one[name]) for one in of_steps]
            row[name] = float(np.mean(values))
            row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row[f"{name}_seeds"] = values
        about["rows"].append(row)
    return about


def winners(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Finds the variant with the smallest mean for every distance and number of network evaluations.

    Args:
        variants: {name: what `summarise` returned}.

    Returns:
        {distance: {network evaluations: {"variant", "second", "lead", "lead_spread"}}}. The lead is how much larger the
        second variant's mean is, and lead_spread the standard deviation of that difference from seed to seed; they and
        "second" are None where there is one variant only.
    """
    found: dict[str, dict] = {}
    for name in DISTANCES:
        columns: dict[int, list] = {}
        for variant, about in variants.items():
            for row in about["rows"]:
                columns.setdefault(row["nfe"], []).append((row[name], row[f"{name}_spread"], variant))
        found[name] = {}
        for nfe, entries in sorted(columns.items()):
            (mean, spread, variant), *others = sorted(entries)
            about = {"variant": variant, "second": None, "lead": None, "lead_spread": None}
            if others:
                second = others[0]
                lead = {"lead": second[0] - mean, "lead_spread": math.hypot(spread, second[1])}
                about |= {"second": second[2], **lead}
            found[name][str(nfe)] = about
    return found


def to_markdown(found: Mapping[str, Any], title: str) -> str:
    """Returns the table as markdown: for both distances a line per variant and a column per network evaluations."""
    text = [f"# {title}", ""]
    for name, part in DISTANCES.items():
        text += [f"Fréchet distance {part}, by network evaluations of an image:", "", *_table(found, name), ""]
    seeds, everything = found["seeds"], found["variants"] | found["baselines"]
    over = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds of training and of noise"
    rule = {
        "time": "the same time on a quiet machine",
        "flops": "the same operations",
        "steps": "the steps of their configurations",
    }
    text += [
        f"{over.capitalize()}, {found['samples']} samples of each. All variants got {rule[found['equal']]}; "
        f"a step's cost is relative to that of {found['reference']}, seconds are those of training as it ran. Bold: "
        "the smallest mean. Floor, halves: two halves of the training part, half as many images; held out: training "
        "part against held-out part."
        + (f" Floor, {found['samples']:,} samples: {PERFECT}." if found.get("floor_at_count") else "")
    ]
    if found["rates"]:
        text += ["", found["rates"]]
    if found["protocol"]:
        text += ["", f"{protocol.read(found['protocol']).measured}."]
    text += [line for each in found["measured_otherwise"] for line in ("", f"**Not to be compared:** {each}.")]
    for name, about in found["baselines"].items():
        of = f"its weights {about['ema']!r} at step {about['steps']:,}" if about["finished"] else "its weights"
        text += [
            "",
            f"{name} is a baseline: it was not trained here, but measured like the variants: {of}, from "
            f"{about['checkpoint']}, with the noise of each seed. It is not part of the comparison.",
        ]
    if len(found["variants"]) > 1:
        text += ["", *(_verdict(found, name) for name in DISTANCES)]
    if any("ema" in about for about in found["variants"].values()):
        text += ["", "In brackets: the weights that are measured, all of them of the same training runs."]
    if found["others"]:
        text += ["", f"Left out by --only: {', '.join(found['others'])}."]
    missing = {name: about for name, about in everything.items() if about["finished"] < about["runs"]}
    if missing:
        text += ["", "Not finished:", ""]
        for name, about in missing.items():
            failed = "".join(f"; seed {seed} failed: {line}" for seed, line in about["failures"].items())
            text += [f"- {name}: {about['finished']} of {about['runs']} runs{failed}"]
    return "\n".join(text) + "\n"


def _table(found: Mapping[str, Any], name: str) -> list[str]:
    """Returns the lines of a markdown table for one distance."""
    everything = found["variants"] | found["baselines"]
    columns = [str(nfe) for nfe in sorted({row["nfe"] for about in everything.values() for row in about["rows"]})]
    given = ["learning rate"] if found["rates"] else []
    lines = [["variant", *given, "steps", "cost of a step", "seconds", *columns]]
    lines += [[":---", *["---:"] * (len(lines[0]) - 1)]]
    for variant, about in everything.items():
        rows = {str(row["nfe"]): row for row in about["rows"]}
        cells = [
            f"{about['steps']:,}" if "steps" in about else "",
            NOT_TRAINED if variant in found["baselines"] else f"{about['cost']:.2f}" if "cost" in about else "",
            f"{about['train_seconds']:.0f}" if "train_seconds" in about else "",
        ]
        for nfe in columns:
            if nfe not in rows:
                cells.append("failed" if about["failures"] and not about["finished"] else "")
                continue
            spread = f" ± {rows[nfe][f'{name}_spread']:.1g}" if about["finished"] > 1 else ""
            cell = f"{rows[nfe][name]:.3g}{spread}"
            winner = found["winners"][name].get(nfe, {}).get("variant")
            cells.append(f"**{cell}**" if variant == winner else cell)
        if given:
            cells = [f"{about['changes'][RATE]:g}" if RATE in about.get("changes", {}) else "", *cells]
        lines.append([variant, *cells])
    for title, _, height in floors(found, name):
        lines.append([title, *[""] * (len(given) + 3), f"{height:.3g}", *[""] * (len(columns) - 1)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def floors(found: Mapping[str, Any], name: str) -> list[tuple[str, Any, float]]:
    """Returns (what it is called, how its line is drawn, figure) of each floor of a distance."""
    return [
        (title.format(samples=found.get("samples")), dashes, found[key][name])
        for key, (title, dashes) in FLOORS.items()
        if name in found.get(key, {})
    ]


def _verdict(found: Mapping[str, Any], name: str) -> str:
    """Returns a sentence on who is ahead at every number of evaluations, and whether other seeds could change that."""
    texts = []
    for nfe, about in found["winners"][name].items():
        lead = ""
        if about["second"] is not None:
            close = found["seeds"] > 1 and about["lead"] <= about["lead_spread"]
            lead = f" (within the spread of {about['second']})" if close else ""
        texts.append(f"{nfe}: {about['variant']}{lead}")
    return f"Ahead {DISTANCES[name]}, by network evaluations: {', '.join(texts) or 'none yet'}."


def plot(found: Mapping[str, Any], path: epath.Path, title: str) -> None:
    """Plots both distances by network evaluations, as PNG: a colour per variant, grey for baselines, spread as a band.

    Args:
        found: what `collect` returned.
        path: where the picture is written.
        title: above it.
    """
    figure = figures.new(11, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    ticks: set[int] = set()
    for axes, (name, part) in zip(panels, DISTANCES.items(), strict=True):
        for i, (variant, about) in enumerate((found["variants"] | found["baselines"]).items()):
            if not about["rows"]:
                continue
            x, y, spread = (np.array([row[key] for row in about["rows"]]) for key in ("nfe", name, f"{name}_spread"))
            ticks |= set(x.tolist())
            is_baseline = variant in found["baselines"]
            colour, dashes, marker = _style(found["variants"], i)
            colour = BASELINE_COLOUR if is_baseline else colour
            label = f"{variant}, {NOT_TRAINED}" if is_baseline else variant
            axes.plot(x, y, dashes, color=colour, marker=marker, label=label, lw=1.8, ms=5, mec="white", mew=0.7)
            axes.fill_between(x, np.maximum(y - spread, y / 4), y + spread, color=colour, alpha=0.18, lw=0)
        for label, dashes, height in floors(found, name):
            axes.axhline(height, color="#555555", ls=dashes, lw=1.2, label=label)
        axes.set_title(f"Fréchet distance {part}", fontsize=10)
        axes.set_xlabel("network evaluations per image")
    for axes in panels:  # which share the axis of the distances
        figures.logarithmic(axes, ticks)
    panels[0].set_ylabel("Fréchet distance")
    figure.suptitle(figures.wrapped(title), fontsize=11)
    figures.legend_below(figure, *panels[0].get_legend_handles_labels())
    figures.save(figure, path)


def _style(variants: Mapping[str, Mapping[str, Any]], i: int) -> tuple[str, str, str]:
    """Colour, dashes and marker of line i: EMAs of one variant have its colour and marker, where there are several."""
    lines = [(about.get("variant", name), about.get("ema", "")) for name, about in variants.items()]
    names, emas = (list(dict.fromkeys(line[part] for line in lines)) for part in (0, 1))
    shades = len(figures.COLOURS)
    if len(names) > 1 and len(emas) > 1 and i < len(lines):
        k, turn = names.index(lines[i][0]), emas.index(lines[i][1])
    else:
        k, turn = i, i // shades  # where there are more variants than colours
    return figures.COLOURS[k % shades], DASHES[turn % len(DASHES)], figures.MARKERS[k % len(figures.MARKERS)]


def write(ablation: Ablation, folder: epath.Path, title: str, only: Sequence[Member] | None = None) -> str:
    """Writes table and plot into an ablation's folder.

    Args:
        ablation: the ablation.
        folder: its folder.
        title: of the table.
        only: runs that have a table of their own beside that of all (ONLY_NAMES).

    Returns:
        The markdown of the runs in `only`, or of all.
    """
    with lock.locked(folder, name=LOCK, waiting=lambda who: None):  # whoever writes last has seen all results
        return _write(ablation, folder, title, only)


def _write(ablation: Ablation, folder: epath.Path, title: str, only: Sequence[Member] | None) -> str:
    text = ""
    for names, members in ((NAMES, None), (ONLY_NAMES, only))[: 1 if only is None else 2]:
        found = collect(ablation, folder, members)
        text = to_markdown(found, title)
        files.replace(folder / names[0], text.encode())
        files.replace(folder / names[1], (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
        if any(about["rows"] for about in (found["variants"] | found["baselines"]).values()):
            plot(found, folder / names[2], title)
    return text
