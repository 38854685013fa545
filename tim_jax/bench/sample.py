"""The cost of an image by steps, guidance and batch, and of the sampler over bare passes of the network.

The sampler runs as in `python -m tim_jax.sample`: noise from keys, one program for all step counts, and a plan of the
steps that is made once for all batches. The bare passes are as many calls of a program that holds nothing but the
network, each applied to the output of the one before.

A steered sampler measures means over squares of 2 × 2 values (`super_resolution:2`); the unsteered one, "none", is
timed in turn with it. Operations are those of matrix products.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.bench.step import CASES, Case, check_names, make_state, read_numbers, step_settings
from tim_jax.system import devices, flops, timing
from tim_jax.system.progress import Bar
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.operators import OPERATORS
from tim_jax.transitions.sampling.noise import image_keys, start_noise
from tim_jax.transitions.sampling.planning import evaluations, make_plan, padded, time_grid
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.sampling.steering import ESTIMATES, METHODS, Steering, of_residual
from tim_jax.types import DTYPES, Query

COLUMNS = (
    ("network", "{network}"),
    ("batch", "{batch}"),
    ("guidance", "{guidance:g}"),
    ("steering", "{steering}"),
    ("steps", "{steps}"),
    ("evaluations", "{evaluations}"),
    ("seconds per image", "{seconds_per_image:.4g} ± {spread:.2g}"),
    ("bare passes", "{bare_seconds_per_image:.4g} ± {bare_spread:.2g}"),
    ("overhead", "{overhead:.1%}"),
    ("time over unsteered", "{over_unsteered:.2f}"),
    ("operations", "{operations:.2f}"),
)
UNSTEERED = "none"


def sampling_of(guidance: float, method: str = UNSTEERED, like: Steering = Steering()) -> Sampling:
    """Returns the settings of a sampler, steered by a method, and else like other steering, or not steered."""
    if method == UNSTEERED:
        return Sampling(guidance=guidance)
    return Sampling(guidance=guidance, steering=dataclasses.replace(like, operator="super_resolution:2", method=method))


def sampler(
    case: Case, guidance: float, method: str = UNSTEERED, like: Steering = Steering()
) -> Callable[[Any, Any, Any], jax.Array]:
    """Returns a function from (params, plan, steps) to a batch of images, one program for all step counts."""
    condition, null = conditions(case)
    steering, measure = sampling_of(guidance, method, like).steering, OPERATORS["super_resolution"].measure
    steer = of_residual(steering, lambda x: 2 * measure(x, 2)) if steering.active else None

    @jax.jit
    def draw(params, plan, steps):
        keys = image_keys(0, jnp.arange(case.batch, dtype=jnp.uint32))
        net = lambda queries: case.network.apply({"params": params}, queries)  # noqa: E731
        return sample(
            net, plan, start_noise(keys, case.latent), condition, null, keys, guidance, count=steps, steer=steer
        )

    return draw


def bare_passes(case: Case, guidance: float) -> Callable[[Any, int], jax.Array]:
    """Returns a function from (params, steps) to the network's output after so many passes.

    With guidance each of them is a pass with the condition and one with the null condition.
    """
    condition, null = conditions(case)
    times = jnp.ones((case.batch,)), jnp.zeros((case.batch,))

    @jax.jit
    def apply(params, x):
        queries = [Query(x, *times, c) for c in ([condition] if guidance == 1 else [condition, null])]
        return sum(
            output.F for output in case.network.apply({"params": params}, tuple(queries))
        )  # so that all are computed

    def passes(params, steps):
        x = jnp.zeros((case.batch, *case.latent))
        for _ in range(steps):
            x = apply(params, x)
        return x

    return passes


def conditions(case: Case) -> tuple[dict, dict]:
    """Returns the condition of a batch, and the null condition."""
    label = jnp.arange(case.batch) % case.network.num_classes
    return {"label": label}, {"label": jnp.full_like(label, case.network.num_classes)}


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row for each network, batch, guidance and number of steps. Raises ValueError for wrong arguments."""
    for name, known in (("networks", CASES), ("dtype", DTYPES)):
        check_names(name, getattr(args, name), known)
    check_names("steering", args.steering, [UNSTEERED, *METHODS])
    for name in ("depth", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    try:
        scales = [float(scale) for scale in args.guidance.split(",")]
    except ValueError:
        raise ValueError(f"--guidance is {args.guidance!r}; it must be numbers with commas between") from None
    methods, like = args.steering.split(","), read_steering(args)
    steps, batches = (read_numbers(name, getattr(args, name)) for name in ("steps", "batch"))
    cases = []
    for name, batch, guidance in itertools.product(args.networks.split(","), batches, scales):
        net = CASES[name].network
        depth = args.depth or net.depth
        net = net.clone(depth=depth, encoder_depth=min(depth, net.encoder_depth), dtype=DTYPES[args.dtype])
        cases.append((Case(name, net, CASES[name].latent, batch), guidance))
    devices.announce(sys.stderr)
    return [
        row
        for case, guidance in Bar(cases, unit="case")
        for row in measure_case(case, guidance, steps, methods, like, args.repeats)
    ]


def read_steering(args: argparse.Namespace) -> Steering:
    """Returns what --estimate and --iterations say of steering. Raises ValueError for what nothing is steered by."""
    given = {name: value for name in ("estimate", "iterations") if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if set(args.steering.split(",")) == {UNSTEERED}:
            raise ValueError(f"--{name} is {value}; it must be left out where --steering is none")
    if "estimate" in given:
        check_names("estimate", args.estimate, ESTIMATES)
    if given.get("iterations", 1) < 1:
        raise ValueError(f"--iterations is {args.iterations}; it must be at least 1")
    return Steering(**given)


def measure_case(
    case: Case, guidance: float, steps: list[int], methods: Sequence[str], like: Steering, repeats: int
) -> list[dict[str, Any]]:
    """Measures a row per number of steps and method of steering; all samplers and bare passes are timed in turn."""
    transport = TRANSPORTS["ot_fm"]()
    settings = step_settings(case, "flow_matching")
    params = jax.jit(lambda: make_state(case, settings).params["online"])()
    draws = {method: sampler(case, guidance, method, like) for method in dict.fromkeys([UNSTEERED, *methods])}
    passes = bare_passes(case, guidance)

    def plan_of(method, count):
        sampling = sampling_of(guidance, method, like)
        return padded(make_plan(transport, time_grid(transport, count, sampling), sampling))

    def call(method, count):
        plan = plan_of(method, count)
        return lambda: draws[method](params, plan, np.int32(count))

    counted = {
        method: flops.count(jax.make_jaxpr(draws[method])(params, plan_of(method, steps[0]), np.int32(steps[0])))
        for method in draws
    }

    def rows(count):
        calls = {method: call(method, count) for method in draws} | {"bare": lambda: passes(params, count)}
        timings = timing.interleaved(calls, repeats)
        return [row(count, method, timings) for method in methods]

    def row(count, method, timings):
        whole, bare = timings[method], timings["bare"]
        return {
            "network": case.name,
            "batch": case.batch,
            "guidance": guidance,
            "steering": method,
            "steps": count,
            "evaluations": evaluations(transport, count, sampling_of(guidance, method, like)),
            "seconds_per_image": whole.seconds / case.batch,
            "spread": whole.spread / case.batch,
            "bare_seconds_per_image": bare.seconds / case.batch,
            "bare_spread": bare.spread / case.batch,
            "overhead": whole.seconds / bare.seconds - 1,
            "over_unsteered": whole.seconds / timings[UNSTEERED].seconds,
            "operations": counted[method] / counted[UNSTEERED],
        }

    return [row for count in steps for row in rows(count)]
