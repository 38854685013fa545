"""Plans learned through the sampling loop, kept in a run's workdir by python -m tim_jax.grid --kind=learned.

Times and weights of the run's sampler (see `transitions/sampling/learned.py`) are trained by Adam, so that the samples
of few steps are those that the model itself reaches in many small ones from the same noise.
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from tim_jax.config.run import Run
from tim_jax.runs.generation import Generator, alpha_sigma
from tim_jax.runs.labels import repeated
from tim_jax.runs.refiners import with_refiner
from tim_jax.runs.step_grid import fine_times, fingerprint, read_record, with_found_grid
from tim_jax.system import files, jsonl
from tim_jax.system.progress import Activity, Bar
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions import SAMPLERS
from tim_jax.transitions.sampling.grids import make_grid
from tim_jax.transitions.sampling.learned import Changes, Family, changed, end_states, family, unchanged
from tim_jax.transitions.sampling.optimal_grid import candidate_times
from tim_jax.transitions.sampling.planning import guidance_inputs, guidance_scale, plan_in_time, time_grid
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.settings import LearnedPlans, Sampling

FILE = "learned_plan.json"
LEARNING_RATE = 0.02  # of changes relative to the weights; falls to 0 as a cosine


class LearnedPlan(NamedTuple):
    """The plan learned for a number of steps.

    Attributes:
        steps: how many.
        plan: in times of the transport.
        before, after: the root mean square by which samples of other noise miss those of many small steps, of the
            sampler's own plan and of the learned one.
    """

    steps: int
    plan: SamplingPlan
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether samples of other noise are nearer than before."""
        return self.after < self.before


def with_found(run: Run, folder: epath.Path, step: int) -> Run:
    """Returns the run with what was found for it, grids and learned plans, and with the refiner of `sampling.refiner`.

    Args:
        run: the run.
        folder: its workdir.
        step: of training, which its weights are of.

    Raises:
        ValueError: naming the command, if nothing was found for these weights.
    """
    run = with_refiner(with_found_grid(run, folder, step))
    if run.sampling.plan != "learned":
        return run
    sampler = run.sampling.sampler
    command = (
        f"python -m tim_jax.grid {shlex.quote(f'--workdir={folder}')} --kind=learned "
        f"--config.sampling.sampler={sampler} learns it"
    )
    record = read_record("sampling.plan is 'learned'", run, folder, step, FILE, command, sampler)
    plans = {int(steps): _plan_of(plan) for steps, plan in record["plans"].items()}
    found = LearnedPlans(plans, record["settings"])
    return dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, learned=found))


def begin_from(run: Run, steps: Sequence[int]) -> Run:
    """Returns the run with its sampler's own plan.

    Raises:
        ValueError: if the sampler takes fresh noise or has weights of each image's own, or there are no times for one
            of the numbers of steps.
    """
    sampling = dataclasses.replace(run.sampling, plan="sampler", learned=None)
    if sampling.steering.active:
        raise ValueError(
            f"sampling.steering.operator is {sampling.steering.operator!r}; it must be '' for a plan to be learned, by "
            "which samples that are steered cannot be drawn"
        )
    if not sampling.linear:
        raise ValueError(
            f"sampling.sampler is {sampling.sampler!r}; it must be one with the same weights for all images, and no "
            "refiner, for a plan to be learned"
        )
    if plan_in_time(run.transport, make_grid("uniform", run.transport, 4), sampling).c.any():
        raise ValueError(
            f"sampling.sampler, sampling.stochasticity are {sampling.sampler!r}, {sampling.stochasticity}; they must "
            "draw no noise on the way, for a plan to be learned"
        )
    for count in steps:
        time_grid(run.transport, count, sampling)
    return dataclasses.replace(run, sampling=sampling)


def learn(
    generator: Generator,
    weights: Any,
    steps: Sequence[int],
    *,
    labels: np.ndarray,
    iterations: int,
    candidates: int,
    seed: int = 0,
) -> list[LearnedPlan]:
    """Learns a plan for each number of steps, with a progress bar.

    Args:
        generator: of the run, which is conditioned on labels; see `begin_from`.
        weights: parameters of its network.
        steps: step counts.
        labels: (2n,), n of the images that plans are learned from and n of those that they are judged by.
        iterations: of Adam; 0 leaves the sampler's own plans.
        candidates: how many times the small steps go through, SMALL_STEPS from each to the next.
        seed: of the noise, and of the order of images.

    Returns:
        The plans, in ascending steps. All follow from the arguments alone, whatever steps are learned beside.
    """
    run, own, count = generator.run, generator.run.sampling, len(labels) // 2
    expected = _fine_samples(generator, weights, labels, candidates, seed)
    held_out = np.arange(count, 2 * count)
    pool = alpha_sigma(run, run.transport.T_max)[1] * generator.noise(seed, count), expected[:count], labels[:count]

    def missed(sampling: Sampling, number: int) -> float:
        sampler = generator.sampled_by(sampling)
        found = sampler.integrate(weights, sampler.times(number), labels[count:], seed=seed, numbers=held_out)
        return float(np.sqrt(np.mean((found - expected[count:]) ** 2, dtype=np.float64)))

    learned, counts = [], sorted(set(steps))
    total = iterations * len(counts)
    with Bar(total=total, desc="learning", disable=jax.process_index() > 0, mininterval=1.0) as bar:
        for number in counts:
            start = plan_in_time(run.transport, time_grid(run.transport, number, own), own)
            among = family(start, run.transport.T_min, SAMPLERS[own.sampler].evaluations)
            plan = changed(among, _train(generator, weights, among, pool, iterations, seed, number, bar))
            found = LearnedPlans({number: plan}, own.depended_on())
            after = missed(dataclasses.replace(own, plan="learned", learned=found), number)
            learned.append(LearnedPlan(number, plan, missed(own, number), after))
    return learned


def _fine_samples(generator: Generator, weights: Any, labels: np.ndarray, candidates: int, seed: int) -> np.ndarray:
    """Where many small steps lead from the noise of a seed: Heun's, or jumps of a sampler that asks for r < t."""
    run = generator.run
    sampler = "heun" if SAMPLERS[run.sampling.sampler].diagonal else run.sampling.sampler
    fine = generator.sampled_by(dataclasses.replace(run.sampling, sampler=sampler))
    return fine.integrate(weights, fine_times(candidate_times(run.transport, candidates)), labels, seed=seed)


def _train(
    generator: Generator,
    weights: Any,
    among: Family,
    pool: tuple[np.ndarray, np.ndarray, np.ndarray],
    iterations: int,
    seed: int,
    number: int,
    bar: Bar,
) -> Changes:
    """The changes, in float64, that bring the end states of a pool (first states, end states, labels) nearer."""
    run, sampling = generator.run, generator.run.sampling
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(iterations, 1)), b2=0.99)
    scale = sampling.guidance if among.start.guided.any() else 1.0

    def loss(changes: Changes, weights: Any, x: jax.Array, expected: jax.Array, label: jax.Array) -> jax.Array:
        condition, null = {"label": label}, {"label": jnp.full_like(label, run.config.model.num_classes)}
        if sampling.guidance_input:
            inputs = {"guidance": guidance_inputs(run.transport, sampling, len(x), x.dtype)}
            condition, null = condition | inputs, null | inputs
        plan = changed(among, changes, jnp)
        guidance = guidance_scale(scale, sampling.guidance_channels, x) if scale != 1 else scale
        ends = end_states(run.net(weights), run.transport, plan, x, condition, null, guidance)
        return jnp.mean((ends - expected) ** 2)

    @jax.jit
    def update(changes: Changes, state: Any, weights: Any, *batch: jax.Array) -> tuple[Changes, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(changes, weights, *batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(changes, updates), state, value

    where = sharding.batch_sharding(run.mesh)
    changes = jax.tree.map(jnp.float32, unchanged(among))
    state = optimizer.init(changes)
    for i in range(iterations):
        order = np.random.default_rng((seed, i)).permutation(len(pool[0]))
        batch = [repeated(values[order], generator.batch_size) for values in pool]
        put = [jax.make_array_from_callback(part.shape, where, part.__getitem__) for part in batch]
        what = f"compiling the loop of {number} steps, to differentiate"
        with on_mesh(run.mesh), Activity(what, disable=i > 0 or jax.process_index() > 0):
            changes, state, value = jax.block_until_ready(update(changes, state, weights, *put))
        bar.update()
        bar.show(f"{number} steps, off by {np.sqrt(float(value)):.3g}")
    return Changes(*(np.asarray(part, np.float64) for part in changes))


def write(
    learned: Sequence[LearnedPlan], run: Run, folder: epath.Path, step: int, *, count: int, seed: int, iterations: int
) -> None:
    """Writes plans into a workdir, for `with_found`, beside those of other samplers and step counts.

    Those of the same sampler that belong to other weights or settings are replaced.

    Args:
        learned: the plans.
        run: that they were learned for.
        folder: its workdir.
        step: of training.
        count: images that they were learned from.
        seed: of their noise.
        iterations: of Adam.
    """
    record: dict[str, Any] = {
        "of": fingerprint(run, folder, step),
        "settings": run.sampling.depended_on(),
        "plans": {},
        "measured": {},
    }
    records = jsonl.read_object(folder / FILE) if (folder / FILE).exists() else {}
    before = records.get(run.sampling.sampler, {})
    if all(before.get(key) == record[key] for key in ("of", "settings")):
        record = before
    for one in learned:
        parts = {name: part.tolist() for name, part in one.plan.arrays().items()}
        figures = {"before": one.before, "after": one.after, "count": count, "seed": seed, "iterations": iterations}
        record["plans"][str(one.steps)], record["measured"][str(one.steps)] = parts, figures
    records[run.sampling.sampler] = record
    files.replace(folder / FILE, (json.dumps(records) + "\n").encode())


def _plan_of(record: dict[str, list]) -> SamplingPlan:
    """The plan that `write` has written."""
    parts: dict[str, Any] = {name: np.array(part, bool if name == "guided" else float) for name, part in record.items()}
    return SamplingPlan(**parts)
