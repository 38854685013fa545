"""Images from a trained run: what sampling, evaluation and the pictures of training share."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from tim_jax.config.overrides import override
from tim_jax.config.run import Run
from tim_jax.config.sampling import make_sampling
from tim_jax.networks.int8 import with_int8
from tim_jax.runs import restoration
from tim_jax.runs.encoders import Decoder, Pixels, TextEncoder, open_decoder, open_text_encoder
from tim_jax.runs.labels import repeated
from tim_jax.runs.program import Way, program, way_of
from tim_jax.runs.refiners import with_refiner
from tim_jax.runs.restoration import Truths, open_truths
from tim_jax.runs.steering import Aim, Given, open_own
from tim_jax.runs.weights import load_weights as load_weights
from tim_jax.system.progress import Activity
from tim_jax.training import sharding
from tim_jax.training.nets import up_to_longest
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.noise import image_keys, noise_of_seed, start_noise
from tim_jax.transitions.sampling.parallel import sample_parallel
from tim_jax.transitions.sampling.planning import (
    check_pairs,
    ends_of_steps,
    guidance_scale,
    guidance_values,
    make_plan,
    padded,
    time_grid,
)
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, without_first
from tim_jax.transitions.sampling.sampler import sample_and_count
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.sampling.settings import Sampling

Conditions = Sequence[int] | Sequence[str] | Sequence[int | str] | np.ndarray  # labels or prompts, one per image
Inputs = dict[str, jax.Array]  # what a network is conditioned on


def resampled(run: Run, changes: Mapping[str, str]) -> Run:
    """The run with keys of `sampling` changed, {"sampling.key": text}. Raises ValueError, as building the run would."""
    sampling = make_sampling(override(run.config, dict(changes)), cast(Objective, run.trainer.step.objective))
    found = run.sampling
    sampling = dataclasses.replace(sampling, optimal_times=found.optimal_times, learned=found.learned)
    return dataclasses.replace(run, sampling=sampling)


def check_class_conditional(run: Run, workdir: epath.Path) -> None:
    """Raises ValueError for a run that is conditioned on text, where only labels will do."""
    if run.config.model.condition != "class":
        raise ValueError(f"--workdir={workdir}: model.condition is {run.config.model.condition!r}; it must be 'class'")


class Generator:
    """Samples of a run with given weights; image i of a seed is the same whatever the batch and the mesh.

    What it draws are examples (h, w, C), images or latents, which `decode` turns into images. One program is compiled
    for each size, whatever the number of steps, up to `sampler.PADDED` network evaluations, and others for more. Scale
    and interval of guidance are its arguments; where guidance never acts there is a program without it.

    Conditions are labels, or prompts where the run has a text encoder to read them by. With `model.use_text_mask` False
    an image does depend on its batch: on how long the longest of its prompts is, as published.

    Args:
        run: whose network, transport and sampling are used, on its mesh.
        batch_size: images drawn at a time, rounded up to a multiple of the devices that share a batch.
        texts: turns prompts into the network's condition; None for a run conditioned on labels.
        decode: turns examples into images.
        truths: what a coupled run restores: image i of every seed is that of truth i, in turn; else None.
        aim: what samples are steered towards, where `sampling.steering` has an operator; by default a reward of their
            own labels, or what is measured of held-out images.

    Raises ValueError, in one line, for an operator without an aim.
    """

    def __init__(
        self,
        run: Run,
        batch_size: int,
        texts: TextEncoder | None = None,
        decode: Pixels | Decoder = Pixels(),
        truths: Truths | None = None,
        aim: Aim | None = None,
    ):
        if cast(Objective, run.trainer.step.objective).prediction_input:
            raise ValueError(
                f"objective.name is {run.config.objective.name!r}; it must be another for samples: a refiner goes "
                "with a model, as its sampling.refiner"
            )
        shards = sharding.batch_shards(run.mesh)
        self.run, self.batch_size = run, -(-batch_size // shards) * shards
        self.texts, self.decode, self.truths = texts, decode, truths
        self.aim = aim or open_own(run)
        # Whole on every device, so that every process has all images.
        whole = sharding.replicated(run.mesh)
        self._sample = jax.jit(self._batch, static_argnums=12, out_shardings=whole)
        self._noise = jax.jit(noise_of_seed, static_argnums=(2, 3), out_shardings=whole)
        self._compiled: set[tuple] = set()
        self.sweeps = 0  # of the latest batch: network calls one after another
        self.evaluations = np.zeros(0, int)  # (n,) of each image drawn since the latest call, guided ones twice

    def sampled_by(self, sampling: Sampling, aim: Aim | None = None) -> "Generator":
        """A generator that samples otherwise, with the same programs and encoders; aim: see above."""
        other = copy.copy(self)
        same = sampling.refiner == self.run.sampling.refiner
        other.run = dataclasses.replace(self.run, sampling=sampling, refiner=self.run.refiner if same else None)
        other.run = with_refiner(other.run)
        other.aim = aim or open_own(other.run)
        return other

    @property
    def nfe(self) -> int | float:
        """The mean of `evaluations`: as a float where the sampler skips some, otherwise a whole number.

        In sweeps (`sampling.parallel`) as many are counted as there are one after another.
        """
        mean = float(self.evaluations.mean())
        return mean if SAMPLERS[self.run.sampling.sampler].skips else int(mean)

    def has_compiled(self, steps: int) -> bool:
        """Whether the program that samples in so many steps, from noise and at the default size, has been compiled."""
        plan = make_plan(self.run.transport, self.times(steps), self.run.sampling)
        plan = plan if self.run.sampling.parallel else padded(plan)
        return program(plan, way_of(self.run, plan, self.run.image_shape[:2], aim=self.aim)) in self._compiled

    def load(self) -> None:
        """Reads text encoder and autoencoder now, which otherwise the first batch does. Raises ValueError."""
        if self.texts:
            self.texts.load()
        self.decode.load()

    def __call__(
        self,
        weights: Any,
        conditions: Conditions,
        *,
        steps: int,
        seed: int = 0,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Samples from noise in a number of steps.

        Args:
            weights: parameters of the network.
            conditions: n labels or prompts, one per image.
            steps: of the sampler, at least 1.
            seed: of the noise; image i starts from noise i of the seed.
            size: (h, w) of the examples, multiples of the patch size; by default `data.height` and `data.width`.

        Returns:
            Examples (n, h, w, C).
        """
        return self.integrate(weights, self.times(steps), conditions, seed=seed, size=size)

    def times(self, steps: int, start: float | None = None) -> np.ndarray:
        """The (steps + 1,) times that `sampling` goes along, falling from `start`, by default T_max, to T_min.

        Reversed, they are the way from data up to noise.
        """
        return time_grid(self.run.transport, steps, self.run.sampling, start)

    def noise(self, seed: int, count: int, *, size: tuple[int, int] | None = None, first: int = 0) -> np.ndarray:
        """Standard normal noise; σ(T_max) times it is what the images of a seed start from.

        Args:
            seed: of the noise.
            count: how many.
            size: (h, w); by default `data.height` and `data.width`.
            first: the number of the first image.

        Returns:
            Noise (count, h, w, C) of the images first, …, first + count − 1 of the seed.
        """
        shape, numbers = (*(size or self.run.image_shape[:2]), self.run.image_shape[-1]), first + np.arange(count)
        law = self.run.transport.augmented_dimensions
        return np.asarray(self._noise(np.uint32(seed), numbers.astype(np.uint32), shape, law))

    def add_noise(self, examples: np.ndarray, time: float, *, seed: int = 0) -> np.ndarray:
        """States x_t = α(t) x + σ(t) ε of examples x (n, h, w, C) at one time, with ε = noise(seed, n)."""
        restoration.check_path(self.run)
        alpha, sigma = alpha_sigma(self.run, time)
        return alpha * examples + sigma * self.noise(seed, len(examples), size=examples.shape[1:3])

    def integrate(
        self,
        weights: Any,
        times: np.ndarray,
        conditions: Conditions,
        *,
        seed: int = 0,
        start: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        numbers: np.ndarray | None = None,
        trajectory: bool = False,
        pair: bool = False,
    ) -> np.ndarray:
        """Brings states from the first of `times` to the last; the arguments are those of `batches`.

        Returns:
            States (n, h, w, C) at the last time; with `trajectory` those at all times, (len(times), n, h, w, C), and
            with `pair` those at the last two, (n, 2, h, w, C).
        """
        batches = self.batches(
            weights, times, conditions, seed=seed, start=start, size=size, numbers=numbers, trajectory=trajectory,
            pair=pair,
        )  # fmt: skip
        return np.concatenate(list(batches), axis=0 if pair else -4)

    def batches(
        self,
        weights: Any,
        times: np.ndarray,
        conditions: Conditions,
        *,
        seed: int = 0,
        start: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        numbers: np.ndarray | None = None,
        trajectory: bool = False,
        pair: bool = False,
    ) -> Iterator[np.ndarray]:
        """Brings states from the first of `times` to the last, a batch whenever one is wanted.

        Args:
            weights: parameters of the network.
            times: falling, to sample, or growing, to bring examples to noise.
            conditions: n labels or prompts, one per image.
            seed: of the noise.
            start: states (n, h, w, C) at the first time; by default σ(T_max) ε with ε = noise(seed, n, size=size). Or
                those at the first two times (n, 2, h, w, C), for a sampler that is reversible.
            size: (h, w) of the examples, multiples of the patch size; by default `data.height` and `data.width`.
            numbers: (n,) which images of the seed these are; by default 0, 1, …, n − 1.
            trajectory: whether to give the states at all times.
            pair: whether to give those at the last two times, the last one first: the `start` of an exact way back.

        Yields:
            States (b, h, w, C) of at most `batch_size` images at the last time, or (len(times), b, h, w, C), or
            (b, 2, h, w, C).

        Raises:
            ValueError: if the sampler cannot take these times, or neither begin nor end with two states.
        """
        if restoration.coupling_of(self.run).active and not self.truths:
            raise ValueError(restoration.NOTHING)
        from_pair = start is not None and start.ndim == 5
        if pair and trajectory:
            raise ValueError("pair and trajectory are True; one must be False: the pair ends the trajectory")
        if pair or from_pair:
            check_pairs(self.run.sampling, len(times) - 1)
        plan = make_plan(self.run.transport, times, self.run.sampling)
        ends = ends_of_steps(plan, len(times) - 1, self.run.sampling)
        plan = without_first(plan) if from_pair else plan
        count, guidance = np.int32(len(plan.t)), guidance_values(self.run.transport, self.run.sampling)
        plan = plan if trajectory or self.run.sampling.parallel else padded(plan)
        h, w = size or self.run.image_shape[:2]
        aim = self.aim if plan.steer else None  # on the way to noise nothing is steered
        way = way_of(self.run, plan, (h, w), trajectory, pair, aim)
        name = program(plan, way, "noise" if start is None else "pair" if from_pair else "states")
        refiner = self.run.refiner.params if self.run.sampling.refines and self.run.refiner else None
        conditions = np.asarray(conditions)
        numbers = np.arange(len(conditions)) if numbers is None else np.asarray(numbers)
        self.evaluations = np.zeros(0, int)
        for first in range(0, len(conditions), self.batch_size):
            indices = self.put(repeated(numbers[first:].astype(np.uint32), self.batch_size))
            condition, null = self.encode(repeated(conditions[first:], self.batch_size))
            states = None
            if start is not None:
                states = self.put(repeated(np.asarray(start[first:], np.float32), self.batch_size))
            truth = self.put(self._truths(repeated(numbers[first:], self.batch_size))) if self.truths else None
            given = aim.given(repeated(numbers[first:], self.batch_size), self.put) if aim else None
            known = name in self._compiled or jax.process_index() > 0
            self._compiled.add(name)
            what = f"compiling the sampler for {h}x{w}, {self.batch_size} images"
            with on_mesh(self.run.mesh), Activity(what, disable=known):
                found, sweeps, evaluations = self._sample(
                    weights, plan, count, np.uint32(seed), indices, condition, null, states, guidance, refiner, truth,
                    given, way,
                )  # fmt: skip
            examples, left, self.sweeps = np.asarray(found), len(conditions) - first, int(sweeps)
            self.evaluations = np.append(self.evaluations, np.asarray(evaluations)[:left])
            yield examples[ends, :left] if trajectory else examples[:left]

    def _truths(self, numbers: np.ndarray) -> np.ndarray:
        assert self.truths is not None, "a coupled run"
        return self.truths(numbers)[0]

    def images(self, weights: Any, times: np.ndarray, conditions: Conditions, *, seed: int = 0) -> Iterator[np.ndarray]:
        """`batches` of samples from noise, decoded to images (b, H, W, c) in about [−1, 1]."""
        return map(self.decode, self.batches(weights, times, conditions, seed=seed))

    def encode(self, conditions: np.ndarray) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
        """The network's condition of labels or prompts (batch_size,), and the null condition (1, …)."""
        if self.texts:
            return self.texts(conditions.tolist()), self.texts.null
        null = np.array([self.run.config.model.num_classes], np.int32)
        return {"label": self.put(conditions.astype(np.int32))}, {"label": null}

    def _batch(
        self,
        weights: Any,
        plan: SamplingPlan,
        count: jax.Array,
        seed: jax.Array,
        indices: jax.Array,
        condition: dict[str, jax.Array],
        null: dict[str, jax.Array],
        start: jax.Array | None,
        guidance: jax.Array,
        refiner: Any,
        truth: jax.Array | None,
        given: Given | None,
        way: Way,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The compiled program, which serves every sampling: see `batches`, and `sampler.sample` for `count`.

        `guidance` is what `guidance_values` returns. With the samples, it returns how many calls of the network they
        took one after another at most, and how many evaluations each image (batch_size,).
        """
        run = self.run
        keys = image_keys(seed, indices)
        before, x, image, noise = None, start, None, None
        if truth is not None:
            image = restoration.degraded(run, keys, truth)
            noise = functools.partial(restoration.coupling_of(run).noise, image)
        if x is None:
            xi = start_noise(keys, (*way.size, run.image_shape[-1]), run.transport.augmented_dimensions)
            x = alpha_sigma(run, run.transport.T_max)[1] * (noise(xi) if noise else xi)
        elif x.ndim == 5:
            before, x = x[:, 0], x[:, 1]
        condition, null = self.inputs(condition, null, guidance.astype(x.dtype))
        if image is not None:
            condition, null = condition | {"image": image}, null | {"image": image}
        scale = guidance_scale(guidance[0], way.guidance_channels, x) if way.guided else 1.0
        net = with_int8(run.net(weights)) if way.int8 else run.net(weights)
        if way.parallel:
            states, sweeps = sample_parallel(net, plan, x, condition, null, keys, scale, way.parallel, way.tolerance)
            each = jnp.full(len(x), count + plan.guided.sum())
            return states if way.trajectory else states[-1], sweeps, each
        refine = way.refine(refiner) if way.refine else None
        steer = way.steer(given, condition) if way.steer and given is not None else None
        states, each = sample_and_count(
            net,
            plan,
            x,
            condition,
            null,
            keys,
            scale,
            way.trajectory,
            count,
            before,
            way.pair,
            refine,
            noise,
            way.draw_steps,
            steer,
        )
        return states, count, each

    def inputs(self, condition: Inputs, null: Inputs, guidance: jax.Array) -> tuple[Inputs, Inputs]:
        """What the network is called with, of what `encode` returns and of `guidance_values`."""
        null = {name: jnp.broadcast_to(value, condition[name].shape) for name, value in null.items()}
        if self.texts and not self.run.network.use_text_mask:
            mask = {"mask": up_to_longest(condition["mask"])}
            condition, null = condition | mask, null | mask
        if self.run.sampling.guidance_input:  # whatever the sampling, as it is the network's
            condition = condition | {"guidance": jnp.tile(guidance, (self.batch_size, 1))}
        return condition, null

    def put(self, values: np.ndarray) -> jax.Array:
        """An array (batch_size, …) that every process knows, its first axis over the devices that share a batch."""
        where = sharding.batch_sharding(self.run.mesh)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def open_generator(run: Run, batch_size: int) -> Generator:
    """A Generator with the text encoder and the autoencoder that the run needs for images. Raises ValueError."""
    texts = open_text_encoder(run) if run.config.model.condition == "text" else None
    truths = open_truths(run) if restoration.coupling_of(run).active else None
    return Generator(with_refiner(run), batch_size, texts, open_decoder(run) or Pixels(), truths)


def alpha_sigma(run: Run, time: float) -> tuple[float, float]:
    """(α, σ) of the run's transport at a time."""
    host, t = host_transport(run.transport), cast(Any, np.array(time))  # of NumPy, for float64
    return float(host.alpha(t)), float(host.sigma(t))
