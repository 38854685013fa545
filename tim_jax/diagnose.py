"""python -m tim_jax.diagnose --workdir=DIR [--rows=64 --nodes=9 --epsilons=0.0005,0.005,0.05]"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, user_errors
from tim_jax.config.run import Run
from tim_jax.evaluation import diagnostics
from tim_jax.runs import workdir
from tim_jax.runs.generation import check_by_class, load_weights
from tim_jax.runs.input_pipeline import images_of_one_shape
from tim_jax.system import cluster
from tim_jax.training import sharding
from tim_jax.training.preemption import Stop
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions.derivative import central_difference, jvp
from tim_jax.transitions.target import transition_target


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m tim_jax.diagnose",
        description="Errors, sizes and accuracy of dF/dt of a trained run by time and interval, on held-out rows.",
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--rows", type=int, default=64, help="held-out rows in each cell; default: %(default)s")
    parser.add_argument("--nodes", type=int, default=9, help="noise levels from 0 to 1; default: %(default)s")
    parser.add_argument(
        "--epsilons", default="0.0005,0.005,0.05", help="half steps of the central difference; default: %(default)s"
    )
    args, overrides = parser.parse(argv)
    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    measure(args, overrides)


@Stop()
def measure(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        folder = epath.Path(args.workdir)
        run = build(workdir.load(folder, overrides))
        epsilons = read_epsilons(args.epsilons, run)
        if args.nodes < 2:
            raise ValueError(f"--nodes is {args.nodes}; it must be at least 2")
        x, labels = images_of_one_shape(run, run.config.evaluation.held_out)
        if not 1 <= args.rows <= len(x):
            raise ValueError(f"--rows is {args.rows}; it must be between 1 and {len(x)}, the held-out rows")
        check_by_class(run, folder)
        weights, step = load_weights(run, folder)
    picked = np.random.default_rng(0).permutation(len(x))[: args.rows]
    found = diagnose(run, weights, x[picked], labels[picked], args.nodes, epsilons)
    if jax.process_index() == 0:
        diagnostics.write({"step": step, "rows": args.rows, "weights": run.sampling.ema, **found}, folder)
        print(f"written: {', '.join(str(folder / name) for name in diagnostics.NAMES)}")


def read_epsilons(text: str, run: Run) -> list[float]:
    """Half steps, and the run's own if it uses one, in ascending order. Raises ValueError."""
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


def diagnose(
    run: Run, weights: Any, x: np.ndarray, labels: np.ndarray, nodes: int, epsilons: list[float]
) -> dict[str, Any]:
    """What `diagnostics.write` takes, of rows x (n, h, w, C) with labels (n,), the same with one noise at every pair.

    F* is the transition target along the row's own velocity, whatever the run was trained with. Where t = r it is the
    target of flow matching.
    """
    transport = run.transport
    levels = np.linspace(0.0, 1.0, nodes)
    times = np.array([transport.T_min, *transport.time_of_level(levels[1:-1]), transport.T_max])
    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    precise, own = (run.trainer.step.nets[name] for name in ("float32", "ema"))
    dtype = run.config.model.dtype

    def exact(net: Callable, weights: Any, x: Any, noise: Any, t: Any, r: Any, labels: Any) -> tuple:
        _, output, dF_dt = jvp(net(weights), transport, x, noise, t, r, condition(run, labels))
        return output.F.astype(jnp.float32), dF_dt.astype(jnp.float32)

    def of_rows(weights: Any, x: Any, noise: Any, t: Any, r: Any, labels: Any) -> tuple[dict, Any]:
        F, dF_dt = exact(precise, weights, x, noise, t, r, labels)
        target = transition_target(transport, x, noise, t, r, dF_dt)
        found = {"error": mean_square(F - target), "square": mean_square(dF_dt)}
        if dtype != "float32":
            found["own"] = mean_square(exact(own, weights, x, noise, t, r, labels)[1] - dF_dt)
        return found, dF_dt

    def difference(net: Callable, weights: Any, epsilon: Any, dF_dt: Any, path: tuple, labels: Any) -> Any:
        given = central_difference(net(weights), transport, *path, condition(run, labels), epsilon=epsilon)
        return mean_square(given.astype(jnp.float32) - dF_dt)

    everywhere = sharding.replicated(run.mesh)
    of_rows = jax.jit(of_rows, out_shardings=everywhere)
    differences = {"float32": jax.jit(lambda *args: difference(precise, *args), out_shardings=everywhere)}
    if dtype != "float32":
        differences[dtype] = jax.jit(lambda *args: difference(own, *args), out_shardings=everywhere)

    results: dict[Any, list[float]] = {}
    shards = sharding.batch_shards(run.mesh)
    index = np.resize(np.arange(len(x)), -(-len(x) // shards) * shards)  # the rows that are repeated do not count
    for i, j in tqdm(list(zip(*diagnostics.pairs(nodes), strict=True)), unit="pair", disable=jax.process_index() > 0):
        t, r = (np.full(len(index), times[node], np.float32) for node in (i, j))
        path = (x[index], noise[index], t, r)
        with on_mesh(run.mesh):
            found, dF_dt = of_rows(weights, *path, labels[index])
            for name, of in differences.items():
                for epsilon in epsilons:
                    found[name, epsilon] = of(weights, np.float32(epsilon), dF_dt, path, labels[index])
        for name, values in found.items():
            results.setdefault(name, []).append(float(np.asarray(values, np.float64)[: len(x)].mean()))
    full = {name: diagnostics.matrix(nodes, np.array(values)) for name, values in results.items()}
    by_type = {name: {epsilon: full[name, epsilon] for epsilon in epsilons} for name in differences}
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
    """What the network is told of rows: their labels and, where guidance is an input, that there is none."""
    told = {"label": labels}
    if run.network.guidance_input:
        none = jnp.array([1.0, run.transport.T_min, run.transport.T_max], jnp.float32)
        told["guidance"] = jnp.broadcast_to(none, (len(labels), 3))
    return told


def mean_square(x: jax.Array) -> jax.Array:
    """(B,) means of squares over all but the first axis."""
    return jnp.mean(x.reshape(len(x), -1) ** 2, axis=1)


if __name__ == "__main__":
    main()
