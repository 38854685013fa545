"""One step of TiM, by class and by text, and one sampling, against numbers that a CPU has computed.

Weights, data and everything else that goes in are made of NumPy's frozen random numbers, so that only the devices can
differ. The stored numbers are written by `python -m tim_jax.verify --write-reference=FILE`.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tim_jax.bench.sample import sampler, sampling_of
from tim_jax.bench.step import Case
from tim_jax.networks import TiM
from tim_jax.training.nets import class_conditions, make_nets, text_conditions
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import first_state
from tim_jax.training.step import StepSettings, train_step
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.sampling.planning import make_plan, padded, time_grid
from tim_jax.types import DTYPES, Auxiliary, Query
from tim_jax.verification.setup import Setup
from tim_jax.verification.verdicts import LeftOut, Line, wrong_unless

REFERENCE = pathlib.Path(__file__).with_name("reference.npz")
FLOAT32 = 2e-4  # how far anything may be off in float32 at the highest precision, as a share of its size
BFLOAT16 = 3.0  # how much farther from the numbers in float32 than bfloat16 is on a CPU
EXAMPLES, LATENT, TOKENS, TEXT_WIDTH = 8, (8, 8, 4), 6, 24
STEPS, GUIDANCE = 4, 1.5  # of the sampling
PROJECTIONS = 8  # numbers that stand for the gradient of an array
METRICS = (
    "error_equal",
    "error_moving",
    "tangent_rms",
    "grad_norm",
    "update_norm",
)  # the loss is nearly 1 by its weight
SEED = np.uint32(0)
SMALL_SHARE = 1e-2  # of the whole gradient's norm: the gradient of an array counts as at least so large

Found = dict[str, np.ndarray]


def network(condition: str, dtype: str) -> TiM:
    """Returns the network of a condition, "class" or "text", that computes in a type of DTYPES."""
    fields: dict[str, Any] = {"width": 64, "depth": 2, "heads": 2, "bottleneck": 24, "encoder_depth": 1}
    return TiM(condition=condition, dtype=DTYPES[dtype], num_classes=10, text_width=TEXT_WIDTH, **fields)


def batch(condition: str) -> dict[str, np.ndarray]:
    """Returns made-up examples with their conditions."""
    rng = np.random.RandomState(1)
    made = {"x": rng.standard_normal((EXAMPLES, *LATENT)).astype(np.float32)}
    if condition == "class":
        return made | {"label": np.arange(EXAMPLES, dtype=np.int32)}
    text = rng.standard_normal((1 + EXAMPLES, TOKENS, TEXT_WIDTH)).astype(np.float32)
    mask = np.arange(TOKENS) < rng.randint(1, TOKENS + 1, (1 + EXAMPLES, 1))
    return made | {"text": text[1:], "mask": mask[1:], "null_text": text[:1], "null_mask": mask[:1]}


def weights(of: TiM) -> Any:
    """Returns parameters of a network, none of them zero, as those of some are at first."""
    x, time = jnp.zeros((1, *LATENT)), jnp.zeros((1,))
    condition = {"label": jnp.zeros((1,), jnp.int32)}
    if of.condition == "text":
        condition = {"text": jnp.zeros((1, TOKENS, TEXT_WIDTH)), "mask": jnp.ones((1, TOKENS), bool)}
    query = Query(x, time, time, condition)
    shapes = jax.eval_shape(lambda key: nn.unbox(of.init(key, (query,)))["params"], jax.random.key(0))
    rng = np.random.RandomState(2)
    return jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def step(condition: str, dtype: str) -> Found:
    """Makes one step.

    Returns:
        "metrics", those of METRICS; "times" (B, 2); "error" (B,) of each example before it is weighted; "gradient"
        (arrays, PROJECTIONS) on random signs, after clipping.
    """
    net, optimizer = network(condition, dtype), OptimizerSettings()
    settings = StepSettings(
        nets=make_nets(net),
        objective=OBJECTIVES["tim"](TRANSPORTS["ot_fm"]()),
        tx=make_optimizer(optimizer, {"online": Auxiliary()}),
        schedule=make_schedule(optimizer),
        emas={"slow": 0.9999},
        conditions=class_conditions(net.num_classes) if condition == "class" else text_conditions(),
    )
    with jax.default_matmul_precision("highest" if dtype == "float32" else None):

        @jax.jit
        def first_step(params, batch, seed):
            return train_step(settings, first_state(params, settings.tx, settings.emas), batch, seed)

        made = first_step(weights(net), batch(condition), SEED)
    after, metrics, examples = jax.device_get(made)
    (moments,) = (tree for path, tree in optax.tree.get_all_with_path(after.opt_state, "mu"))
    return {
        "metrics": np.array([metrics[name] for name in METRICS], np.float64),
        "times": np.stack([examples["t"], examples["r"]], -1).astype(np.float64),
        "error": examples["error"].astype(np.float64),
        "gradient": np.stack([project(leaf) for leaf in jax.tree.leaves(moments)]) / (1 - optimizer.b1),
    }


def project(array: np.ndarray) -> np.ndarray:
    """Returns sums (PROJECTIONS,) of an array with random signs, of which each is as large as its norm on average."""
    signs = np.random.RandomState(array.size).randint(0, 2, (PROJECTIONS, array.size)) * 2.0 - 1.0
    return signs @ np.asarray(array, np.float64).ravel()


def sample() -> Found:
    """Draws images by class in a few guided steps, in float32. Returns {"images" (B, h, w, C)}."""
    case = Case("parity", network("class", "float32"), LATENT, EXAMPLES)
    transport, sampling = TRANSPORTS["ot_fm"](), sampling_of(GUIDANCE)
    plan = padded(make_plan(transport, time_grid(transport, STEPS, sampling), sampling))
    with jax.default_matmul_precision("highest"):
        images = sampler(case, GUIDANCE)(weights(case.network), plan, np.int32(STEPS))
    return {"images": np.asarray(images, np.float64)}


def distances(found: Found, right: Found) -> dict[str, float]:
    """Returns how far results are off, by their names, as a share of the size of what is right.

    Of the gradient it is the worst array; that of a whole gradient's SMALL_SHARE or less is measured by that share.
    """
    off = {}
    for name, want in right.items():
        error, size = np.abs(found[name] - want), np.linalg.norm(want)
        if name == "gradient":
            sizes = np.maximum(np.linalg.norm(want, axis=-1), SMALL_SHARE * size)
            off[name] = float((np.linalg.norm(error, axis=-1) / sizes).max())
        elif name == "metrics":
            off[name] = float((error / np.abs(want)).max())
        else:
            off[name] = float(np.linalg.norm(error) / size)
    return off


def reference() -> dict[str, Found]:
    """Returns the stored numbers: {"class/float32", …, "sample": results}."""
    stored: dict[str, Found] = {}
    with np.load(REFERENCE) as file:
        for key in file.files:
            case, _, name = key.rpartition("/")
            stored.setdefault(case, {})[name] = file[key]
    return stored


def write(file: pathlib.Path) -> None:
    """Writes the numbers of this machine's CPU to a file, as `reference` reads them."""
    found = {f"{condition}/{dtype}": step(condition, dtype) for condition in ("class", "text") for dtype in DTYPES}
    found["sample"] = sample()
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{case}/{name}": array for case, results in found.items() for name, array in results.items()}
    with file.open("wb") as opened:  # a path would get another suffix
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]


def run(setup: Setup) -> Iterator[Line | LeftOut]:
    """Yields a line for each step and one for the sampling."""
    right = reference()
    for condition in ("class", "text"):
        exact = right[f"{condition}/float32"]
        for dtype in DTYPES:
            limit, of = FLOAT32, ""
            if dtype == "bfloat16":
                limit = BFLOAT16 * max(distances(right[f"{condition}/bfloat16"], exact).values())
                of = f", {BFLOAT16:g} times as far as on a CPU"
            yield line(f"step by {condition}, {dtype}", distances(step(condition, dtype), exact), limit, of)
    yield line(f"{STEPS} guided steps of sampling, float32", distances(sample(), right["sample"]), FLOAT32)


def line(what: str, off: dict[str, float], limit: float, of: str = "") -> Line:
    """Returns the line of some distances."""
    where = max(off, key=lambda name: off[name] if np.isfinite(off[name]) else np.inf)
    good = off[where] <= limit  # not so for NaN
    return Line(what, f"{where} {off[where]:.2g} off", f"at most {limit:.2g}{of}", wrong_unless(good), off)
