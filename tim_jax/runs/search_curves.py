"""Rewards of a run's samples by the number of network evaluations: the job of python -m tim_jax.search."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.runs import workdir
from tim_jax.runs.conditions import class_turns, known_labels
from tim_jax.runs.generation import Generator, check_class_conditional, load_weights, open_generator
from tim_jax.runs.judging import Judge, open_judge
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.restoration import check_samples
from tim_jax.runs.searching import Batch, Searcher, SearchSettings, read_search
from tim_jax.system import compilation_cache
from tim_jax.system.progress import Bar
from tim_jax.transitions.sampling.planning import evaluations, make_plan, time_grid
from tim_jax.transitions.sampling.search import METHODS


@dataclasses.dataclass(frozen=True)
class Curves:
    """Searches that are about to be compared; all that the user can have got wrong has been checked.

    Attributes:
        generator: of the run.
        weights: parameters of the network.
        searches: by method, with the budgets in ascending order.
        judge: the reward.
        labels: (n,) of the samples.
        steps: of the sampler.
        seed: of the noise.
        about: what else is to be said.
    """

    generator: Generator
    weights: Any
    searches: dict[str, list[SearchSettings]]
    judge: Judge
    labels: np.ndarray
    steps: int
    seed: int
    about: dict[str, Any]

    def measure(self) -> dict[str, Any]:
        """Searches, and returns what `evaluation.search` writes. Raises ValueError for a reward that is none."""
        run = self.generator.run
        each = evaluations(run.transport, self.steps, run.sampling)
        found: dict[str, list[dict[str, Any]]] = {}
        for method, searches in self.searches.items():
            # The best of 16 were the best of 8 on the way; forced budgets are other for each number.
            whole = method != "budget_forcing"
            runs = {searches[-1]: searches} if whole else {one: [one] for one in searches}
            for search, told in runs.items():
                history = self.history(search)
                for one in told:
                    rewards = history[one.budget - 1 if whole else -1]
                    found.setdefault(method, []).append(
                        {
                            "budget": one.budget,
                            "evaluations": each * one.budget,
                            "reward": float(rewards.mean()),
                            "error": float(rewards.std(ddof=1) / np.sqrt(len(rewards))),
                        }
                    )
        return self.about | {"reward": self.judge.record(), "methods": found}

    def history(self, search: SearchSettings) -> np.ndarray:
        """The best rewards (N or 1, n) of all samples by what was spent."""
        times, size = self.generator.times(self.steps), self.generator.batch_size
        searcher, found, numbers = Searcher(search, self.judge), [], np.arange(len(self.labels))
        firsts = range(0, len(self.labels), size)
        for first in Bar(firsts, desc=str(search), unit="batch", disable=jax.process_index() > 0, leave=False):
            part = slice(first, first + size)
            shape = self.generator.run.image_shape[:2]
            batch = Batch(self.generator, self.weights, times, self.labels[part], numbers[part], self.seed, shape)
            found.append(searcher.find(batch).history)
        return np.concatenate(found, axis=1)


def open_curves(
    folder: epath.Path,
    overrides: dict[str, str],
    methods: Sequence[str],
    budgets: Sequence[int],
    reward: str,
    *,
    classifier: str,
    radius: float | None,
    steps: int,
    count: int,
    seed: int,
) -> Curves:
    """Checks all that a command asks for, and reads the weights.

    Args:
        folder: the workdir.
        overrides: {"section.key": text} of its configuration.
        methods: of searches.
        budgets: times the evaluations of one sample.
        reward: its name.
        classifier: the file of the one that judges; "" for that of the configuration.
        radius: of starts, or None.
        steps: of the sampler.
        count: how many samples.
        seed: of the noise.

    Raises:
        ValueError: one line that names what is wrong.
    """
    run = build(workdir.load(folder, overrides))
    compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    check_class_conditional(run, folder)
    check_samples(run, "a search, which is for samples")
    judge = open_judge(run, reward, classifier)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods has {method!r}; each must be one of {', '.join(METHODS)}")
    if radius is not None and "starts" not in methods:
        raise ValueError(f"--radius is {radius}; it must be left out without the method starts")
    searches = {
        method: [
            read_search(f"{method}:{budget}", radius if method == "starts" else None) for budget in sorted(budgets)
        ]
        for method in methods
    }
    weights, step = load_weights(run, folder)
    run = with_found(run, folder, step)
    times = time_grid(run.transport, steps, run.sampling)
    make_plan(run.transport, times, run.sampling)
    for each in searches.values():
        each[0].check(run, times)
    generator = open_generator(run, min(run.config.sampling.batch_size, count))
    generator.load()
    labels = class_turns(known_labels(run, folder), count)
    sampling = run.sampling
    about = {
        "steps": steps, "samples": count, "seed": seed, "training_step": step, "weights": sampling.ema,
        "sampler": sampling.sampler, "stochasticity": sampling.stochasticity, "guidance": sampling.guidance,
    }  # fmt: skip
    return Curves(generator, weights, searches, judge, labels, steps, seed, about)
