"""The cost of the derivative: a train step of flow matching beside three of transition models.

The whole step is measured: gradient, optimizer and EMAs. Half of the examples have r = t, a tenth r = T_min. Memory is
that of the compiled program, and operations are those of matrix products, counted in the step's jaxpr over all layers
and blocks; both are known for every number of tokens. Time is measured up to --run-to tokens.

--variants also takes objectives by name, each with the settings of its paper, on the OT-FM transport, to compare the
cost of their steps with that of flow matching. Where an objective learns from a teacher, the teacher has the same
architecture and random weights. Some have variants with an adversary beside them.
"""

import argparse
import dataclasses
import difflib
import functools
import math
import sys
from collections.abc import Callable, Collection
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.networks import TiM
from tim_jax.networks.block import REMAT
from tim_jax.networks.checks import image_inputs
from tim_jax.networks.discriminator import head_initialisers, head_nets
from tim_jax.system import devices, flops, timing
from tim_jax.system.progress import Bar
from tim_jax.training.nets import class_conditions, frozen_net, make_nets
from tim_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from tim_jax.training.state import TrainState, first_state, init_key
from tim_jax.training.step import StepSettings, train_step
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.derivative import jvp
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.terms.adversary import Adversary
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport
from tim_jax.types import DTYPES, Auxiliary, Query

COLUMNS = (
    ("network", "{network}"),
    ("step", "{name}"),
    ("remat", "{remat}"),
    ("seconds", "{time}"),
    ("ratio", "{time_ratio}"),
    ("flops", "{flops:.4g}"),
    ("ratio", "{flops_ratio:.3f}"),
    ("temporary bytes", "{temporary_bytes:,}"),
    ("ratio", "{temporary_bytes_ratio:.3f}"),
)
B_SHORT: dict[str, Any] = TiM.SIZES["B"] | {"depth": 2, "encoder_depth": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at the size at which it is measured.

    Attributes:
        name: in CASES.
        network: the network.
        latent: (h, w, C) of an example.
        batch: examples in a batch.
    """

    name: str
    network: TiM
    latent: tuple[int, int, int]
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of an example."""
        return self.latent[0] * self.latent[1] // self.network.patch_size**2

    def __str__(self) -> str:
        net = self.network
        return f"{self.name}: {net.depth} blocks of width {net.width}, {self.tokens} tokens, batch {self.batch}"

    def with_tokens(self, tokens: int) -> "Case":
        """Returns the same network on examples with another number of tokens, as square as possible.

        The batch has as many positions in all, and an even number of examples, since half of them have r = t.
        """
        height = max(side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0)
        sides = (height * self.network.patch_size, tokens // height * self.network.patch_size)
        batch = max(2, self.batch * self.tokens // tokens // 2 * 2)
        return dataclasses.replace(self, latent=(*sides, self.latent[2]), batch=batch)


CASES = {
    "small": Case(
        "small",
        TiM(channels=1, width=128, depth=4, heads=4, bottleneck=64, encoder_depth=2, num_classes=10),
        latent=(8, 8, 1),
        batch=128,
    ),
    # Full width, but two blocks, so that two cores can run it; --depth=12 is the whole network.
    "B/4": Case("B/4", TiM(patch_size=4, **B_SHORT), (32, 32, 4), batch=16),
}


@dataclasses.dataclass(frozen=True)
class SeparateDerivative(Objective):
    """The objective with dF/dt from a separate pass through nets["float32"], as in the published code.

    Here that pass has only the examples that need it.
    """

    derivative: str = "dde"

    def separate_derivative(self, net, path):
        """Returns dF/dt (B, h, w, C) along a path, from a pass of its own."""
        return jvp(net, *path)[2]


def times(transport: Transport, share_equal: float = 0.5, share_min: float = 0.1) -> Times:
    """Returns the time distribution of a transport, with these shares of examples at r = t and at r = T_min."""
    return Times(transport.distribution, transport.P_mean, transport.P_std, share_equal, share_min)


VARIANTS = {
    "flow_matching": lambda transport: Objective(transport, times(transport, 1.0, 0.0)),
    "tim_fused": lambda transport: Objective(transport, times(transport)),
    "tim_separate_jvp": lambda transport: SeparateDerivative(transport, times(transport)),
    "tim_dde": lambda transport: Objective(transport, times(transport), derivative="dde"),
}


def distilled(name: str) -> Callable[[Transport], Objective]:
    """Returns a named objective with a teacher's velocity in place of the data's."""
    return lambda transport: dataclasses.replace(OBJECTIVES[name](transport), velocity="teacher")


def adversarial(name: str) -> Callable[[Transport], Objective]:
    """Returns a named objective with an adversary, on the network that learns samples if there is one."""

    def make(transport: Transport) -> Objective:
        objective = OBJECTIVES[name](transport)
        trunk = "score" if "score" in objective.auxiliary else "teacher"
        return dataclasses.replace(objective, adversary=Adversary(0.5, "hinge", trunk, blocks=(1,)))

    return make


SEED = np.uint32(0)

KNOWN = (
    OBJECTIVES
    | {f"{name}_teacher": distilled(name) for name in ("tim", "mean_flow")}
    | {f"{name}_adversary": adversarial(name) for name in ("scm_distillation", "ayf_eulerian", "ctm", "rcm")}
    | VARIANTS
)


def network_for(network: TiM, objective: Objective) -> TiM:
    """Returns a network with the heads and inputs that an objective needs."""
    return network.clone(
        output_heads=objective.heads,
        guidance_input=objective.input_guidance.active,
        prediction_input=objective.prediction_input,
        transition_head=objective.transition_head,
    )


def step_settings(case: Case, variant: str) -> StepSettings:
    """Returns settings of a step: a variant in KNOWN on the OT-FM transport, with the published optimizer."""
    network = case.network
    objective = KNOWN[variant](TRANSPORTS["ot_fm"]())
    nets = make_nets(network_for(network, objective))
    nets |= {name: frozen_net(network, (1.0, 0.0, 1.0)) for name in objective.teachers} | head_nets(
        objective.auxiliary_heads
    )
    if isinstance(objective, SeparateDerivative):
        # Without the barrier XLA merges this pass with the training pass where layers are unrolled.
        nets["float32"] = lambda params: nets["online"](jax.lax.optimization_barrier(params))
    optimizer = OptimizerSettings()
    return StepSettings(
        nets=nets,
        objective=objective,
        tx=make_optimizer(optimizer, {"online": Auxiliary(), **objective.auxiliary}),
        schedule=make_schedule(optimizer),
        emas={"slow": 0.9999},
        conditions=class_conditions(network.num_classes),
        auxiliary=objective.auxiliary,
        memory=objective.memory(case.latent, network.num_classes),
    )


def initial(network: TiM, latent: tuple[int, int, int], key: jax.Array) -> Any:
    """Returns random parameters of a network for examples of shape (h, w, C)."""
    x, time = jnp.zeros((1, *latent)), jnp.zeros((1,))
    condition = {"label": jnp.zeros((1,), jnp.int32)}
    if network.guidance_input:
        condition["guidance"] = jnp.ones((1, 3))
    for name, channels in image_inputs(network).items():
        condition[name] = jnp.zeros((*x.shape[:-1], channels))
    if network.transition_head:
        condition |= {"transition": x, "transition_s": x[..., 0]}
    return nn.unbox(network.init(key, (Query(x, time, time, condition),))["params"])


def make_state(case: Case, settings: StepSettings) -> TrainState:
    """Returns the training state before the first step."""
    objective = cast(Objective, settings.objective)
    online = initial(network_for(case.network, objective), case.latent, init_key(jnp.asarray(SEED)))
    widths = dict.fromkeys(objective.networks, case.network.width)
    heads = {
        name: init(jax.random.key(0), widths) for name, init in head_initialisers(objective.auxiliary_heads).items()
    }
    return first_state(online, settings.tx, settings.emas, settings.auxiliary, settings.memory, nn.unbox(heads))


def frozen_params(case: Case, settings: StepSettings) -> dict[str, Any]:
    """Returns {name: random parameters} of the networks that the objective learns from."""
    names = cast(Objective, settings.objective).teachers
    return {name: initial(case.network, case.latent, jax.random.key(i)) for i, name in enumerate(names)}


def made_up_batch(case: Case, settings: StepSettings) -> dict[str, jax.Array]:
    """Returns a batch of random examples with labels, and what else the objective asks of them."""
    x, reward = jax.random.normal(jax.random.key(1), (case.batch, *case.latent)), jnp.zeros(case.batch)
    more = {name: {"loser": -x, "reward": reward}[name] for name in cast(Objective, settings.objective).inputs}
    return {"x": x, "label": jnp.arange(case.batch) % case.network.num_classes} | more


def trace_step(case: Case, variant: str) -> jax.stages.Traced:
    """Traces the step, as the training loop does on one device."""
    settings = step_settings(case, variant)
    state = jax.eval_shape(functools.partial(make_state, case, settings))
    batch = jax.eval_shape(functools.partial(made_up_batch, case, settings))
    frozen = jax.eval_shape(functools.partial(frozen_params, case, settings))
    return jax.jit(functools.partial(train_step, settings), donate_argnums=0).trace(state, batch, SEED, frozen)


def trainer(case: Case, variant: str, compiled: jax.stages.Compiled) -> Callable[[], Any]:
    """Returns a function that makes one step on random examples, and goes on from there when called again."""
    settings = step_settings(case, variant)
    state = jax.jit(functools.partial(make_state, case, settings))()
    batch = jax.jit(functools.partial(made_up_batch, case, settings))()
    frozen = jax.jit(functools.partial(frozen_params, case, settings))()

    def train() -> Any:
        nonlocal state
        state, metrics, _ = compiled(state, batch, SEED, frozen)
        return state, metrics

    return train


def measure_case(case: Case, variants: list[str], remats: list[str], repeats: int) -> list[dict[str, Any]]:
    """Measures a row per variant and rematerialisation, with ratios to the first of them.

    Args:
        case: the network.
        variants: names in KNOWN.
        remats: names in REMAT.
        repeats: timed calls of each step; with 0 nothing is timed.
    """
    steps = {
        (variant, remat): dataclasses.replace(case, network=case.network.clone(remat=remat))
        for variant in variants
        for remat in remats
    }
    traced = {key: trace_step(case, key[0]) for key, case in steps.items()}
    compiled = {key: step.lower().compile() for key, step in traced.items()}
    timings = {}
    if repeats:
        calls = {key: trainer(case, key[0], compiled[key]) for key, case in steps.items()}
        timings = timing.interleaved(calls, repeats)
    rows = []
    for key in steps:
        timed = timings.get(key)
        row: dict[str, Any] = {
            "name": key[0],
            "remat": key[1],
            "network": str(case),
            "tokens": case.tokens,
            "seconds": timed and timed.seconds,
            "spread": timed and timed.spread,
            "flops": flops.count(traced[key].jaxpr),
            "temporary_bytes": timing.temporary_bytes(compiled[key]),
        }
        rows.append(row)
        for field in ("seconds", "flops", "temporary_bytes"):
            row[f"{field}_ratio"] = row[field] and row[field] / rows[0][field]
        row["time"] = f"{timed.seconds:.4g} ± {timed.spread:.2g}" if timed else "not run"
        row["time_ratio"] = f"{row['seconds_ratio']:.2f}" if timed else ""
    return rows


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all rows. Raises ValueError for wrong arguments."""
    for name, known in (("networks", CASES), ("variants", KNOWN), ("dtype", DTYPES), ("remat", REMAT)):
        check_names(name, getattr(args, name), known)
    for name in ("depth", "batch", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    cases = []
    for name in args.networks.split(","):
        case = CASES[name]
        depth = args.depth or case.network.depth
        changes: dict[str, Any] = {"depth": depth, "encoder_depth": min(depth, case.network.encoder_depth)}
        case = dataclasses.replace(case, network=case.network.clone(**changes, dtype=DTYPES[args.dtype]))
        sized = [case.with_tokens(tokens) for tokens in read_numbers("tokens", args.tokens)] if args.tokens else [case]
        cases += [dataclasses.replace(case, batch=args.batch or case.batch) for case in sized]
    variants, remats = args.variants.split(","), args.remat.split(",")
    for variant in variants:
        group = KNOWN[variant](TRANSPORTS["ot_fm"]()).batch_multiple
        for case in cases:
            if case.batch % group:
                raise ValueError(
                    f"--batch: {case.batch} examples of {case.name}; {variant} takes a multiple of {group}"
                )
    devices.announce(sys.stderr)
    rows = []
    for case in Bar(cases, unit="case"):
        rows += measure_case(case, variants, remats, args.repeats if case.tokens <= args.run_to else 0)
    return rows


def read_numbers(argument: str, text: str) -> list[int]:
    """Reads the numbers in "64,256". Raises ValueError for others than whole ones of at least 1."""
    numbers = text.split(",")
    if not all(number.isdecimal() and len(number) < 10 and int(number) for number in numbers):
        raise ValueError(
            f"--{argument} is {text!r}; it must be numbers of at least 1, with commas between, of nine digits at most"
        )
    return [int(number) for number in numbers]


def check_names(argument: str, text: str, known: Collection[str]) -> None:
    """Raises ValueError, with the nearest known name, for an unknown one in a comma-separated text."""
    for name in text.split(","):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"--{argument} has {name!r}: no such name; did you mean {near}?")
