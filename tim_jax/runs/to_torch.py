"""The network and the sampler of a run as one file of PyTorch, for `python -m tim_jax.convert export --to=torch`.

The file is written of the modules in `pytorch/`: the run's network and what it is made of, the reader of its weights,
its transport and the sampler, with its numbers at their head. The network's are the arguments of its class there, which
have the names of the fields here.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from tim_jax.config.run import Run
from tim_jax.runs import limits, one_file
from tim_jax.runs.conversion import Exported, Extra
from tim_jax.runs.step_grid import with_found_grid

MODEL = "model.py"  # of an exported folder
FOLDER = pathlib.Path(__file__).parent / "pytorch"
KEPT = ("load", "sample", "T_MIN", "T_MAX")  # what the file is for
OF_TRANSPORT = ("prediction", "prediction_clip", "sigma_d", "noise_std")  # of the numbers of a file
SAMPLERS = ("flow_map", "euler", "heun", "consistency")  # methods of `pytorch.sampler.Sampler`


class Template(NamedTuple):
    """A network in PyTorch.

    Attributes:
        name: of its class.
        modules: of `pytorch/`, the last of which has it, and the others what it derives from.
    """

    name: str
    modules: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """Those of its class."""
        return one_file.arguments(FOLDER / f"{self.modules[-1]}.py", self.name)


# By their names in tim_jax.networks.NETWORKS.
NETWORKS = {
    "tim": Template("TiM", ("tim",)),
    "dit": Template("DiT", ("single_time", "dit")),
    "sit": Template("DiT", ("single_time", "dit")),
    "lightningdit": Template("LightningDiT", ("single_time", "dit", "lightningdit")),
    "jit": Template("JiT", ("single_time", "dit", "lightningdit", "jit")),
    "ddt": Template("DDT", ("single_time", "ddt")),
    "ditdh": Template("DiTDH", ("single_time", "ddt")),
}

# What the file cannot do: the key, whether a run does without it, and what the value must be.
LIMITS: list[limits.Limit] = [
    ("model.network", lambda run: run.config.model.network in NETWORKS, f"one of {', '.join(NETWORKS)}"),
    ("model.slices", lambda run: run.config.model.slices == 1, "1"),
    ("transport.name", lambda run: _transport(run).is_file(), "one of the package"),
    ("transport.shared_below", lambda run: run.transport.shared_below == 0, "0"),
    ("transport.augmented_dimensions", lambda run: run.transport.augmented_dimensions == 0, "0"),
    ("objective.coupling.task", lambda run: not run.network.image_channels, "'none'"),
    ("objective.name", lambda run: not (run.network.prediction_input or run.network.transition_head), "another"),
    ("sampling.plan", lambda run: run.sampling.plan == "sampler", "'sampler'"),
    ("sampling.sampler", lambda run: run.sampling.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
    ("sampling.stochasticity", lambda run: run.sampling.stochasticity == 0, "0"),
]


def of_export(exported: Exported, name: str, overrides: dict[str, str]) -> Extra:
    """Returns the file of an export, and what the card says of it.

    Args:
        exported: the weights.
        name: of the model.
        overrides: {"sampling.key": text}, how else than the run it samples.

    Raises:
        ValueError: naming key and value, for a run that the file could not sample.
    """
    run = limits.run_of(exported, overrides)
    limits.check(run, LIMITS, "torch")
    run = with_found_grid(run, exported.workdir, exported.origin.step)
    program = "\n".join(_usage(run))
    use = (
        f"In PyTorch, with no other package: `{MODEL}` is the network and its sampler in one file.\n\n"
        f"```python\n{program}\n```\n\nIn JAX:"
    )
    return Extra({MODEL: source(run, exported.origin.transposed, name).encode()}, use)


def numbers(run: Run, exchanged: bool) -> dict[str, Any]:
    """What the file says of a run: its network, its transport and how it is sampled.

    Args:
        run: the run, with its optimal grids where it has some.
        exchanged: whether the weights were transposed, see `codecs.official.transposed`.
    """
    template = NETWORKS[run.config.model.network]
    network = {name: getattr(run.network, name) for name in template.arguments}
    if exchanged:
        network["rope_order"] = "exchanged"
    sampling = ["sampler", "grid", "shift", "guidance", "guidance_low", "guidance_high", "exclusive_ends"]
    sampling += ["guidance_channels", "guidance_input", "optimal_times"]
    return {
        "network": network,
        "transport": {name: getattr(run.transport, name) for name in OF_TRANSPORT},
        "sampling": {name: getattr(run.sampling, name) for name in sampling},
    }


def source(run: Run, exchanged: bool, name: str) -> str:
    """Writes the file.

    Args:
        run, exchanged: as `numbers` takes them.
        name: of the model.
    """
    template = NETWORKS[run.config.model.network]
    names = ("layers", "transformer", *template.modules, "weights")
    paths = [*(FOLDER / f"{module}.py" for module in names), _transport(run), FOLDER / "sampler.py"]
    modules = [one_file.read(path) for path in paths]
    modules[names.index("weights")].parts.insert(0, one_file.alias("Network", template.name))
    return one_file.joined(_docstring(run, name), _table(numbers(run, exchanged)), modules, "tim_jax", KEPT)


def _table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers of a run as Python."""
    lines = ["RUN = {"]
    for section, values in numbers.items():
        lines += [f'    "{section}": {{']
        lines += [f'        "{key}": {_literal(value)},' for key, value in values.items()]
        lines += ["    },"]
    return "\n".join([*lines, "}"])


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _transport(run: Run) -> pathlib.Path:
    return FOLDER / "transports" / f"{run.config.transport.name}.py"


def _docstring(run: Run, name: str) -> str:
    """What the file is, and how it is used."""
    data, by_text = run.config.data, run.config.model.condition == "text"
    of_pixels = data.channels in (1, 3) and not run.config.codecs.autoencoder
    prompts = [
        "Prompts are encoded beforehand, or by the caller: features (B, M, T) of the text encoder that README.md",
        "names, and the mask (B, M) of their tokens. `null` has those of the empty prompt.",
    ]
    lines = [
        f'"""{name}: a network that samples in any number of steps, in PyTorch alone.',
        "",
        *(f"    {line}".rstrip() for line in _usage(run)),
        "",
        f"The samples are {'images in [−1, 1]' if of_pixels else 'latents'}; model.safetensors lies beside this file.",
        *(prompts if by_text else []),
        '"""',
    ]
    return "\n".join(lines)


def _usage(run: Run) -> list[str]:
    """A program that samples."""
    data = run.config.data
    noise = f"torch.randn(2, {data.channels}, {data.height}, {data.width})"
    begin = ["import torch, model", "", "network = model.load()"]
    if run.config.model.condition == "class":
        return [*begin, f"x = model.sample(network, {noise}, torch.tensor([0, 1]), steps=4)"]
    read = [f'{name} = torch.load("{name}.pt")  # {{"text": …, "mask": …}}' for name in ("prompts", "empty")]
    return [*begin, *read, f"x = model.sample(network, {noise}, prompts, steps=4, null=empty)"]
