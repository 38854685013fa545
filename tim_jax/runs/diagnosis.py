"""What a trained network does by time and interval: the job of python -m tim_jax.diagnose."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config.run import Run
from tim_jax.evaluation import diagnostics
from tim_jax.system.progress import Bar
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions.derivative import central_difference, jvp
from tim_jax.transitions.target import transition_target


def read_epsilons(text: str, run: Run) -> list[float]:
    """Reads the half steps of central differences.

    Args:
        text: numbers with commas between.
        run: whose own half step is added, if its objective uses one.

    Returns:
        Half steps in ascending order.

    Raises:
        ValueError: for what is no number, or does not fit the transport's times.
    """
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        raise ValueError(f"--epsilons is {text!r}; it must be numbers such as 0.0005,0.005") from None
    domain = run.transport.T_max - run.transport.T_min
    for epsilon in found:
        if not 0 < epsilon < domain / 2:
            raise ValueError(f"--epsilons has {epsilon:g}; each must lie in (0, {domain / 2:g})")
    if run.config.objective.derivative == "dde":
        found.add(float(run.config.objective.epsilon))
    return sorted(found)


def check_predicts(run: Run) -> None:
    """Raises ValueError, in one line, for a run whose predictions are drawn: these have no derivative along a path."""
    if run.network.transition_head:
        name = run.config.objective.name
        raise ValueError(f"objective.name is {name!r}; it must be one whose network predicts and does not draw")


def diagnose(
    run: Run, weights: Any, x: np.ndarray, labels: np.ndarray, nodes: int, epsilons: Sequence[float]
) -> dict[str, Any]:
    """Compares a network with its transition target, and dF/dt with its approximations, at all pairs of times t ≥ r.

    F* is the transition target along each example's own velocity, whatever the run was trained with; where t = r it is
    the target of flow matching. Every pair of times gets the same examples and the same noise.

    Args:
        run: that was trained; its network must be conditioned on labels.
        weights: parameters of the network.
        x: examples (n, h, w, C).
        labels: (n,).
        nodes: noise levels from 0 to 1, at least 2.
        epsilons: half steps of the central difference.

    Returns:
        What `diagnostics.write` takes, with "transport", "levels" (nodes,) and their "times" (nodes,).
    """
    transport = run.transport
    levels = np.linspace(0.0, 1.0, nodes)
    between: Any = levels[1:-1]  # of NumPy, for float64
    times = np.array([transport.T_min, *transport.time_of_level(between), transport.T_max])
    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    net_float32, net_ema = (run.trainer.step.nets[name] for name in ("float32", "ema"))
    dtype = run.config.model.dtype

    def exact(net: Callable, weights: Any, x: Any, noise: Any, t: Any, r: Any, labels: Any) -> tuple:
        _, output, dF_dt = jvp(net(weights), transport, x, noise, t, r, condition(run, labels))
        return output.F.astype(jnp.float32), dF_dt.astype(jnp.float32)

    def errors(weights: Any, x: Any, noise: Any, t: Any, r: Any, labels: Any) -> tuple[dict, Any]:
        F, dF_dt = exact(net_float32, weights, x, noise, t, r, labels)
        target = transition_target(transport, x, noise, t, r, dF_dt)
        found = {"error": mean_square(F - target), "square": mean_square(dF_dt)}
        if dtype != "float32":
            found["own"] = mean_square(exact(net_ema, weights, x, noise, t, r, labels)[1] - dF_dt)
        return found, dF_dt

    def difference(net: Callable, weights: Any, epsilon: Any, dF_dt: Any, path: tuple, labels: Any) -> Any:
        x, noise, t, r = path
        given = condition(run, labels)
        approximate = central_difference(net(weights), transport, x, noise, t, r, given, epsilon=epsilon)
        return mean_square(approximate.astype(jnp.float32) - dF_dt)

    everywhere = sharding.replicated(run.mesh)
    compiled_errors = jax.jit(errors, out_shardings=everywhere)
    differences = {"float32": jax.jit(lambda *args: difference(net_float32, *args), out_shardings=everywhere)}
    if dtype != "float32":
        differences[dtype] = jax.jit(lambda *args: difference(net_ema, *args), out_shardings=everywhere)

    results: dict[Any, list[float]] = {}
    shards = sharding.batch_shards(run.mesh)
    index = np.resize(np.arange(len(x)), -(-len(x) // shards) * shards)  # the examples that are repeated do not count
    for i, j in Bar(list(zip(*diagnostics.pairs(nodes), strict=True)), unit="pair", disable=jax.process_index() > 0):
        t, r = (np.full(len(index), times[node], np.float32) for node in (i, j))
        path = (x[index], noise[index], t, r)
        with on_mesh(run.mesh):
            found, dF_dt = compiled_errors(weights, *path, labels[index])
            for name, of_type in differences.items():
                for epsilon in epsilons:
                    found[name, epsilon] = of_type(weights, np.float32(epsilon), dF_dt, path, labels[index])
        for key, values in found.items():
            results.setdefault(key, []).append(float(np.asarray(values, np.float64)[: len(x)].mean()))
    full = {name: diagnostics.matrix(nodes, np.array(values)) for name, values in results.items()}
    by_type: dict[str, dict] = {name: {epsilon: full[name, epsilon] for epsilon in epsilons} for name in differences}
    if "own" in full:
        by_type[dtype][diagnostics.EXACT] = full["own"]
    return {
        "transport": transport.name,
        "levels": levels,
        "times": times,
        "error": full["error"],
        "tangent": np.sqrt(full["square"]),
        "square": full["square"],
        "difference": by_type,
    }


def condition(run: Run, labels: Any) -> dict[str, Any]:
    """The network's condition: labels and, where guidance is an input, that there is none."""
    inputs = {"label": labels}
    if run.network.guidance_input:
        none = jnp.array([1.0, run.transport.T_min, run.transport.T_max], jnp.float32)
        inputs["guidance"] = jnp.broadcast_to(none, (len(labels), 3))
    return inputs


def mean_square(x: jax.Array) -> jax.Array:
    """(B,) means of squares over all but the first axis."""
    return jnp.mean(x.reshape(len(x), -1) ** 2, axis=1)
