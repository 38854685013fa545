"""What the derivative costs: a train step of flow matching beside three of transition models.

The whole step is measured: gradient, optimizer and averages. Half of the rows have r = t, a tenth r = T_min. Time and
memory are those of the step as it trains, operations those of the same step with its layers unrolled.
"""

import argparse
import dataclasses
import difflib
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.bench import measure
from tim_jax.networks import SIZES, TiM
from tim_jax.networks.block import REMAT
from tim_jax.training.nets import class_conditions, make_nets
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import TrainState, create
from tim_jax.training.step import StepSettings, train_step
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.groups import Split
from tim_jax.transitions.objective import TransitionObjective
from tim_jax.transitions.times import Times
from tim_jax.types import Query

COLUMNS = {
    "network": "{network}",
    "step": "{name}",
    "seconds": "{seconds:.4g} ± {spread:.2g}",
    "ratio": "{seconds_ratio:.2f}",
    "GFLOP": "{gigaflops:.4g}",
    "ratio ": "{flops_ratio:.3f}",
    "temporary MB": "{megabytes:.4g}",
    "ratio  ": "{temporary_bytes_ratio:.3f}",
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class SeparateDerivative(TransitionObjective):
    """The objective with dF/dt from a pass of its own beside the training pass, as in the published code.

    That pass has only the rows that need it, and goes through nets["precise"].
    """

    def predict(self, nets, split: Split, groups: list) -> list:
        derivative = super().predict({**nets, "student": nets["precise"]}, split, groups[-1:])
        training = super().predict(nets, dataclasses.replace(split, moving=()), groups)
        return [*training[:-1], (training[-1][0], derivative[0][1])]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at the size it is measured at. of: what it is a part or kind of, in words."""

    of: str
    network: TiM
    latent: tuple[int, int, int]
    batch: int

    @property
    def tokens(self) -> int:
        return self.latent[0] * self.latent[1] // self.network.patch_size**2

    def describe(self) -> str:
        net = self.network
        return f"{self.of}: depth {net.depth}, width {net.width}, {self.tokens} tokens, batch {self.batch}"


CASES = {
    "small": Case(
        "small",
        TiM(channels=1, width=128, depth=4, heads=4, bottleneck=64, encoder_depth=2, num_classes=10),
        latent=(8, 8, 1),
        batch=128,
    ),
    # Full width, but two blocks, so that two cores can run it; --depth=12 gives the whole network.
    "B/4": Case("B/4-shaped", TiM(patch_size=4, **SIZES["B"] | {"depth": 2, "encoder_depth": 2}), (32, 32, 4), 16),
}

VARIANTS = {
    "flow_matching": functools.partial(TransitionObjective, times=dict(share_equal=1.0, share_min=0.0)),
    "tim_fused": functools.partial(TransitionObjective, times=dict(share_equal=0.5, share_min=0.1)),
    "tim_separate_jvp": functools.partial(SeparateDerivative, times=dict(share_equal=0.5, share_min=0.1)),
    "tim_dde": functools.partial(
        TransitionObjective, times=dict(share_equal=0.5, share_min=0.1), derivative="dde"
    ),
}


def step_settings(network: TiM, variant: str) -> StepSettings:
    """The published loss and optimizer, on the OT-FM transport."""
    transport = TRANSPORTS["ot_fm"]()
    make = VARIANTS[variant]
    times = Times(transport.law, transport.P_mean, transport.P_std, **make.keywords["times"])
    objective = make(transport=transport, times=times)
    objective.check()
    nets = make_nets(network)
    if variant == "tim_separate_jvp":
        # Behind the barrier XLA cannot merge this pass with the training pass, which it would where layers are unrolled.
        nets["precise"] = lambda params: nets["student"](jax.lax.optimization_barrier(params))
    optimizer = OptimizerSettings()
    return StepSettings(
        nets=nets,
        objective=objective,
        tx=make_optimizer(optimizer),
        schedule=make_schedule(optimizer),
        emas={"slow": 0.9999},
        conditions=class_conditions(network.num_classes),
        seed=0,
    )


class Step:
    """A step of one variant on made-up rows; each call trains on."""

    def __init__(self, case: Case, variant: str):
        self.case = case
        self.settings = step_settings(case.network, variant)

    def first_state(self) -> TrainState:
        x, time = jnp.zeros((1, *self.case.latent)), jnp.zeros((1,))
        query = Query(x, time, time, {"label": jnp.zeros((1,), jnp.int32)})

        def init(key):
            return nn.unbox(self.case.network.init(key, (query,))["params"])

        return create(init, self.settings.tx, self.settings.emas, self.settings.seed)()

    def batch(self) -> dict[str, jax.Array]:
        rows = self.case.batch
        x = jax.random.normal(jax.random.key(1), (rows, *self.case.latent))
        return {"x": x, "label": jnp.arange(rows) % self.case.network.num_classes}

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        step = jax.jit(functools.partial(train_step, self.settings), donate_argnums=0)
        return step.lower(jax.eval_shape(self.first_state), jax.eval_shape(self.batch)).compile()

    def start(self) -> None:
        self.state, self.rows = jax.jit(self.first_state)(), jax.jit(self.batch)()

    def __call__(self) -> Any:
        self.state, metrics = self.compiled(self.state, self.rows)
        return metrics


def step_flops(case: Case, variant: str) -> float:
    """Operations of a step with its layers unrolled."""
    whole = dataclasses.replace(case, network=case.network.clone(unroll=True))
    return measure.flops(Step(whole, variant).compiled)


def measure_case(case: Case, variants: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row per variant: seconds and spread, flops, temporary bytes, and each over that of the first variant."""
    steps = {name: Step(case, name) for name in variants}
    for step in steps.values():
        step.compiled
        step.start()
    timings = measure.interleaved(steps, repeats)
    rows = []
    for name, step in steps.items():
        row = {
            "name": name,
            "network": case.describe(),
            "tokens": case.tokens,
            "seconds": timings[name].seconds,
            "spread": timings[name].spread,
            "flops": step_flops(case, name),
            "temporary_bytes": measure.temporary_bytes(step.compiled),
        }
        rows.append(row)
        for key in ("seconds", "flops", "temporary_bytes"):
            row[f"{key}_ratio"] = row[key] / rows[0][key]
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", default="small,B/4", help=f"of {', '.join(CASES)}; default: both")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="default: all; ratios are to the first")
    parser.add_argument("--depth", type=int, help="blocks, instead of each network's own number")
    parser.add_argument("--batch", type=int, help="rows, instead of each network's own number")
    parser.add_argument("--dtype", default="float32", help=f"compute type, {' or '.join(DTYPES)}")
    parser.add_argument("--remat", default="none", help=f"what the backward pass recomputes: {', '.join(REMAT)}")
    parser.add_argument("--repeats", type=int, default=10)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows. Raises ValueError for arguments that cannot be."""
    networks, variants = chosen("networks", args.networks, CASES), chosen("variants", args.variants, VARIANTS)
    chosen("dtype", args.dtype, DTYPES)
    for name in ("depth", "batch", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    rows = []
    for name in networks:
        case = CASES[name]
        depth = args.depth or case.network.depth
        encoder_depth = min(depth, case.network.encoder_depth)
        network = case.network.clone(
            depth=depth, encoder_depth=encoder_depth, remat=args.remat, dtype=DTYPES[args.dtype]
        )
        rows += measure_case(
            dataclasses.replace(case, network=network, batch=args.batch or case.batch), variants, args.repeats
        )
    return rows


def chosen(argument: str, text: str, table: dict) -> list[str]:
    """Comma-separated names in a table. Raises ValueError with the nearest for another."""
    names = text.split(",")
    for name in names:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)[0]
            raise ValueError(f"--{argument} has {name!r}: no such name; did you mean {near}?")
    return names
