"""Time distributions: t and r are two independent draws, t the larger, with exact shares of r = t and r = T_min.

Where no example has an r of its own, as in flow matching (r = t) and in consistency models (r = T_min), t is one draw.

Which examples belong to which share is a fixed interleave of their index in the batch, so that every contiguous block
of examples holds its part and each device splits its own examples alike. What is left over of a share that is not a
whole number of examples goes to further examples of some batches; see `shares.py`.
"""

import dataclasses
import math
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.shares import exact, left_over, one_more, spread
from tim_jax.transitions.transports import Transport


class Shares(NamedTuple):
    """In place of a random key: the shares u of draws that lie below each time, so that it is a quantile."""

    u: jax.Array


Key: TypeAlias = jax.Array | Shares


def normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, which a time grows with."""
    if isinstance(key, Shares):
        return jax.scipy.special.ndtri(jnp.clip(key.u, 1e-7, 1 - 1e-7))
    return jax.random.normal(key, shape)


def uniform_in(key: Key, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Uniform numbers from `low` to `high`, which a time grows with."""
    if isinstance(key, Shares):
        return low + (high - low) * key.u
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def logit_normal(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """t = T_min + (T_max − T_min) sigmoid(u), u ~ N(P_mean, P_std²)."""
    u = times.P_mean + times.P_std * normal(key, shape)
    return transport.T_min + (transport.T_max - transport.T_min) * jax.nn.sigmoid(u)


def log_normal(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """ln(σ_t/α_t) ~ N(P_mean, P_std²)."""
    return transport.time_of_ratio(jnp.exp(times.P_mean + times.P_std * normal(key, shape)))


def arctan_normal(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """t = T_min + (T_max − T_min) 2/π arctan(e^u), u ~ N(P_mean, P_std²) (FACM, arXiv 2507.03738)."""
    u = times.P_mean + times.P_std * normal(key, shape)
    return transport.T_min + (transport.T_max - transport.T_min) * 2 / jnp.pi * jnp.arctan(jnp.exp(u))


def uniform(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """t ~ U(T_min, T_max)."""
    return uniform_in(key, shape, transport.T_min, transport.T_max)


def log_uniform(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """ln t ~ U(ln T_min, ln T_max), for T_min > 0."""
    low, high = np.log(transport.T_min), np.log(transport.T_max)
    return jnp.exp(uniform_in(key, shape, low, high))


def u_shaped(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """p ∝ cosh(4 (2 u − 1)) for the share u of the time domain: both ends (arXiv 2405.20320, section 3.1)."""
    share = 0.5 + jnp.arcsinh((2 * uniform_in(key, shape) - 1) * np.sinh(4.0)) / 8
    return transport.T_min + (transport.T_max - transport.T_min) * share


def only_max(transport: Transport, times: "Times", key: Key, shape: tuple[int, ...]) -> jax.Array:
    """t = T_max: the network learns one step, from noise (InstaFlow, arXiv 2309.06380)."""
    return jnp.full(shape, transport.T_max)


DISTRIBUTIONS = {
    "logit_normal": logit_normal,
    "log_normal": log_normal,
    "arctan_normal": arctan_normal,
    "uniform": uniform,
    "log_uniform": log_uniform,
    "u_shaped": u_shaped,
    "max": only_max,
}
QUANTILES = tuple(name for name in DISTRIBUTIONS if name != "max")  # those that take Shares in place of a key
USES_NORMAL = ("logit_normal", "log_normal", "arctan_normal")
INTERVALS = ("independent", "dyadic", "logit_normal", "two_means", "uniform")
MAX_HALVINGS = 6  # dyadic lengths go down to 2^-6 of the time domain
LENGTH_MEAN = -0.8  # of the normal whose sigmoid is the length of "logit_normal" intervals; its deviation is 1
TWO_MEANS = (-0.2, 0.2)  # of the normals whose sigmoids are the ends of "two_means" intervals

UNUSED = {
    ("times.P_mean", "times.P_std"): (
        "times.distribution is not logit_normal, log_normal or arctan_normal",
        lambda c: c.times.distribution not in USES_NORMAL,
    ),
    ("times.single_equal",): (
        "t is one draw already (times.share_equal is 1 or times.intervals not 'independent') or no example has r = t",
        lambda c: c.times.share_equal in (0, 1) or c.times.intervals != "independent",
    ),
    ("times.intervals",): ("times.share_equal is 1", lambda c: c.times.share_equal == 1),
}


@dataclasses.dataclass(frozen=True)
class Times:
    """The joint distribution of the times (t, r) of a batch.

    With intervals "independent", t is the larger of two draws, and r the other, t or T_min; where r = t, t is one draw
    with `single_equal`, and in all examples if the shares of r = t and r = T_min are 1 in sum. With "dyadic" ones
    (Shortcut, arXiv 2410.12557) t − r is 2^-k of the time domain, k uniform in 0 … MAX_HALVINGS, and t is uniform on
    its multiples. With "logit_normal" ones (TVM, arXiv 2511.19797) the length t − r is drawn first, see `fitted`. With
    "two_means" (Decoupled MeanFlow, arXiv 2510.24474) t and r are the larger and the smaller of two logit-normal draws,
    of the means TWO_MEANS; P_mean is that of examples with r = t. With "uniform" ones (IMM, arXiv 2503.07565) t is one
    draw, and r uniform below it. With `shift_reference` n, an image of m positions has its noise-to-signal ratio
    multiplied by √(m/n), which for OT-FM is t_m = s t/(1 + (s − 1)t), s = √(m/n).
    """

    # "default" (the transport's), logit_normal, log_normal, arctan_normal, uniform, log_uniform, u_shaped or max
    distribution: str = "default"
    P_mean: float = 0.0  # of the normal in logit_normal, log_normal and arctan_normal
    P_std: float = 1.0
    share_equal: float = 0.5  # share of examples with r = t; 1.0 is flow matching
    share_min: float = 0.1  # share of examples with r = T_min
    single_equal: bool = False  # where r = t, t is one draw and not the larger of two, which is nearer to noise
    intervals: str = "independent"  # independent, dyadic, logit_normal, two_means, uniform
    shift_reference: float = 0.0  # positions (height × width) that need no resolution shift; 0: none are shifted

    def check(self, transport: Transport) -> None:
        """Raises ValueError, naming key and value, for settings that are invalid or do not fit the transport."""
        if self.distribution not in ("default", *DISTRIBUTIONS):
            raise ValueError(
                f"times.distribution is {self.distribution!r}; it must be one of default, {', '.join(DISTRIBUTIONS)}"
            )
        if self.intervals not in INTERVALS:
            raise ValueError(f"times.intervals is {self.intervals!r}; it must be one of {', '.join(INTERVALS)}")
        if self.intervals in ("logit_normal", "two_means") and self.distribution != "logit_normal":
            raise ValueError(
                f"times.distribution is {self.distribution!r}; it must be 'logit_normal' with times.intervals "
                f"{self.intervals!r}"
            )
        if self.distribution == "max" and self.share_equal + self.share_min < 1 - 1e-9:
            raise ValueError(
                f"times.distribution is 'max'; it must be another one, since times.share_equal and times.share_min are "
                f"{self.share_equal} and {self.share_min}, and other examples have r = t there as well"
            )
        if self.distribution == "log_uniform" and transport.T_min <= 0:
            raise ValueError(
                f"times.distribution is 'log_uniform'; it must be another one, since {transport.name} reaches t = 0"
            )
        if self.P_std <= 0:
            raise ValueError(f"times.P_std is {self.P_std}; it must be above 0")
        for name in ("share_equal", "share_min"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"times.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.share_equal + self.share_min > 1 + 1e-9:
            total = self.share_equal + self.share_min
            raise ValueError(
                f"times.share_equal, times.share_min are {self.share_equal}, {self.share_min}; they must be at most 1 "
                f"in sum, and that is {total:g}"
            )
        if self.shift_reference < 0:
            raise ValueError(f"times.shift_reference is {self.shift_reference}; it must be at least 0")

    def shift(self, transport: Transport, t: jax.Array, positions: int) -> jax.Array:
        """Returns t with its noise-to-signal ratio multiplied by √(positions/shift_reference), elementwise."""
        if not self.shift_reference:
            return t
        return transport.time_of_ratio(transport.ratio(t) * np.sqrt(positions / self.shift_reference))

    def draw_t(self, transport: Transport, key: jax.Array, shape: tuple[int, ...], positions: int = 1) -> jax.Array:
        """Draws independent times within [T_min, T_max].

        Args:
            transport: The transport.
            key: A random key.
            shape: The shape of the result.
            positions: Height × width of the images, for the shift.
        """
        return self._of(transport, key, shape, positions)

    def quantile(self, transport: Transport, u: jax.Array, positions: int = 1) -> jax.Array:
        """Returns the times below which shares u of independent draws lie, elementwise."""
        return self._of(transport, Shares(u), u.shape, positions)

    def _of(self, transport: Transport, key: Key, shape: tuple[int, ...], positions: int) -> jax.Array:
        times = self
        if self.distribution == "default":
            times = dataclasses.replace(
                self, distribution=transport.distribution, P_mean=transport.P_mean, P_std=transport.P_std
            )
        t = self.shift(transport, DISTRIBUTIONS[times.distribution](transport, times, key, shape), positions)
        return jnp.clip(t, transport.T_min, transport.T_max)

    def draw_slice(
        self,
        transport: Transport,
        key: jax.Array,
        count: int,
        positions: int,
        batch: jax.Array | int,
        slice: tuple[jax.Array | int, int],
    ) -> tuple[jax.Array, jax.Array]:
        """Draws the times of a batch with t in one of n intervals of equal probability, the first one next to data.

        There t is one draw in all examples, and r, where it has none of its own, an independent draw given r ≤ t.

        Args:
            transport, key, count, positions, batch: As in `draw`.
            slice: The number of the interval and how many there are.
        """
        equal, minimal = self.flags(count, batch)
        u, below = jax.random.uniform(key, (2, count))
        u = (slice[0] + u) / slice[1]
        t, r = (self.quantile(transport, share, positions) for share in (u, below * u))
        return t, jnp.where(minimal, transport.T_min, jnp.where(equal, t, jnp.minimum(r, t)))

    def draw(
        self, transport: Transport, key: jax.Array, count: int, positions: int = 1, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws the times of a batch, with the shares of `flags`.

        Args:
            transport: The transport.
            key: A random key.
            count: The number B of examples.
            positions: Height × width of the images, for the shift.
            batch: Number of the batch, from 0 on, a scalar.

        Returns:
            t and r, each (B,), with T_min ≤ r ≤ t ≤ T_max.
        """
        equal, minimal = self.flags(count, batch)
        t, r = self.pairs(transport, key, equal, positions)
        return t, jnp.where(minimal, transport.T_min, jnp.where(equal, t, r))

    def pairs(
        self, transport: Transport, key: jax.Array, equal: jax.Array | np.ndarray, positions: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """Draws t and r, each (B,), as if no example had r = t or r = T_min.

        Args:
            transport: The transport.
            key: A random key.
            equal: Which examples (B,) are to have r = t.
            positions: Height × width of the images, for the shift.
        """
        count = len(equal)
        if sum(self._shares) == 1:
            t = self.draw_t(transport, key, (count,), positions)
            return t, t
        if self.intervals == "uniform":
            t_key, r_key = jax.random.split(key)
            t = self.draw_t(transport, t_key, (count,), positions)
            return t, transport.T_min + (t - transport.T_min) * jax.random.uniform(r_key, (count,), t.dtype)
        if self.intervals != "independent":
            t_key, interval_key = jax.random.split(key)
            if self.intervals == "dyadic":
                t, r = dyadic(transport, interval_key, count)
            else:
                ends = ENDS[self.intervals](transport, self, interval_key, count)
                t, r = (
                    jnp.clip(self.shift(transport, end, positions), transport.T_min, transport.T_max) for end in ends
                )
            return jnp.where(equal, self.draw_t(transport, t_key, (count,), positions), t), r
        pair = self.draw_t(transport, key, (2, count), positions)
        larger = pair.max(axis=0)
        return jnp.where(equal, pair[0], larger) if self.single_equal else larger, pair.min(axis=0)

    @property
    def _shares(self) -> tuple[Fraction, Fraction]:
        """The shares of r = t and r = T_min, at most 1 in sum."""
        equal = exact(self.share_equal)
        return equal, min(exact(self.share_min), 1 - equal)

    def assign(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of `count` examples have r = t and which have r = T_min in every batch.

        They are ⌊count·share⌋ of each, spread evenly over their index.

        Returns:
            Two boolean arrays (count,), never both true.
        """
        share_equal, share_min = self._shares
        equal = spread(share_equal, count)
        others = np.flatnonzero(~equal)
        minimal = np.zeros(count, bool)
        if len(others):
            minimal[others] = spread(Fraction(int(count * share_min), len(others)), len(others))
        return equal, minimal

    def flags(self, count: int, batch: jax.Array | int) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
        """Returns which of `count` examples have r = t and which have r = T_min in one batch.

        They are those of `assign`, and in some batches one more of each share that is not whole, so that over all
        batches both shares are exact.

        Args:
            count: The number of examples.
            batch: Number of the batch, from 0 on, a scalar.

        Returns:
            Two boolean arrays (count,), never both true.
        """
        equal, minimal = self.assign(count)
        more_equal, more_minimal = (left_over(share, count) for share in self._shares)
        free = np.flatnonzero(~(equal | minimal))  # two of them, or intervals that have no batch in common

        def with_one_more(flags: np.ndarray, excess: Fraction, start: Fraction, place: int) -> jax.Array | np.ndarray:
            if not excess:
                return flags
            at = jnp.asarray(free)[(jnp.asarray(batch) + place) % len(free)]
            found: jax.Array = (np.arange(count) == at) & one_more(excess, batch, start)
            return jnp.logical_or(flags, found)

        return (
            with_one_more(equal, more_equal, Fraction(0), 0),
            with_one_more(minimal, more_minimal, more_equal, 1),
        )


def positions(x: jax.Array) -> int:
    """Returns how many positions an example of x has: h·w of images (B, h, w, C), 1 of vectors (B, d)."""
    return math.prod(x.shape[1:-1])


def dyadic(transport: Transport, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws (t, r), each (count,), with t − r = 2^-k of the time domain and t on the multiples of it.

    k is uniform in 0 … MAX_HALVINGS.
    """
    k_key, t_key = jax.random.split(key)
    parts = 2 ** jax.random.randint(k_key, (count,), 0, MAX_HALVINGS + 1)
    upper = 1 + jnp.minimum((jax.random.uniform(t_key, (count,)) * parts).astype(int), parts - 1)
    low, domain = transport.T_min, transport.T_max - transport.T_min
    return low + domain * (upper / parts), low + domain * ((upper - 1) / parts)


def logit_normal_lengths(transport: Transport, times: Times, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws (t, r), each (count,), with t − r a logit-normal share of the time domain, and r as in `fitted`."""
    length_key, r_key = jax.random.split(key)
    length = jax.nn.sigmoid(LENGTH_MEAN + jax.random.normal(length_key, (count,)))
    t, r = fitted(length, jax.random.uniform(r_key, (count,)), times.P_mean, times.P_std)
    low, domain = transport.T_min, transport.T_max - transport.T_min
    return low + domain * t, low + domain * r


def two_means(transport: Transport, times: Times, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws (t, r), each (count,), as the larger and the smaller of two times with the means TWO_MEANS."""
    normal = times.P_std * jax.random.normal(key, (2, count)) + jnp.array(TWO_MEANS)[:, None]
    ends = transport.T_min + (transport.T_max - transport.T_min) * jax.nn.sigmoid(normal)
    return ends.max(axis=0), ends.min(axis=0)


ENDS = {"logit_normal": logit_normal_lengths, "two_means": two_means}


def fitted(length: jax.Array, u: jax.Array, mean: float, std: float) -> tuple[jax.Array, jax.Array]:
    """Returns (t, r), each (B,), in [0, 1], with t − r a given length (TVM, arXiv 2511.19797).

    logit r is N(mean, std²), cut off above where t = r + length would be beyond 1.

    Args:
        length: The lengths (B,), in (0, 1).
        u: Uniform numbers (B,) in [0, 1), by which r is drawn.
        mean, std: Mean and standard deviation of the normal.
    """
    highest = (jax.scipy.special.logit(1 - length) - mean) / std
    r = jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u * jax.scipy.special.ndtr(highest)))
    return jnp.minimum(r + length, 1.0), r
