"""Flow-DPO and reward-weighted regression: golden numbers (tests/golden/README.md), and what must hold of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.probe import OT_FM, TOLERANCE, as_net, examples, gradients, largest_difference, weights
from tests.helpers.waves import LATE, SHAPE, every_transport, plain_times, random, rows_of, wave
from tim_jax.transitions.jump import interpolate, prediction_target
from tim_jax.transitions.objectives.kinds import of_kind
from tim_jax.transitions.objectives.preference import Preference, RewardWeighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Output

CASES = [f"{kind}/{beta}" for kind in ("mean_shared", "sum_shared", "sum_own") for beta in ("constant", "scheduled")]


@pytest.mark.parametrize("case", CASES)
def test_flow_dpo(case, golden, x64, monkeypatch):
    arrays = golden("preference.npz")
    of = {name: arrays[f"dpo/{case}/{name}"] for name in ("rows", "win_gap", "lose_gap", "beta")}
    kind, schedule = case.split("/")
    preference = Preference(
        beta=float(of["beta"]),
        total=kind.startswith("sum"),
        error="noise" if schedule == "scheduled" else "F",
        shared_noise=kind.endswith("shared"),
    )
    noise = jnp.asarray(arrays["noise_lose"])
    monkeypatch.setattr("tim_jax.transitions.objectives.preference.draw_noise", lambda *_: noise)
    objective = dataclasses.replace(OBJECTIVES["flow_dpo"](OT_FM), preference=preference)
    objective.check()
    assert OBJECTIVES["flow_dpo"](OT_FM).preference == Preference(beta=float(arrays["dpo/mean_shared/constant/beta"]))
    rows = examples(arrays["x_win"], arrays["noise"], arrays["labels"])._replace(loser=jnp.asarray(arrays["x_lose"]))
    t = jnp.asarray(arrays["t"])

    def mean(params):
        nets = {"online": as_net(params), "teacher": as_net(weights(arrays, "reference/"))}
        losses, metrics = objective.loss(nets, rows, t, t, LATE, jax.random.key(0))
        margin = -0.5 * objective.beta(t) * (of["win_gap"] - of["lose_gap"])
        return losses.mean(), (losses, metrics["margin"] - margin)

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
    error = largest_difference((found, grads), ((of["rows"], np.zeros(6)), gradients(arrays, f"dpo/{case}")))
    print(f"{case}: {error:.1e}")
    assert error < TOLERANCE


def test_reward_weighted_regression(golden, x64):
    arrays = golden("preference.npz")
    objective, t = OBJECTIVES["reward_weighted_regression"](OT_FM), jnp.asarray(arrays["t"])
    rows = examples(arrays["x_win"], arrays["noise"], arrays["labels"])._replace(reward=jnp.asarray(arrays["reward"]))

    def mean(params):
        losses, _ = objective.loss({"online": as_net(params)}, rows, t, t, LATE)
        return losses.mean(), losses

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(weights(arrays))
    error = largest_difference((found, grads), (arrays["rwr/rows"], gradients(arrays, "rwr")))
    print(f"rwr: {error:.1e}")
    assert error < TOLERANCE


def moved(theta):
    """A network whose output moves by θ in some direction."""
    return lambda queries: tuple(Output(jnp.cos(q.x_t) + theta * wave(q.x_t, q.t, q.r)) for q in queries)


def slope_and_loss(objective, rows, t, theta=0.0):
    """(d loss/dθ, loss), each (B,), with the network at θ = 0 for reference."""

    def losses(theta):
        nets = {"online": moved(theta), "teacher": moved(0.0)}
        return objective.loss(nets, rows, t, t, LATE, jax.random.key(0))[0]

    loss, slope = jax.jvp(losses, (theta,), (1.0,))
    return slope, loss


@every_transport
@pytest.mark.parametrize("error", ["F", "noise"])
def test_a_network_that_is_its_reference_has_log_2_and_a_pair_pulls_the_other_way_when_it_is_swapped(
    error, transport, x64
):
    transport = plain_times(transport)
    objective = dataclasses.replace(OBJECTIVES["flow_dpo"](transport), preference=Preference(beta=2.0, error=error))
    objective.check()
    t, _ = objective.draw(jax.random.key(1), SHAPE[0], positions=4)
    t = jnp.minimum(t, 0.9 * transport.T_max)
    x, loser, rows = random(0), random(1), rows_of(random(0), random(2))
    slope, loss = slope_and_loss(objective, rows._replace(x=x, loser=loser), t)
    swapped, other = slope_and_loss(objective, rows._replace(x=loser, loser=x), t)
    np.testing.assert_allclose(loss, jnp.log(2.0), rtol=1e-14)
    np.testing.assert_allclose(swapped, -slope, rtol=1e-12)
    assert jnp.abs(slope).min() > 0
    # Away from the reference both losses are of one margin, log(1 + e^{−z}) and log(1 + e^z).
    (_, loss), (_, other) = (
        slope_and_loss(objective, rows._replace(x=a, loser=b), t, 0.3) for a, b in ((x, loser), (loser, x))
    )
    np.testing.assert_allclose(jnp.exp(-loss) + jnp.exp(-other), 1.0, rtol=1e-12)
    assert jnp.abs(loss - other).min() > 0


@every_transport
def test_errors_of_the_noise_are_what_the_schedule_weighs(transport, x64):
    """β_t e = β |ε̂ − ε|², ε̂ what a prediction makes of the state, whose data and noise are given."""
    transport = plain_times(transport)
    objective = dataclasses.replace(OBJECTIVES["flow_dpo"](transport), preference=Preference(3.0, error="noise"))
    t = jnp.linspace(0.1, 0.9, SHAPE[0]) * transport.T_max
    x, noise, F = random(0), random(1), random(2)
    x_t, column = interpolate(transport, x, noise, t), t[:, None, None, None]
    alpha, alpha_hat, sigma, sigma_hat = (
        f(column) for f in (transport.alpha, transport.alpha_hat, transport.sigma, transport.sigma_hat)
    )
    guessed = (alpha * F - alpha_hat * x_t) / (alpha * sigma_hat - alpha_hat * sigma)
    error = ((F - prediction_target(transport, x, noise, t)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(objective.beta(t) * error, 3 * ((guessed - noise) ** 2).mean((1, 2, 3)), rtol=1e-9)


def test_losers_have_noise_of_their_own_where_it_is_not_shared(x64):
    objective = OBJECTIVES["flow_dpo"](plain_times("ot_fm"))
    rows, t = rows_of(random(0), random(1))._replace(loser=random(0)), jnp.full(SHAPE[0], 0.5)
    slope, _ = slope_and_loss(objective, rows, t)
    np.testing.assert_array_equal(slope, 0.0)  # of a pair of equals
    objective = dataclasses.replace(objective, preference=Preference(shared_noise=False))
    slope, _ = slope_and_loss(objective, rows, t)
    assert jnp.abs(slope).min() > 0


@pytest.mark.parametrize("name", ["flow_matching", "tim"])
def test_without_reward_it_is_the_objective_itself_and_a_reward_multiplies_its_losses(name, x64):
    """Also with r ≠ t: the losses of any objective may be weighted, as those of tim here."""
    plain = OBJECTIVES[name](plain_times("ot_fm"))
    weighted = dataclasses.replace(of_kind(RewardWeighted, plain), reward_temperature=2.0)
    weighted.check()
    rows = rows_of(random(0), random(1))
    t, r = plain.draw(jax.random.key(0), SHAPE[0], positions=4)
    assert (t != r).any() == (name == "tim")

    def losses(objective, rows):
        return objective.loss({"online": moved(0.3)}, rows, t, r, LATE)[0]

    reward, expected = jnp.linspace(-1, 1, SHAPE[0]), losses(plain, rows)
    np.testing.assert_array_equal(losses(weighted, rows._replace(reward=jnp.zeros(SHAPE[0]))), expected)
    np.testing.assert_allclose(losses(weighted, rows._replace(reward=reward)), jnp.exp(reward / 2) * expected)
