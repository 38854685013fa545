"""Preferences: pairs of a winner and a loser, and rewards (Flow-DPO and Flow-RWR, arXiv 2501.13918).

Let e be the squared error of F(x_t, t, t) as a prediction of α̂_t x + σ̂_t ε, e_ref that of the reference, a frozen
network that training starts from, and Δ = e − e_ref. Winner x and loser x′, of one condition and at one time, have the
loss of direct preference optimisation in which −Δ stands for the likelihood ratio log p/p_ref:

    −log σ(−½ β_t [Δ(x, ε) − Δ(x′, ε′)])

β holds the network to the reference. By the derivation it weighs errors of the noise, (α_t/C_t)² e with C_t of
`jump.py`, which makes β_t = β (1 − t)² for OT-FM; the paper prefers a constant β. Reward-weighted regression is any
objective whose losses are multiplied by e^{reward/τ}.

Only r = t is compared. Of a flow map the velocity is tuned this way, and jumps to r < t follow as far as both share
weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction
from tim_jax.transitions.consistency import example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import determinant, interpolate
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.kinds import TARGET_KEYS
from tim_jax.types import Examples, Output

UNUSED = {
    (*TARGET_KEYS, "teacher.guidance"): (
        "objective.name is 'flow_dpo', which compares errors alone",
        lambda c: c.objective.name == "flow_dpo",
    ),
}
ERRORS = ("F", "noise")


@dataclasses.dataclass(frozen=True)
class Preference:
    """How the errors of a pair are compared."""

    beta: float = 500.0  # β, that holds the network to the reference
    total: bool = False  # errors are sums over the values of an example, for which β is smaller; False: means
    error: str = "F"  # that β weighs: "F", for which β_t is constant, or "noise"
    shared_noise: bool = True  # of winner and loser; False: each has its own

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.beta <= 0:
            raise ValueError(f"objective.preference.beta is {self.beta}; it must be above 0")
        if self.error not in ERRORS:
            raise ValueError(f"objective.preference.error is {self.error!r}; it must be one of {', '.join(ERRORS)}")


@dataclasses.dataclass(frozen=True)
class FlowDPO(Objective):
    """The loss above; nets["teacher"] is the reference, by default what the run starts from."""

    inputs: ClassVar[tuple[str, ...]] = ("loser",)
    preference: Preference = Preference()  # flow_dpo alone has it

    @property
    def teachers(self) -> tuple[str, ...]:
        return ("teacher",)

    def check(self) -> None:
        super().check()
        self.preference.check()
        for key, value, only in (
            ("objective.velocity", self.velocity, "data"),
            ("objective.coupling.task", self.coupling.task, "none"),
            ("times.share_equal", self.times.share_equal, 1.0),
            ("teacher.guidance", self.teacher.guidance, 1.0),
        ):
            if value != only:
                raise ValueError(f"{key} is {value!r}; it must be {only!r} for flow_dpo")

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        transport, pair = self.transport, self.pair(examples, key)
        queries = tuple(
            query(transport, interpolate(transport, each.x, each.noise, t), t, t, each.condition, each.keys)
            for each in pair
        )
        outputs = nets["online"](queries)
        references = jax.lax.stop_gradient(nets["teacher"](tuple(each._replace(key=None) for each in queries)))
        (win, lose), (win_ref, lose_ref) = (
            [self.error(output, each, t) for output, each in zip(answers, pair, strict=True)]
            for answers in (outputs, references)
        )
        numbers = examples.x[0].size if self.preference.total else 1
        margin = -0.5 * self.beta(t) * numbers * ((win - win_ref) - (lose - lose_ref))
        metrics = dict(error=win, denoising=win, alignment=jnp.zeros_like(t), tangent=jnp.zeros_like(t), t=t, r=t)
        metrics |= dict(level_t=transport.level(t), level_r=transport.level(t))
        return jax.nn.softplus(-margin), metrics | dict(margin=margin, accuracy=(margin > 0).astype(margin.dtype))

    def pair(self, examples: Examples, key: jax.Array | None) -> tuple[Examples, Examples]:
        """Returns winners and losers as examples; the key is of the losers' noise, where they have their own."""
        assert examples.loser is not None, "examples bring losers"
        noise = examples.noise
        if not self.preference.shared_noise:
            assert key is not None, "noise of losers is drawn with a key"
            noise = draw_noise(self.transport.augmented_dimensions, key, noise.shape, noise.dtype)
        return examples, examples._replace(x=examples.loser, noise=noise)

    def error(self, output: Output, examples: Examples, t: jax.Array) -> jax.Array:
        """Returns the mean squared errors (B,) of F."""
        target = prediction.target(self.transport, examples.x, examples.noise, t)
        return example_mean((output.F - target) ** 2)

    def beta(self, t: jax.Array) -> jax.Array:
        """Returns β_t, elementwise."""
        if self.preference.error == "F":
            return jnp.full_like(t, self.preference.beta)
        return self.preference.beta * (self.transport.alpha(t) / determinant(self.transport, t)) ** 2


@dataclasses.dataclass(frozen=True)
class RewardWeighted(Objective):
    """An Objective whose losses are multiplied by e^{reward/τ}: it needs no reference, and has any times."""

    inputs: ClassVar[tuple[str, ...]] = ("reward",)
    reward_temperature: float = 1.0  # τ of e^{reward/τ}; reward_weighted_regression alone has it

    def check(self) -> None:
        super().check()
        if self.reward_temperature <= 0:
            raise ValueError(f"objective.reward_temperature is {self.reward_temperature}; it must be above 0")

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert examples.reward is not None, "examples bring rewards"
        loss, metrics = super().loss(nets, examples, t, r, step, key)
        return jnp.exp(examples.reward / self.reward_temperature) * loss, metrics
