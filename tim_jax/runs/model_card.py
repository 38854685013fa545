"""The card of an exported model, a README.md as model hubs read it: what it is, how it was made, how good it is."""

import json
import shlex
from collections.abc import Iterable, Sequence

from etils import epath
from ml_collections import ConfigDict

from tim_jax.config import keys, plugins, recorded_plugins
from tim_jax.config.objective import resolved
from tim_jax.runs import exports, published, workdir
from tim_jax.runs.exports import Origin

CARD, PICTURE = "README.md", "samples.png"
SHOWN = 30  # classes that are listed
# Sections that say what a run is, and how it is sampled and measured; the others are about machines.
RECIPE = (
    "seed", "data", "codecs", "model", "transport", "times", "objective", "teacher", "optimizer", "ema", "posthoc_ema",
    "start", "training", "sampling", "evaluation",
)  # fmt: skip
# Networks by name: what they are called, and the numbers of their papers on arXiv.
PAPERS = {
    "tim": ("TiM", "2509.04394"),
    "dit": ("DiT", "2212.09748"),
    "sit": ("SiT", "2401.08740"),
    "lightningdit": ("LightningDiT", "2501.01423"),
    "jit": ("JiT", "2511.13720"),
    "ddt": ("DDT", "2504.05741"),
    "ditdh": ("DiT^DH", "2510.11690"),
}
CITATION = """\
@article{wang2025transition,
  title   = {Transition Models: Rethinking the Generative Learning Objective},
  author  = {Wang, Zidong and Zhang, Yiyuan and Yue, Xiaoyu and Yue, Xiangyu and Li, Yangguang and Ouyang, Wanli and
             Bai, Lei},
  journal = {arXiv preprint arXiv:2509.04394},
  year    = {2025},
}"""


def samples(folder: epath.Path) -> epath.Path | None:
    """The picture of a workdir that shows its samples best: of its evaluation, else the last one of training."""
    evaluated = folder / "any_step_samples.png"
    if evaluated.exists():
        return evaluated
    drawn = (folder / "samples").iterdir() if (folder / "samples").exists() else ()
    return max((path for path in drawn if path.suffix == ".png"), key=lambda path: path.name, default=None)


def card(
    origin: Origin,
    folder: epath.Path,
    name: str,
    size: int,
    modules: Sequence[str],
    picture: epath.Path | None,
    extra: exports.Extra = exports.Extra(),
) -> str:
    """Writes the card.

    Args:
        origin: what the exported file says of its run.
        folder: the workdir.
        name: of the model: ORG/NAME on the hub, or any other.
        size: the number of parameters.
        modules: of the network that the published one does not have.
        picture: that lies beside the card as PICTURE, or None.
        extra: further files of the folder.

    Returns:
        Markdown, with the fields that hubs read at its head.
    """
    config = workdir.restored(dict(origin.config))
    paragraphs = [
        _head(config, "diffusers" if extra.alone else "tim_jax"),
        f"# {name.rpartition('/')[2]}",
        _what(config, origin, size),
        _shown(picture),
        "## Use",
        extra.use,
        "" if extra.alone else _use(config, origin, name),
        _plugins(config),
        *([] if extra.alone else ["## In the published code", _in_published_code(config, modules, origin)]),
        *_classes(origin),
        "## Recipe",
        _recipe(config, origin, folder),
        "## Scores",
        _scores(folder, origin.step),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _head(config: ConfigDict, library: str) -> str:
    by_text = config.model.condition == "text"
    tags = ["jax", "flax", "transition-models", config.model.network, "any-step"]
    tags += ["text-to-image" if by_text else "class-conditional"]
    task = "text-to-image" if by_text else "unconditional-image-generation"  # hubs have no task for images of classes
    lines = [
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        "license: other",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _what(config: ConfigDict, origin: Origin, size: int) -> str:
    kind = "text" if config.model.condition == "text" else f"{config.model.num_classes} classes"
    shape = f"{config.data.height}×{config.data.width}×{config.data.channels}"
    examples = f"latents {shape}" if config.codecs.autoencoder or config.data.channels > 3 else f"images {shape}"
    title, paper = PAPERS.get(config.model.network, PAPERS["tim"])
    any_step = "" if config.objective.name == "flow_matching" else ", that samples in any number of steps"
    return (
        f"A generative model of {examples}, conditioned on {kind}{any_step}: the network "
        f"[{title}, arXiv {paper}](https://arxiv.org/abs/{paper}), trained with tim_jax, objective "
        f"`{config.objective.name}`. {size:,} parameters: {_weights(origin.ema)} at step {origin.step:,}.\n\n"
        "License: see the field `license` at the head of this card, which the author sets."
    )


def _weights(ema: str) -> str:
    return "the raw weights of the network" if ema == "online" else f"the EMA `{ema}`"


def _shown(picture: epath.Path | None) -> str:
    if picture is None:
        return ""
    return f"![Samples]({PICTURE})\n\n*Samples. Rows: number of steps. Columns: the same noise and condition.*"


def _use(config: ConfigDict, origin: Origin, name: str) -> str:
    place = f"hf://{name}" if "/" in name else name
    codecs = {}
    if config.codecs.autoencoder or config.data.channels not in (1, 3):
        codecs["autoencoder"] = config.codecs.autoencoder or "AUTOENCODER"
    if config.model.condition == "text":
        codecs["text_encoder"] = config.codecs.text_encoder or "TEXT_ENCODER"
    given = f", codecs={codecs!r}" if codecs else ""
    flags = "".join(f" --config.codecs.{key}={value}" for key, value in codecs.items())
    if config.model.condition == "text":
        call, asked = 'tim("a prompt", steps=4)', '--prompt="a prompt"'
    else:
        chosen: list[str | int] = list(origin.classes[:2]) or [0, 1]
        call = f"tim({chosen!r}, steps=4)"
        asked = shlex.quote("--labels=" + ",".join(f'"{one}"' if "," in str(one) else str(one) for one in chosen))
    python = f"import tim_jax\n\ntim = tim_jax.load({place!r}{given})\nimages = {call}  # a list of PIL images"
    return (
        f"```python\n{python}\n```"
        f"\n\nOr as a workdir, which samples, is measured and trains on like any other:\n\n```bash\n"
        f"tim-jax convert import {place} WORKDIR\ntim-jax sample --workdir=WORKDIR --steps=1,4,32 {asked}{flags}\n```"
    )


def _plugins(config: ConfigDict) -> str:
    """Of a run with code of its own, which nobody runs unread."""
    copies = [str(recorded_plugins.copy_of(entry, "")) for entry in config.plugin]
    if not copies:
        return ""
    return (
        f"The run has code of its own, in {', '.join(f'`{copy}`' for copy in copies)}. Read it, then name it: "
        f"`plugin={copies[0]!r}` in `tim_jax.load`, `--config.plugin={','.join(copies)}` for commands."
    )


def _in_published_code(config: ConfigDict, modules: Iterable[str], origin: Origin) -> str:
    found = published.obstacles(config, modules)
    others = [module for module in modules if module != published.GUIDANCE]
    more = f" Parameters that it does not have begin with `tim_jax.` ({', '.join(others)})." if others else ""
    if found:
        return f"`{exports.WEIGHTS}` has the published names, but the published code cannot use it: {'; '.join(found)}."
    model = config.model
    what = f"width {model.width}, depth {model.depth}, {model.heads} heads, " if model.width else f"size {model.size}, "
    note = " It is right on square images only, as the model was trained." if origin.transposed else ""
    return (
        f"`{exports.WEIGHTS}` has the published names, layouts and order of positions, for a network of {what}patches "
        f"of {model.patch_size} and {config.data.channels} channels.{note}{more}"
    )


def _classes(origin: Origin) -> list[str]:
    if all(name == str(label) for label, name in enumerate(origin.classes)):
        return []
    more = len(origin.classes) - SHOWN
    listed = ", ".join(f"{label} {name}" for label, name in enumerate(origin.classes[:SHOWN]))
    return ["## Classes", listed + (f" and {more:,} more" if more > 0 else "")]


def _recipe(config: ConfigDict, origin: Origin, folder: epath.Path) -> str:
    """What differs from configs/base.py, and the last start."""
    base = plugins.base_config(config.plugin)
    base.objective.name, base.transport.name = config.objective.name, config.transport.name
    default = keys.flatten(resolved(base))
    given = exports.without_places(keys.flatten(config))
    differing = [
        (key, value)
        for key, value in given.items()
        if key.split(".")[0] in RECIPE and exports.without_places(default.get(key)) != value
    ]
    lines = [f"| `{key}` | `{json.dumps(value, ensure_ascii=False)}` |" for key, value in differing]
    table = "\n".join(["| key | value |", "| --- | --- |", *lines])
    said = "The configuration, where it differs from `configs/base.py`; the file of weights holds all of it."
    return "\n\n".join(part for part in (said, table, _data(config, origin), _start(folder)) if part)


def _data(config: ConfigDict, origin: Origin) -> str:
    data = config.data
    where = f" `{data.path}`" if data.path else ""
    many = f", {sum(origin.counts):,} examples" if origin.counts else ""
    return f"Data: {'a mixture' if data.mixture else f'source `{data.source}`'}{where}, part `{data.split}`{many}."


def _start(folder: epath.Path) -> str:
    start = workdir.last_start(folder)
    if start is None:
        return ""
    versions = start.get("versions", {})
    packages = ", ".join(f"{name} {versions[name]}" for name in ("tim-jax", "jax", "flax") if name in versions)
    return f"Last started on {start['devices']}, {start['time'][:10]}, with {packages}."


def _scores(folder: epath.Path, step: int) -> str:
    markdown, numbers = folder / "any_step.md", folder / "any_step.json"
    if not markdown.exists() or not numbers.exists():
        return "Not measured."
    table = json.loads(numbers.read_text())
    steps = ",".join(str(row["steps"]) for row in table["rows"])
    command = f"tim-jax evaluate --workdir=WORKDIR --steps={steps} --seeds={len(table['seeds'])}"
    measured = table.get("step")
    other = "" if measured in (None, step) else f" They are those of training step {measured:,}, not of these weights."
    return f"{markdown.read_text().strip()}\n\nThe table is made by `{command}`.{other}"
