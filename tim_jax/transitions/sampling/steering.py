"""Steering: samples drawn towards what a loss on their estimate x̂ asks for, in the loop of `sampler.sample`.

x̂ is what the prediction F at a state x_t stands for, or, with `estimate` "end", the end of one more jump to data,
f_{t→T_min}(x_t). With y the plan's own next state, residual(x̂) = A(x̂) − y of a measurement, and L = ½ ‖residual‖² of
each image, or ‖residual‖ ("norm"), or −reward:

    flowchef    y − s ∂L/∂x̂                               gradient skipped (FlowChef, arXiv 2412.00100)
    dps         y − s ∂L(x̂(x_t))/∂x_t                     through the network (DPS, arXiv 2209.14687)
    resample    (1 − w) y + w α_r x* + √w σ_r ξ            hard consistency, renoised (ReSample, arXiv 2307.08123)

In `resample` x* is the nearest image to x̂ with residual 0, w = γ(λ_t² − λ_r²)/(1 + γ(λ_t² − λ_r²)) with λ = σ/α is
ReSample's σ_s²/(σ_s² + σ_r²) written for any transport, and the last step ends at x* itself. `flowchef` takes gradients
of x̂ itself, which no parametrisation of F changes; for OT-FM this is the gradient with a constant velocity. `dps` takes
the plan's own step, of an ODE or, in the ancestral form, of an SDE with its fresh noise. The published norm of DPS is
that of a whole batch, which couples its images; here each has its own. Published code of the flow form also subtracts
the gradient from the velocity, and so moves the state once more, against it, by (t − r) s ∂L: that is left out.

With several `iterations` the two gradients move x_t before the step, each by another evaluation, so that one step, too,
can be led to its aim; for `resample` they are Gauss–Newton's, of which a linear measurement needs one.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.operators import OPERATORS, parse
from tim_jax.transitions.rewards import OF_SCORES, OF_TARGET, REWARDS

if TYPE_CHECKING:
    from tim_jax.transitions.sampling.plans import HostTransport

LOSSES = ("squared", "norm")
ESTIMATES = ("prediction", "end")
CONJUGATE_STEPS = 20  # of conjugate gradients for x*, at most; one suffices where A selects or averages

Loss: TypeAlias = Callable[[jax.Array], jax.Array]  # x̂ (B, …) → L (B,)
Residual: TypeAlias = Callable[[jax.Array], jax.Array]  # x̂ (B, …) → (B, …)

_OFF = ("sampling.steering.operator is ''", lambda c: not c.sampling.steering.operator)
UNUSED = {
    (
        "sampling.steering.method", "sampling.steering.scale", "sampling.steering.loss", "sampling.steering.estimate",
        "sampling.steering.iterations", "sampling.steering.gamma", "sampling.steering.feather",
        "sampling.steering.classifier",
    ): _OFF,
    ("sampling.steering.scale", "sampling.steering.loss"): (
        "sampling.steering.method is 'resample'",
        lambda c: c.sampling.steering.method == "resample",
    ),
    ("sampling.steering.gamma",): (
        "sampling.steering.method is not 'resample'",
        lambda c: c.sampling.steering.method != "resample",
    ),
    ("sampling.steering.loss",): (
        "sampling.steering.operator is a reward",
        lambda c: c.sampling.steering.operator in REWARDS | OF_SCORES | OF_TARGET,
    ),
    ("sampling.steering.classifier",): (
        "sampling.steering.operator is not one that a classifier judges",
        lambda c: c.sampling.steering.operator not in OF_SCORES | OF_TARGET,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Steering:
    """Settings of the above."""

    # What is asked of samples: a name in OPERATORS, with numbers behind it, such as super_resolution:4; or a reward:
    # classifier, similarity, image_similarity, or a name in REWARDS. "": nothing, which is so wherever nothing says
    # what was measured.
    operator: str = ""
    method: str = "flowchef"  # gradient skipped: flowchef; through the network: dps; hard consistency: resample
    scale: float = 1.0  # s, the length of a step of the gradient
    loss: str = "squared"  # of the residual of an image: squared, or norm: as DPS has it
    estimate: str = "prediction"  # of the image: x̂ of the prediction, or the end of one more jump to data: end
    iterations: int = 1  # at each time; for resample, of Gauss and Newton's
    gamma: float = 40.0  # γ of resample: how soon the plan's own state is left for the renoised one
    feather: float = 0.0  # standard deviation in pixels by which the mask is blurred
    classifier: str = ""  # the file of the classifier that judges, as python -m tim_jax.classify writes it

    @property
    def active(self) -> bool:
        """Whether anything is asked of samples."""
        return bool(self.operator)

    @property
    def is_reward(self) -> bool:
        """Whether the loss is a reward, not that of a residual."""
        return self.operator in OF_SCORES | OF_TARGET | REWARDS

    @property
    def measures(self) -> bool:
        """Whether the loss is that of a measurement of images."""
        return self.active and not self.is_reward

    @property
    def through_network(self) -> bool:
        """Whether the gradient goes through the network."""
        return self.active and self.method == "dps"

    @property
    def passes(self) -> int:
        """How many times an evaluation of the plan is made."""
        if not self.active:
            return 1
        moves = 1 if self.method == "resample" else self.iterations
        # The plan's own prediction is made once; with "end" each move takes one of the jump to data besides.
        return moves if self.estimate == "prediction" else 1 + moves

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for key, table in (("method", METHODS), ("loss", LOSSES), ("estimate", ESTIMATES)):
            if getattr(self, key) not in table:
                raise ValueError(
                    f"sampling.steering.{key} is {getattr(self, key)!r}; it must be one of {', '.join(table)}"
                )
        if self.iterations < 1:
            raise ValueError(f"sampling.steering.iterations is {self.iterations}; it must be at least 1")
        for key in ("scale", "gamma", "feather"):
            if not 0 <= getattr(self, key) < np.inf:
                raise ValueError(f"sampling.steering.{key} is {getattr(self, key)}; it must be at least 0, and finite")
        if not self.active:
            return
        where = f"sampling.steering.operator is {self.operator!r}"
        try:
            name, _ = parse(self.operator)
        except ValueError as error:
            raise ValueError(f"{where}; {error}") from None
        if name not in OPERATORS and not self.is_reward:
            raise ValueError(f"{where}; it must be one of {', '.join([*OPERATORS, *OF_SCORES, *OF_TARGET, *REWARDS])}")
        if self.is_reward and self.method == "resample":
            raise ValueError(
                "sampling.steering.method is 'resample'; it must be flowchef or dps for a reward, which has no residual"
            )


class Weights(NamedTuple):
    """What the host knows of the n evaluations of a plan, each (n,).

    Attributes:
        of_state, of_F: x̂ as weights of the state and of the prediction that it is made of.
        end: The time to which that prediction jumps with `estimate` "end", as the network sees it.
        alpha, sigma: Those at the time of the next state.
        renoised: The weight w of `resample`.
    """

    of_state: np.ndarray
    of_F: np.ndarray
    end: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    renoised: np.ndarray


def weights(steering: Steering, host: "HostTransport", times: np.ndarray) -> Weights:
    """Returns those of a plan of one evaluation a step, along times (n + 1,) that fall."""
    t, r = times[:-1], times[1:]
    last = np.full_like(t, times[-1])
    if steering.estimate == "end":
        of_state, of_F = host.coefficient_A(t, last) / host.alpha(last), host.coefficient_B(t, last) / host.alpha(last)
    else:
        C = host.determinant(t)
        of_state, of_F = host.sigma_hat(t) / C, -host.sigma(t) / C
    with np.errstate(invalid="ignore"):
        odds = steering.gamma * (host.ratio(t) ** 2 - host.ratio(r) ** 2)
        renoised = np.where(np.isinf(odds), 1.0, odds / (1 + odds))
    renoised[-1] = 1.0
    return Weights(of_state, of_F, host.c_noise(last), host.alpha(r), np.append(host.sigma(r[:-1]), 0.0), renoised)


class Steer(NamedTuple):
    """What steers a batch.

    Attributes:
        settings: The settings.
        loss: x̂ → the loss of each image, which looks at no other.
        residual: x̂ → what is to be 0 of a measurement; None for rewards.
        scale: In place of that of the settings, one number or (B,).
    """

    settings: Steering
    loss: Loss
    residual: Residual | None = None
    scale: float | jax.Array | None = None


def of_residual(settings: Steering, residual: Residual, scale: float | jax.Array | None = None) -> Steer:
    """Returns what steers by a measurement."""

    def loss(x: jax.Array) -> jax.Array:
        square = jnp.square(residual(x)).reshape(len(x), -1).sum(axis=1)
        if settings.loss == "squared":
            return square / 2
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    return Steer(settings, loss, residual, scale)


class At(NamedTuple):
    """One evaluation of a plan.

    Attributes:
        known: The weights of this evaluation.
        x: The state (B, …).
        predict: x → the plan's own prediction F.
        predict_end: x → the prediction of the jump to data.
        advance: (x, F) → the plan's own next state.
        fresh: Draws standard normal noise (B, …).
    """

    known: Weights
    x: jax.Array
    predict: Callable[[jax.Array], jax.Array]
    predict_end: Callable[[jax.Array], jax.Array]
    advance: Callable[[jax.Array, jax.Array], jax.Array]
    fresh: Callable[[], jax.Array]

    def estimate(self, steer: Steer, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns x̂ at a state, and the prediction that it is made of."""
        F = self.predict_end(x) if steer.settings.estimate == "end" else self.predict(x)
        return self.known.of_state * x + self.known.of_F * F, F


Stepped: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]  # the state that was predicted at, F, and the next state
Gradient: TypeAlias = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # x → gradient, the prediction of x̂


def flowchef(steer: Steer, at: At) -> Stepped:
    """Gradient skipped: that of x̂ stands for that of the state."""

    def gradient(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_hat, F = at.estimate(steer, x)
        return jax.grad(lambda x: steer.loss(x).sum())(x_hat), F

    return _descend(steer, at, gradient)


def dps(steer: Steer, at: At) -> Stepped:
    """The gradient of the state, through the network."""

    def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_hat, F = at.estimate(steer, x)
        return steer.loss(x_hat).sum(), F  # of images that do not depend on one another: the gradient of each

    return _descend(steer, at, jax.grad(loss, has_aux=True))


def resample(steer: Steer, at: At) -> Stepped:
    """Hard consistency: the nearest x̂ that agrees with the measurement, and noise anew."""
    assert steer.residual is not None, "a measurement"
    x_hat, F = at.estimate(steer, at.x)
    F = at.predict(at.x) if steer.settings.estimate == "end" else F
    x_star = consistent(steer.residual, x_hat, steer.settings.iterations)
    w, own = at.known.renoised, at.advance(at.x, F)
    return at.x, F, (1 - w) * own + w * at.known.alpha * x_star + jnp.sqrt(w) * at.known.sigma * at.fresh()


def _descend(steer: Steer, at: At, gradient: Gradient) -> Stepped:
    """Moves the state by all gradients but the last, and the next state by that one."""
    scale = steer.settings.scale if steer.scale is None else steer.scale
    s = jnp.reshape(jnp.asarray(scale, at.x.dtype), (-1, *[1] * (at.x.ndim - 1)))
    x = jax.lax.fori_loop(0, steer.settings.iterations - 1, lambda _, x: x - s * gradient(x)[0], at.x)
    g, F = gradient(x)
    F = at.predict(x) if steer.settings.estimate == "end" else F
    return x, F, at.advance(x, F) - s * g


METHODS: dict[str, Callable[[Steer, At], Stepped]] = {"flowchef": flowchef, "dps": dps, "resample": resample}


def consistent(residual: Residual, x: jax.Array, iterations: int = 1) -> jax.Array:
    """Returns the nearest image to x (B, …) with residual 0, by Gauss and Newton's iterations.

    Each is x − Jᵀ(JJᵀ)⁻¹ residual(x), by conjugate gradients in the space of residuals, of each image for itself. Where
    no image has residual 0 it is the nearest of those of least squares.
    """
    for _ in range(iterations):
        r, pull = jax.vjp(residual, x)

        def normal(u: jax.Array, x: jax.Array = x, pull: Callable[[jax.Array], tuple[jax.Array]] = pull) -> jax.Array:
            product: jax.Array = jax.jvp(residual, (x,), pull(u))[1]
            return product

        (change,) = pull(conjugate_gradients(normal, r))
        x = x - change
    return x


def conjugate_gradients(A: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
    """Solves A u = b, A positive semi-definite, for each b (B, …) by itself; stops where it is solved to rounding."""

    def dot(u: jax.Array, v: jax.Array) -> jax.Array:
        return (u * v).reshape(len(u), -1).sum(axis=1).reshape(-1, *[1] * (u.ndim - 1))

    enough = (4 * float(np.finfo(b.dtype).eps)) ** 2 * dot(b, b)

    def iterate(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, r, p, rr = carry
        Ap = A(p)
        curvature = dot(p, Ap)
        goes_on = (rr > enough) & (curvature > 0)
        length = jnp.where(goes_on, rr / jnp.where(goes_on, curvature, 1.0), 0.0)
        u, r = u + length * p, r - length * Ap
        new = dot(r, r)
        p = jnp.where(goes_on, r + new / jnp.where(goes_on, rr, 1.0) * p, p)
        return u, r, p, jnp.where(goes_on, new, rr)

    u: jax.Array = jax.lax.fori_loop(0, CONJUGATE_STEPS, iterate, (jnp.zeros_like(b), b, b, dot(b, b)))[0]
    return u
