"""Self-adversarial flows (TwinFlow, arXiv 2512.05150): negative times belong to the network's own samples.

At −t the network learns the flow of its fakes x̃ = f_{T→0}(noise), F(x̃_t, −t, −t) ≈ α̂_t x̃ + σ̂_t ε, as it learns
that of the data at t. The difference of the two is a gradient of distribution matching, without a further network:

    F* = F − clip(G),   G = F(x̃_t, −t, −t) − F(x̃_t, t, t),   at jumps T → 0, whose fakes x̃ are noised again.

Of every batch fixed shares of the examples are fakes (`times.share_equal`), jumps T → 0 (`times.share_min`), jumps of
at most a twentieth of the way to the data (`twin.share_short`), and jumps of any length. All jumps have the target of
RCGM: a step of length δ along the velocity of the data, which may be guided, then N jumps by an EMA,

    F* = F⁻ − clip(κ (F⁻ − F_end)),   κ = |B_{t,r}|/δ,   δ = min(`twin.step`, t − r),

F_end being the F that jumps to where these end: clip(κ …) is the rate at which both ways part (see `bootstrap.py`).

Published runs start from a trained model. From scratch on the digits, at learning rates of other objectives, the match
diverges: fakes grow, and the rest with them. Without it (`twin.match_weight` 0) what is left is RCGM.

The published code clamps the first step at r, but not the state that it leads to, which changes nothing. Its Barron
loss is `objective.adaptive` with power ½ but for a factor of 1.005. Its guidance, by half (`objective.guidance.w_cond`
0.5), leaves out both ends of its interval.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.consistency import Group, Prediction, example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.groups import split_examples
from tim_jax.transitions.jump import coefficient_A, coefficient_B, expand, interpolate, jump, prediction_target
from tim_jax.transitions.loss import weighted
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.shares import exact, spread
from tim_jax.transitions.tangent import UNUSED as OF_TANGENTS
from tim_jax.transitions.times import positions
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples, Query

UNUSED = {
    (
        *(f"objective.{name}" for name in ("consistency", "derivative", "epsilon")),
        *(f"times.{name}" for name in ("single_equal", "intervals")),
        *(key for keys in OF_TANGENTS for key in keys),
    ): (
        "objective.name is 'twin_flow', which draws t once, and r by lengths, and whose targets are jumps",
        lambda c: c.objective.name == "twin_flow",
    ),
}
SHORT = 0.05  # the longest of the short jumps, as a share of the way to the data


@dataclasses.dataclass(frozen=True)
class Twin:
    """The targets, and how many examples have which."""

    share_short: float = 0.25  # share of examples with short jumps
    jumps: int = 2  # N, that a jump shall agree with, after a first step along the velocity
    step: float = 0.01  # of that, as a share of the time domain
    ema: str = "slow"  # whose jumps these are: "online" or the name of an EMA
    clip: float = 1.0  # elements of a change of F are kept within ± this
    match_weight: float = 0.5  # of distribution matching

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.jumps < 1:
            raise ValueError(f"objective.twin.jumps is {self.jumps}; it must be at least 1")
        if not 0 < self.step <= 1:
            raise ValueError(f"objective.twin.step is {self.step}; it must lie in (0, 1]")
        if self.clip <= 0:
            raise ValueError(f"objective.twin.clip is {self.clip}; it must be above 0")
        for name in ("share_short", "match_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.twin.{name} is {getattr(self, name)}; it must be at least 0")


@dataclasses.dataclass(frozen=True)
class TwinFlow(Objective):
    """The objective above; batches are multiples of what makes its shares whole numbers of examples."""

    twin: Twin = Twin()  # twin_flow alone has it

    @property
    def batch_multiple(self) -> int:
        shares = (self.times.share_equal, self.times.share_min, self.twin.share_short)
        return math.lcm(*(exact(share).denominator for share in shares))

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().networks, self.twin.ema]))

    def check(self) -> None:
        super().check()
        self.twin.check()
        times, transport = self.times, self.transport
        for name in ("share_equal", "share_min"):
            if not 0 < getattr(times, name) < 1:
                raise ValueError(
                    f"times.{name} is {getattr(times, name)}; it must lie in (0, 1) for twin_flow, with fakes and "
                    "jumps that make them"
                )
        if times.share_equal + times.share_min + self.twin.share_short > 1 + 1e-9:
            raise ValueError(
                f"objective.twin.share_short is {self.twin.share_short}; it must be at most 1 in sum with "
                f"times.share_equal {times.share_equal} and times.share_min {times.share_min}"
            )
        if self.velocity != "data":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'data' for twin_flow")
        if self.input_guidance.active:
            raise ValueError(
                f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1 for twin_flow"
            )
        check_negative_times(transport)

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (t, r), each (count,); fakes have r = t here, and negative times where the network sees them."""
        t_key, length_key = jax.random.split(key)
        low, high = self.transport.T_min, self.transport.T_max
        equal, minimal = self.times.assign(count)
        others = np.flatnonzero(~(equal | minimal))
        short = np.zeros(count, bool)
        share = exact(self.twin.share_short) * count
        short[others] = spread(share / max(len(others), 1), len(others))
        t = self.times.draw_t(self.transport, t_key, (count,), positions)
        length = jax.random.uniform(length_key, (count,), t.dtype) * jnp.where(short, SHORT, 1.0) * (t - low)
        r = jnp.where(equal, t, jnp.clip(t - length, low, t))
        return jnp.where(minimal, high, t), jnp.where(minimal, low, r)

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert key is not None, "noise of fakes is drawn with a key"
        transport, (equal, minimal) = self.transport, self.times.assign(len(t))
        split, whole = split_examples(equal, self.shards), split_examples(minimal[~equal], self.shards)
        assert split.selected and whole.selected, "batches are multiples of `batch_multiple`"
        base = prediction_target(transport, examples.x, examples.noise, t)
        if self.guidance.active:
            x_t = interpolate(transport, examples.x, examples.noise, t)
            base = self.guidance(nets[self.guidance.ema], transport, x_t, t, examples, base, step)
        fakes, jumps = (split.take(Group(examples, t, r, base), group) for group in split.groups)
        fake_noise, again, again_t = self.fresh(key, fakes.examples.x, whole.take(jumps.examples.x, whole.selected))
        fakes = self.with_fakes(nets["online"], fakes, fake_noise)

        of_fakes, of_jumps = nets["online"]((self.twin_of(fakes), self.jump_of(jumps)))
        target = self.target(nets[self.twin.ema], jumps, jax.lax.stop_gradient(of_jumps.F))
        no_fakes, no_jumps = (jnp.zeros_like(group.t) for group in (fakes, jumps))
        predictions = [Prediction(of_fakes, fakes.base, no_fakes), Prediction(of_jumps, target, no_jumps)]
        losses, metrics = weighted(self, split, [fakes, jumps], predictions, examples, t, r, step)

        matched = self.match(nets["online"], *whole.take((jumps, of_jumps.F), whole.selected), again, again_t)
        matched /= self.times.share_min  # so that the mean over the batch is that over these examples
        parts = [matched, no_jumps[: len(no_jumps) - len(matched)]][: len(whole.groups)]
        matched = split.merge([no_fakes, whole.merge(parts)])
        return losses + self.twin.match_weight * matched, metrics | dict(match=matched)

    def fresh(self, key: jax.Array, fakes: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the noise of fakes, and noise and times with which samples of the jumps T → 0 are noised again."""
        fake_key, noise_key, t_key = jax.random.split(key, 3)
        t = self.times.draw_t(self.transport, t_key, (len(whole),), positions(whole))
        draw = jax.random.normal
        return draw(fake_key, fakes.shape, fakes.dtype), draw(noise_key, whole.shape, whole.dtype), t

    def jump_of(self, group: Group) -> Query:
        """Returns the jumps t → r of a group."""
        x_t = interpolate(self.transport, group.examples.x, group.examples.noise, group.t)
        return query(self.transport, x_t, group.t, group.r, group.examples.condition, group.examples.keys)

    def twin_of(self, group: Group) -> Query:
        """Returns a group at r = t, with negative times."""
        here = self.jump_of(group)
        t = self.transport.c_noise(-group.t)
        return here._replace(t=t, r=t)

    def data(self, x_t: jax.Array, F: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the data (B, …) that jumps t → T_min by F (B, …) end in, without gradient."""
        end = jnp.full_like(t, self.transport.T_min)
        return jax.lax.stop_gradient(jump(self.transport, x_t, F, t, end) / self.transport.alpha(expand(end, x_t)))

    def with_fakes(self, net: Net, group: Group, noise: jax.Array) -> Group:
        """Returns the group with what jumps from noise (B, …) end in for data, and the velocity of it for target."""
        transport, t = self.transport, jnp.full_like(group.t, self.transport.T_max)
        x_T = expand(transport.sigma(t), noise) * noise
        end = jnp.full_like(t, transport.T_min)
        (output,) = net((query(transport, x_T, t, end, group.examples.condition),))
        x = self.data(x_T, output.F, t)
        base = prediction_target(transport, x, group.examples.noise, group.t)
        return group._replace(examples=group.examples._replace(x=x), base=base)

    def target(self, net: Net, group: Group, F: jax.Array) -> jax.Array:
        """Returns F* (B, …) of a first step along the velocity and N jumps, without gradient.

        Args:
            net: Makes the jumps.
            group: The examples; their `base` is the velocity, which may be guided.
            F: The network's own prediction (B, …), without gradient.
        """
        transport, (examples, t, r, base) = self.transport, group
        x_t = x = interpolate(transport, examples.x, examples.noise, t)
        moves = r < t
        length = jnp.minimum(self.twin.step * (transport.T_max - transport.T_min), t - r)
        now = middle = t - length
        x = jump(transport, x_t, base, t, middle)
        for n in range(1, self.twin.jumps + 1):
            then = middle + n / self.twin.jumps * (r - middle)
            (output,) = net((query(transport, x, now, then, examples.condition, examples.keys),))
            x, now = jump(transport, x, output.F, now, then), then
        A, B = (f(transport, expand(t, x), expand(r, x)) for f in (coefficient_A, coefficient_B))
        # κ (F⁻ − F_end), which is F⁻ − base for a jump of no more than the first step.
        change = (A * x_t + B * F - x) * jnp.sign(B) / expand(jnp.where(moves, length, 1.0), x)
        change = jnp.where(expand(moves, x), change, F - base)
        return jax.lax.stop_gradient(F - jnp.clip(change, -self.twin.clip, self.twin.clip))

    def match(self, net: Net, group: Group, F: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the weighted errors (B,) of distribution matching.

        Args:
            net: The network at t and −t.
            group: Jumps from noise to T_min.
            F: Their predictions (B, …), with gradient.
            noise, t: Noise (B, …) and times (B,) with which their ends are noised again.
        """
        x_T = interpolate(self.transport, group.examples.x, group.examples.noise, group.t)
        again = group._replace(examples=group.examples._replace(x=self.data(x_T, F, group.t), noise=noise), t=t, r=t)
        fake, real = net((self.twin_of(again), self.jump_of(again)))
        G = jnp.clip(fake.F - real.F, -self.twin.clip, self.twin.clip)
        error = example_mean((F - jax.lax.stop_gradient(F - G)) ** 2)
        return self.adaptive_weight(error, F) * error


def check_negative_times(transport: Transport) -> None:
    """Raises ValueError for a transport whose network cannot see −t: c_noise(−t) must be −c_noise(t)."""
    with jax.ensure_compile_time_eval():  # losses are checked where they are traced
        t = jnp.linspace(0.1, 1.0, 4) * transport.T_max
        odd = bool((transport.c_noise(-t) == -transport.c_noise(t)).all())
    if not odd:
        raise ValueError(
            f"transport.name is {transport.name!r}; it must be one that shows networks t itself, such as 'ot_fm', for "
            "twin_flow, since this one has no negative times"
        )
