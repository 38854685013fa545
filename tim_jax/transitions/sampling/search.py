"""Search for samples of a high reward, at so many times the network evaluations of one sample.

    best_of         the best of N samples, each from noise of its own
    starts          one start ε that is changed N − 1 times, ε' = √(1 − ρ²) ε + ρ ξ, each change kept where its sample
                    is better: zero-order search with one neighbour at a time (arXiv 2501.09732)
    budget_forcing  along a sampler with fresh noise, whose n states have N evaluations each: proposals of the next
                    state, until the reward of its x̂ is above the highest of all states before; what is left of the N
                    is the next state's, and without a better one the best is taken (arXiv 2503.19385)

All take N times the evaluations of one sample. The last state that has a choice spends what is left. x̂ comes from the
very prediction that the state's own step then takes, so that a proposal costs one evaluation. Where `budget_forcing`
leaves published code: that keeps the best of several first noises, here there is one, and it ends at the best x̂ of the
last state, here the plan's own last step does.

Everything here is numpy on the host, B images side by side; each is the same whatever is beside it.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from tim_jax.transitions.sampling.plans import SamplingPlan, data_prediction, host_transport
from tim_jax.transitions.transports import Transport

Judge: TypeAlias = Callable[[np.ndarray], np.ndarray]  # samples (B, …) → rewards (B,)
Numbered: TypeAlias = Callable[[int], np.ndarray]  # the number of a candidate → noise or samples (B, …)


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        x: The samples (B, …).
        rewards: Of these (B,).
        candidates: The number (B,) of the candidate that each is; the proposal of the last state with a choice.
        history: (N, B), the best reward after one, two, … times the evaluations of one sample; (1, B) of a search that
            has no sample before it ends.
    """

    x: np.ndarray
    rewards: np.ndarray
    candidates: np.ndarray
    history: np.ndarray


class _Best:
    """The best candidates so far."""

    def __init__(self, x: np.ndarray, rewards: np.ndarray):
        self.x, self.rewards = x.copy(), np.array(rewards)
        self.candidates = np.zeros(len(x), int)
        self.history = [self.rewards.copy()]

    def add(self, number: int, x: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Takes the candidates with a number into account; returns which images (B,) they are better for."""
        better: np.ndarray = rewards > self.rewards
        self.x[better], self.rewards[better], self.candidates[better] = x[better], rewards[better], number
        self.history.append(self.rewards.copy())
        return better

    def found(self) -> Found:
        return Found(self.x, self.rewards, self.candidates, np.stack(self.history))


def best_of(sample: Numbered, judge: Judge, count: int) -> Found:
    """Returns the best of samples 0 … count − 1 of each image."""
    best = _Best(x := sample(0), judge(x))
    for number in range(1, count):
        best.add(number, x := sample(number), judge(x))
    return best.found()


def starts(
    noise: Numbered, sample: Callable[[np.ndarray], np.ndarray], judge: Judge, count: int, radius: float
) -> Found:
    """Returns the sample of the best start that is found.

    Args:
        noise: Standard normal noise (B, …) by number: 0 the first start's, then those that change it.
        sample: Starts (B, …) → samples (B, …).
        judge: Rewards of samples.
        count: How many starts are tried.
        radius: ρ in (0, 1]; with 1 they are independent of each other.
    """
    start = noise(0)
    best = _Best(x := sample(start), judge(x))
    for number in range(1, count):
        near = (np.sqrt(1 - radius**2) * start + radius * noise(number)).astype(start.dtype)
        better = best.add(number, x := sample(near), judge(x))
        start = np.where(_over(better, start), near, start)
    return best.found()


def check_plan(plan: SamplingPlan, name: str) -> None:
    """Raises ValueError for the plan of a sampler, by its name, that `budget_forcing` cannot take."""
    if plan.rule or plan.refined is not None or plan.a.shape[1] > 1 or not plan.c[1 : len(plan.t)].any():
        raise ValueError(
            f"sampling.sampler is {name!r}; it must be one that draws fresh noise in steps of one evaluation for "
            "budget_forcing, such as sde or er_sde_1, or flow_map with sampling.stochasticity, in three steps or more"
        )


def budget_forcing(
    transport: Transport,
    plan: SamplingPlan,
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    fresh: Callable[[np.ndarray, np.ndarray], np.ndarray],
    judge: Judge,
    x: np.ndarray,
    count: int,
) -> Found:
    """Returns samples by rollover budget forcing; with count 1 they are those of the plan.

    Args:
        transport: The transport.
        plan: A plan, in times of the transport, that `check_plan` lets pass.
        predict: States (B, …) and the numbers (B,) of their evaluations → F (B, …).
        fresh: The numbers (B,) of states and of their proposals (B,) → standard normal noise (B, …).
        judge: Rewards of x̂.
        x: The first states (B, …).
        count: N, evaluations of each state.
    """
    B, n = len(x), len(plan.t)
    of_state, of_F = data_prediction(host_transport(transport), plan.t)
    choices = np.flatnonzero(plan.c[:n])
    last = choices[-1]
    state, F = x, np.zeros_like(x)  # the state before and its prediction
    highest = np.full(B, -np.inf)  # reward of all states before
    best, best_F, best_reward = state, F, highest.copy()  # of the proposals for the next one
    index, left, tried = np.zeros(B, int), np.full(B, count), np.zeros(B, int)
    candidates = np.zeros(B, int)

    def following(state: np.ndarray, F: np.ndarray, index: np.ndarray, tried: np.ndarray) -> np.ndarray:
        """The states (B, …) after those of index − 1."""
        before = np.maximum(index - 1, 0)
        a, b, c = (_over(part.astype(x.dtype), x) for part in (plan.a[before, 0], plan.b[before, 0], plan.c[index]))
        a, b = np.where(_over(index, x) > 0, a, 1), np.where(_over(index, x) > 0, b, 0)
        found: np.ndarray = a * state + b * F + c * fresh(index, tried)
        return found

    for _ in range(count * n):
        active, j = index < n, np.minimum(index, n - 1)
        if not active.any():
            break
        proposal = following(state, F, j, tried)
        prediction = predict(proposal, j)
        weights = (_over(part[j].astype(x.dtype), x) for part in (of_state, of_F))
        rewards = judge(sum(weight * part for weight, part in zip(weights, (proposal, prediction), strict=True)))
        better = active & ((rewards > best_reward) | (tried == 0))
        best, best_F = (np.where(_over(better, x), new, old) for new, old in ((proposal, best), (prediction, best_F)))
        best_reward = np.where(better, rewards, best_reward)
        candidates = np.where(better & (j == last), tried, candidates)
        tried, left = tried + active, left - active
        spent = left <= np.where(j == last, (j - n + 1) * (count - 1), 0)  # the last one has those of all after it
        done = active & (spent | (plan.c[j] == 0) | ((rewards > highest) & (j != last)))
        state, F = (np.where(_over(done, x), new, old) for new, old in ((best, state), (best_F, F)))
        highest = np.where(done, np.maximum(highest, best_reward), highest)
        index, tried, left = index + done, np.where(done, 0, tried), left + count * done
    end = np.full(B, n)
    samples = following(state, F, end, 0 * end)
    rewards = judge(samples)
    return Found(samples, rewards, candidates, rewards[None])


def _over(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Values (B,) as (B, 1, …, 1), which broadcast against images (B, …)."""
    return values.reshape(len(values), *[1] * (like.ndim - 1))


METHODS = ("best_of", "starts", "budget_forcing")
