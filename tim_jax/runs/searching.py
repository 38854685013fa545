"""Searches for samples of a high reward (`transitions/sampling/search.py`), by a run's network and sampler."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config.run import Run
from tim_jax.networks.int8 import with_int8
from tim_jax.runs.generation import Generator, Inputs, alpha_sigma
from tim_jax.runs.judging import Judge
from tim_jax.runs.labels import repeated
from tim_jax.runs.restoration import check_none
from tim_jax.training.sharding import on_mesh, replicated
from tim_jax.transitions.sampling import search
from tim_jax.transitions.sampling.noise import FIRST, image_keys, noise_of_seed
from tim_jax.transitions.sampling.planning import guidance_values, plan_in_time
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport
from tim_jax.types import Query

MOST = 10**4  # candidates of an image
RADIUS = 0.5
PROPOSALS = 2**29  # numbers the noise of further proposals, the first ones having that of the sampler


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """A search, as it is typed.

    Attributes:
        method: in `search.METHODS`.
        budget: how many times the evaluations of one sample are spent.
        radius: of `starts`.
    """

    method: str
    budget: int
    radius: float = RADIUS

    def __str__(self) -> str:
        return f"{self.method}:{self.budget}"

    def check(self, run: Run, times: np.ndarray) -> None:
        """Raises ValueError, in one line, for a run and times that this search cannot take."""
        check_none(run, "--search")
        if self.method == "starts" and run.transport.augmented_dimensions:
            raise ValueError(
                f"transport.augmented_dimensions is {run.transport.augmented_dimensions}; it must be 0 for "
                f"--search={self}, which mixes normal noises"
            )
        if self.method == "budget_forcing":
            sampling = run.sampling
            if sampling.parallel or sampling.transition_head:
                key = "parallel" if sampling.parallel else "draw_steps"
                raise ValueError(
                    f"sampling.{key} is {getattr(sampling, key)}; it must be 0 for --search={self}, which takes one "
                    "prediction after another"
                )
            search.check_plan(plan_in_time(run.transport, times, sampling), sampling.sampler)


def read_search(text: str, radius: float | None = None) -> SearchSettings:
    """Reads --search, such as best_of:8, and --radius. Raises ValueError, naming the flag."""
    method, _, number = text.partition(":")
    if method not in search.METHODS or not number.isdecimal() or not 1 <= int(number) <= MOST:
        raise ValueError(
            f"--search is {text!r}; it must be one of {', '.join(search.METHODS)}, a colon and a number of at most "
            f"{MOST}, such as best_of:8"
        )
    if radius is not None and method != "starts":
        raise ValueError(f"--radius is {radius}; it must be left out with --search={text}")
    if radius is not None and not 0 < radius <= 1:
        raise ValueError(f"--radius is {radius}; it must be above 0 and at most 1")
    return SearchSettings(method, int(number), RADIUS if radius is None else radius)


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A search with all that it needs.

    Attributes:
        settings: of the search.
        judge: the reward.
    """

    settings: SearchSettings
    judge: Judge

    def record(self) -> dict[str, Any]:
        """What settings of an output say of it."""
        radius = {"radius": self.settings.radius} if self.settings.method == "starts" else {}
        return {"search": str(self.settings)} | radius | self.judge.record()

    def find(self, batch: "Batch") -> search.Found:
        """What a search finds of a batch."""

        def judge(x: np.ndarray) -> np.ndarray:
            return self.judge(batch.generator, x, list(batch.conditions))

        method, budget = self.settings.method, self.settings.budget
        if method == "best_of":
            return search.best_of(lambda k: batch.sample(batch.seed_of(k)), judge, budget)
        if method == "budget_forcing":
            return batch.forced(judge, budget)
        scale = alpha_sigma(batch.generator.run, batch.times[0])[1]
        sample = lambda noise: batch.sample(batch.seed, scale * noise)  # noqa: E731
        return search.starts(batch.noise, sample, judge, budget, self.settings.radius)

    def batches(
        self,
        generator: Generator,
        weights: Any,
        times: np.ndarray,
        conditions: Sequence[Any] | np.ndarray,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        numbers: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
        """Searches for samples, a batch whenever one is wanted; the arguments are those of `Generator.batches`.

        Candidate k of `best_of` is what the seed + k draws without a search.

        Yields:
            Samples (b, h, w, C) of at most `batch_size` images, and what is to be said of each: its "reward", the
            "candidate" that it is and, where there was one, the "first_reward", that of candidate 0.
        """
        numbers = np.arange(len(conditions)) if numbers is None else numbers
        size = size or generator.run.image_shape[:2]
        for first in range(0, len(conditions), generator.batch_size):
            part = slice(first, first + generator.batch_size)
            batch = Batch(generator, weights, times, conditions[part], numbers[part], seed, size)
            found = self.find(batch)
            alone: Any = found.history[0] if len(found.history) > 1 else [None] * len(found.x)
            yield (
                found.x,
                [
                    {"reward": float(reward), "candidate": int(candidate)}
                    | ({} if before is None else {"first_reward": float(before)})
                    for reward, candidate, before in zip(found.rewards, found.candidates, alone, strict=True)
                ],
            )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are searched for side by side; see `Generator.batches`."""

    generator: Generator
    weights: Any
    times: np.ndarray
    conditions: Sequence[Any] | np.ndarray
    numbers: np.ndarray
    seed: int
    size: tuple[int, int]

    def sample(self, seed: int, start: np.ndarray | None = None) -> np.ndarray:
        """The run's own samples of a seed, or from a start."""
        return self.generator.integrate(
            self.weights, self.times, self.conditions, seed=seed, start=start, size=self.size, numbers=self.numbers
        )

    def seed_of(self, candidate: int) -> int:
        """The seed of a candidate."""
        return (self.seed + candidate) % 2**32

    def noise(self, candidate: int, law: int = 0) -> np.ndarray:
        """Noise (b, h, w, C) of the images, of a candidate; law: the transport's `augmented_dimensions`."""
        seed, numbers = jnp.uint32(self.seed_of(candidate)), jnp.asarray(self.numbers, jnp.uint32)
        return np.asarray(noise_of_seed(seed, numbers, (*self.size, self.generator.run.image_shape[-1]), law))

    def forced(self, judge: search.Judge, budget: int) -> search.Found:
        """What `search.budget_forcing` finds."""
        generator, run, count = self.generator, self.generator.run, len(self.numbers)
        plan = plan_in_time(run.transport, self.times, run.sampling)
        c_noise = host_transport(run.transport).c_noise
        seen = plan._replace(t=c_noise(plan.t), s=c_noise(plan.s))
        condition, null = generator.encode(repeated(np.asarray(self.conditions), generator.batch_size))
        network = _network(generator, bool(plan.guided.any()))

        def predict(x: np.ndarray, j: np.ndarray) -> np.ndarray:
            whole = (repeated(part, generator.batch_size) for part in (x, *_rows(seen, j)))
            with on_mesh(run.mesh):
                found = network(self.weights, *map(generator.put, whole), condition, null)
            return np.asarray(found)[:count]

        keys = image_keys(jnp.uint32(self.seed), jnp.asarray(self.numbers, jnp.uint32))
        shape = (*self.size, run.image_shape[-1])

        def fresh(index: np.ndarray, tried: np.ndarray) -> np.ndarray:
            of_state = jnp.asarray(np.where(index == 0, FIRST, index).astype(np.uint32))
            return np.asarray(_fresh(keys, of_state, jnp.asarray(tried.astype(np.uint32)), shape))

        start = self.noise(0, run.transport.augmented_dimensions)
        x = np.float32(alpha_sigma(run, self.times[0])[1]) * start
        return search.budget_forcing(run.transport, plan, predict, fresh, judge, x, budget)


def _rows(plan: SamplingPlan, j: np.ndarray) -> tuple[np.ndarray, ...]:
    """The times (B,) of evaluations j (B,), and 1.0 where they are guided."""
    return plan.t[j].astype(np.float32), plan.s[j].astype(np.float32), plan.guided[j].astype(np.float32)


@functools.partial(jax.jit, static_argnums=3)
def _fresh(keys: jax.Array, index: jax.Array, tried: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise (B, *shape) of states and their proposals; of the first of these as `sample` has it."""

    def of_image(key: jax.Array, index: jax.Array, tried: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, index)
        return jax.random.normal(jnp.where(tried > 0, jax.random.fold_in(key, PROPOSALS + tried), key), shape)

    noise: jax.Array = jax.vmap(of_image)(keys, index, tried)
    return noise


@functools.lru_cache(maxsize=4)
def _network(generator: Generator, guided: bool) -> Callable[..., jax.Array]:
    """(weights, x, t, s, where it is guided, condition, null) → F, with times of each image's own."""
    run = generator.run
    guidance = jnp.asarray(guidance_values(run.transport, run.sampling))

    def predict(
        weights: Any, x: jax.Array, t: jax.Array, s: jax.Array, where: jax.Array, condition: Inputs, null: Inputs
    ) -> jax.Array:
        condition, null = generator.inputs(condition, null, guidance)
        net = with_int8(run.net(weights)) if run.sampling.int8 else run.net(weights)
        if not guided:
            return net((Query(x, t, s, condition),))[0].F
        conditional, unconditional = net((Query(x, t, s, condition), Query(x, t, s, null)))
        scale = jnp.where(where > 0, guidance[0], 1.0)[:, None, None, None]
        return unconditional.F + scale * (conditional.F - unconditional.F)

    return jax.jit(predict, out_shardings=replicated(run.mesh))
