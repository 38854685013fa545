"""The objective: published losses and gradients, times, weights, groups, first step of every transport."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tim_jax.codecs.official import from_official
from tim_jax.networks import TiM
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.groups import split_examples
from tim_jax.transitions.guidance import TargetGuidance
from tim_jax.transitions.jump import interpolate, prediction_target
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.shares import spread
from tim_jax.transitions.times import DISTRIBUTIONS, Times
from tim_jax.transitions.weights import (
    DIRECTION_AXES,
    KERNELS,
    OF_SHARES,
    SCALES,
    AdaptiveWeight,
    TimeWeight,
    alignment_error,
    direction_error,
)
from tim_jax.types import Examples, Output, Query

every_transport = pytest.mark.parametrize("transport", [make() for make in TRANSPORTS.values()], ids=TRANSPORTS)
TINY = TiM(
    patch_size=2, channels=4, width=64, depth=3, heads=4, bottleneck=24, encoder_depth=2, z_dim=16, projector_width=32,
    num_classes=10, rope_order="official",
)  # fmt: skip


def make_objective(transport, **changes):
    settings = dict(
        transport=transport,
        times=Times(transport.distribution, transport.P_mean, transport.P_std),
        weight=TimeWeight(scale="noise_to_signal"),
    )
    return Objective(**settings | changes)


def make_rows(x, noise, label, null_label=10, **more):
    condition, null = {"label": label}, {"label": jnp.full_like(label, null_label)}
    return Examples(x, noise, condition, null, is_null=label == null_label, **more)


def golden_case(golden, path, dtype):
    """Network, parameters and rows of the published loss, its rows reordered so that every other has r = t."""
    arrays = golden("loss.npz")
    shape = jax.eval_shape(
        lambda: TINY.init(jax.random.key(0), (Query(jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1),
                                                    {"label": jnp.zeros(1, jnp.int32)}),))
    )  # fmt: skip
    state = load_file(path)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), from_official(state, nn.unbox(shape["params"])))
    order = np.array([2, 0, 3, 1])
    image = lambda name: jnp.asarray(arrays[name].transpose(0, 2, 3, 1)[order], dtype)  # noqa: E731
    rows = make_rows(image("x"), image("z"), jnp.asarray(arrays["y"][order], jnp.int32),
                     features=jnp.asarray(arrays["h_target"][order], dtype))  # fmt: skip
    return arrays, order, params, rows


@pytest.mark.parametrize("derivative", ["jvp", pytest.param("dde", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ot_fm", pytest.param("trigflow", marks=pytest.mark.slow)])
def test_published_derivative_loss_and_gradients(name, derivative, golden, request, x64):
    path = request.path.parents[1] / "golden" / "c2i_tiny.safetensors"
    arrays, order, params, rows = golden_case(golden, path, jnp.float64)
    expected = {
        key: arrays[f"{name}/{derivative}/{key}"]
        for key in (
            "dF_dt",
            "weighted_loss",
            "denoising_loss",
            "proj_loss",
            "grad_norm",
            "grad_final_bias",
            "grad_qkv_d_0",
        )
    }
    t, r = (jnp.asarray(arrays[f"{name}/{derivative}/{key}"][order], jnp.float64) for key in ("t", "r"))
    network = TINY.clone(dtype=jnp.float64)
    objective = make_objective(
        TRANSPORTS[name](), derivative=derivative, alignment_weight=1.0, weight=TimeWeight("sqrt", "tan"),
        times=Times("uniform", share_equal=0.5, share_min=0.0),
    )  # fmt: skip
    seen = {}

    class Watched(Objective):
        def differentiate(self, *args):
            outputs, output, seen["dF_dt"] = super().differentiate(*args)
            return outputs, output, seen["dF_dt"]

    objective = Watched(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})

    def loss(params):
        nets = {
            "online": lambda queries: network.apply({"params": params}, queries, hidden=True),
            "float32": lambda queries: network.apply({"params": jax.lax.stop_gradient(params)}, queries),
        }
        per_row, metrics = objective.loss(nets, rows, t, r, jnp.int32(0))
        return per_row.mean(), (metrics, seen.pop("dF_dt"))

    (total, (metrics, dF_dt)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    tolerance = {"jvp": 1e-8, "dde": 1e-6}[derivative]

    def close(actual, desired):
        # Small gradients get a bound that is small, too.
        bound = tolerance * min(1.0, 10 * np.abs(desired).max())
        np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=bound)

    moving = order[~objective.times.assign(4)[0]]
    close(dF_dt, expected["dF_dt"].transpose(0, 2, 3, 1)[moving])
    close(metrics["denoising"].mean(), expected["denoising_loss"])
    close(metrics["alignment"].mean(), expected["proj_loss"])
    close(total, expected["weighted_loss"] + expected["proj_loss"])
    flat = jax.tree.leaves(grads)
    close(jnp.sqrt(sum(jnp.sum(g**2) for g in flat)), expected["grad_norm"])
    close(grads["final"]["linear"]["bias"].ravel(), expected["grad_final_bias"])
    qkv_delta = grads["blocks"]["attn"]["qkv_delta"]["kernel"][0]
    close(qkv_delta.reshape(64, 192).T, expected["grad_qkv_d_0"])


@pytest.fixture(scope="module")
def initial():
    """A network and its first parameters."""
    network, time = TINY.clone(z_dim=0), jnp.zeros(1)
    query = Query(jnp.zeros((1, 4, 4, 4)), time, time, {"label": jnp.zeros(1, jnp.int32)})
    return network, nn.unbox(jax.jit(network.init)(jax.random.key(0), (query,)))["params"]


@pytest.mark.slow
@every_transport
@pytest.mark.parametrize("derivative", ["jvp", pytest.param("dde", marks=pytest.mark.nightly)])
def test_first_step_from_zero_output_is_finite(transport, derivative, initial):
    network, params = initial
    rng = np.random.default_rng(0)
    x, noise = jnp.asarray(rng.standard_normal((2, 20, 4, 4, 4)), jnp.float32)
    rows = make_rows(x, noise, jnp.asarray(rng.integers(0, 11, 20), jnp.int32))
    # Every direction axis in one loss, and times at both ends of the domain.
    t, r = Times("uniform", share_equal=0.5, share_min=0.5).draw(transport, jax.random.key(1), 20)
    t = t.at[1].set(transport.T_max).at[3].set(transport.T_min).at[0].set(transport.T_max).at[2].set(transport.T_min)
    r = r.at[3].set(transport.T_min).at[0].set(t[0]).at[2].set(t[2])

    @jax.jit
    def step(params):
        def loss(params):
            net = lambda queries: network.apply({"params": params}, queries)  # noqa: E731
            nets, total = {"online": net, "float32": net}, 0.0
            for direction in ("channels", "image"):
                objective = make_objective(transport, derivative=derivative, direction=direction,
                                           times=Times("uniform", share_equal=0.5, share_min=0.5))  # fmt: skip
                total += objective.loss(nets, rows, t, r, jnp.int32(0))[0].mean()
            return total

        return jax.value_and_grad(loss)(params)

    value, grads = step(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert jnp.abs(grads["final"]["linear"]["kernel"]).max() > 0


@pytest.mark.slow
def test_groups_and_masks_give_the_same_numbers(initial):
    """Where a device's rows times the share is not whole, all rows carry the tangent, and nothing changes."""
    (network, params), rng = initial, np.random.default_rng(0)
    x, noise = jnp.asarray(rng.standard_normal((2, 12, 4, 4, 4)), jnp.float32)
    rows = make_rows(x, noise, jnp.asarray(rng.integers(0, 11, 12), jnp.int32))
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    nets = {"online": jax.jit(lambda queries: network.apply({"params": params}, queries))}
    objective = make_objective(TRANSPORTS["ot_fm"](), times=Times("uniform", share_equal=0.5, share_min=0.1))
    split, masked = (
        dataclasses.replace(objective, shards=shards)(nets, rows, jnp.int32(0), jax.random.key(3)) for shards in (2, 4)
    )
    assert split_examples(objective.times.assign(12)[0], 2).selected == (1, 3, 5)
    assert split_examples(objective.times.assign(12)[0], 4).selected == ()
    equal = np.asarray(split[1]["t"] == split[1]["r"])
    assert equal.sum() == 6
    for name in ("error", "denoising"):
        np.testing.assert_allclose(split[1][name], masked[1][name], rtol=1e-5)
    np.testing.assert_allclose(split[0], masked[0], rtol=1e-5)
    np.testing.assert_allclose(split[1]["tangent"][~equal], masked[1]["tangent"][~equal], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_split_takes_and_merges_every_row_once(share, shards):
    equal = spread(share, 24)
    assert equal.sum() == int(24 * share + 1e-9)
    split = split_examples(equal, shards)
    values = jnp.arange(24.0)
    parts = [split.take(values, group) for group in split.groups]
    np.testing.assert_array_equal(split.merge(parts), values)
    if split.selected:
        np.testing.assert_array_equal(equal[np.asarray(split.take(values, split.selected), int)], True)
        np.testing.assert_array_equal(equal[np.asarray(split.take(values, split.remaining), int)], False)


@every_transport
@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != "max"])
def test_times_stay_in_their_domain_with_exact_shares(transport, distribution):
    times = Times(distribution, 0.0, 3.0, share_equal=0.5, share_min=0.1, shift_reference=64.0)
    if distribution == "log_uniform" and transport.T_min <= 0:
        with pytest.raises(ValueError, match="log_uniform"):
            times.check(transport)
        return
    times.check(transport)
    t, r = times.draw(transport, jax.random.key(0), 400, positions=256)
    assert ((transport.T_min <= r) & (r <= t) & (t <= transport.T_max)).all()
    equal, minimal = times.assign(400)
    assert equal.sum() == 200 and minimal.sum() == 40 and not (equal & minimal).any()
    assert (r == t)[equal].all() and (r[minimal] == np.float32(transport.T_min)).all()
    blocks = equal.reshape(-1, 10)
    assert (blocks == blocks[0]).all()


def quantiles(t):
    return np.quantile(np.asarray(t, np.float64), [0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_have_their_quantiles(distribution):
    from scipy.stats import norm

    transport = TRANSPORTS["ve"]()
    normal = norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9], loc=0.3, scale=0.8)
    share = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    low, high = transport.T_min, transport.T_max
    exact = {
        "logit_normal": low + (high - low) / (1 + np.exp(-normal)),
        "log_normal": np.exp(normal),
        "arctan_normal": low + (high - low) * 2 / np.pi * np.arctan(np.exp(normal)),
        "uniform": low + (high - low) * share,
        "log_uniform": low * (high / low) ** share,
        "u_shaped": low + (high - low) * (0.5 + np.arcsinh((2 * share - 1) * np.sinh(4.0)) / 8),
        "max": np.full(5, high),
    }
    t = Times(distribution, 0.3, 0.8).draw_t(transport, jax.random.key(0), (200_000,))
    np.testing.assert_allclose(quantiles(t), exact[distribution], rtol=0.02)


def test_shift_is_the_published_one():
    transport, times = TRANSPORTS["ot_fm"](), Times("uniform", shift_reference=1024.0)
    t = jnp.linspace(0.0, 1.0, 11)
    s = np.sqrt(4096 / 1024)
    np.testing.assert_allclose(times.shift(transport, t, 4096), s * t / (1 + (s - 1) * t), rtol=1e-6)


@every_transport
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("difference", [True, False])
def test_weights_are_above_zero_and_finite_or_refused(transport, kernel, scale, difference):
    weight = TimeWeight(kernel, scale, difference)
    try:
        weight.check(transport)
    except ValueError as error:
        of_shares = kernel in OF_SHARES and scale != "share" and "'share'" in str(error)
        assert of_shares or (scale in ("tan", "odds") and transport.T_max > 1 and f"{transport.T_max:g}" in str(error))
        return
    t = jnp.linspace(transport.T_min, transport.T_max, 50)
    for r in (t, 0.5 * (t + transport.T_min), jnp.full_like(t, transport.T_min)):
        w = weight(transport, t, r)
        assert jnp.isfinite(w).all() and (w > 0).all()
    np.testing.assert_array_equal(weight(transport, t, t), 1.0)


@pytest.mark.parametrize("scale", ["noise_to_signal", "odds"])
def test_weights_fall_with_the_interval_also_near_noise(scale):
    t, r = jnp.ones(5), jnp.array([0.0, 0.5, 0.9, 0.999, 0.99999])
    w = TimeWeight("reciprocal", scale)(TRANSPORTS["ot_fm"](), t, r)
    assert (jnp.diff(w) >= 0).all() and 0 < w[0] == w[-1] < 0.01


def test_weight_kernels_have_their_published_forms():
    d = jnp.array([0.0, 0.5, 3.0])
    exact = {
        "constant": d * 0 + 1, "reciprocal": 1 / (d + 0.7), "sqrt": (d + 0.7) ** -0.5, "square": (d + 0.7) ** -2.0,
        "soft_min_snr": 1 / (d**2 + 0.49), "sine": jnp.sin(np.pi / 2 * d),
        "tan": 1 + jnp.tan(0.4 * np.pi * (1 - d)),
    }  # fmt: skip
    for name, kernel in KERNELS.items():
        np.testing.assert_allclose(kernel(d, 0.7), exact[name], rtol=1e-6)
    transport, t, r = TRANSPORTS["ot_fm"](), jnp.array([0.8]), jnp.array([0.3])
    by_scale = {
        "time": 0.5,
        "share": 0.5,
        "tan": np.tan(0.8) - np.tan(0.3),
        "odds": 4 - 3 / 7,
        "noise_to_signal": 4 - 3 / 7,
    }
    for scale, d in by_scale.items():
        np.testing.assert_allclose(TimeWeight("sqrt", scale)(transport, t, r), (d + 1) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("axes", [axes(4) for axes in DIRECTION_AXES.values() if axes(4)])
def test_direction_term_at_and_away_from_zero(axes):
    rng = np.random.default_rng(0)
    F, target = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 5)), jnp.float32)
    value, gradient = jax.value_and_grad(lambda F: direction_error(F, target, axes).sum())(jnp.zeros_like(F))
    assert value == 3 and (gradient == 0).all()
    np.testing.assert_allclose(direction_error(F, 3 * F, axes), 0, atol=1e-5)
    np.testing.assert_allclose(direction_error(F, -F, axes), 2, atol=1e-5)
    check = jax.grad(lambda F: direction_error(F, target, axes).sum())(F)
    assert jnp.isfinite(check).all() and jnp.abs(check).max() > 0


def test_alignment_masks_rows_without_features():
    h, f = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 8)), jnp.float32)
    masked = alignment_error(h, f.at[1].set(jnp.nan), jnp.array([True, False, True]))
    full = alignment_error(h, f)
    np.testing.assert_allclose(masked, full * jnp.array([1.0, 0, 1]), rtol=1e-6)


def test_adaptive_weight_is_the_published_one_without_gradient():
    loss = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(AdaptiveWeight()(loss), 1 / (loss + 1e-5))
    np.testing.assert_array_equal(AdaptiveWeight(power=0.0)(loss), 1.0)
    gradient = jax.grad(lambda loss: (AdaptiveWeight()(loss) * loss).sum())(loss)
    np.testing.assert_allclose(gradient, 1 / (loss + 1e-5))


@every_transport
def test_guided_targets_hold_in_their_interval_and_from_their_step(transport):
    low, high = (transport.T_min + part * (transport.T_max - transport.T_min) for part in (0.3, 0.8))
    guidance = TargetGuidance(1.0, 0.75, low, high, start_step=5)
    t = transport.T_min + jnp.array([0.1, 0.3, 0.5, 0.5, 0.8, 0.95]) * (transport.T_max - transport.T_min)
    t = t.at[1].set(low).at[4].set(high)
    label = jnp.array([1, 2, 3, 10, 5, 6])
    x, noise = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 2, 2, 1)), jnp.float32)
    rows = make_rows(x, noise, label)
    times_seen = []

    def net(queries):
        times_seen.extend(np.asarray(q.t) for q in queries if not isinstance(q.t, jax.core.Tracer))
        heights = (jnp.where(q.condition["label"] == 10, 2.0, 10.0) for q in queries)
        return tuple(Output(jnp.ones_like(x) * height[:, None, None, None]) for height in heights)

    base = prediction_target(transport, x, noise, t)
    x_t = interpolate(transport, x, noise, t)
    with jax.disable_jit():
        before = guidance(net, transport, x_t, t, rows, base, jnp.int32(4))
        after = guidance(net, transport, x_t, t, rows, base, jnp.int32(5))
    np.testing.assert_array_equal(before, base)
    guided = base + 0.75 * 10.0 - 0.75 * 2.0
    inside = np.array([False, True, True, False, True, False])[:, None, None, None]
    np.testing.assert_allclose(after, np.where(inside, guided, base), rtol=1e-5, atol=1e-6)
    for times in times_seen:  # c_noise once
        np.testing.assert_allclose(times, transport.c_noise(t), rtol=1e-6)
