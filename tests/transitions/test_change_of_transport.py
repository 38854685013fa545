"""A teacher of one transport and a student of another: exact on a Gaussian, for every pair and every objective."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, answer, every_transport, random, rows_of, wave
from tests.transitions.test_distillation import DISTILLED
from tim_jax.transitions import OBJECTIVES, TRANSPORTS, Teacher
from tim_jax.transitions.change_of_transport import in_transport
from tim_jax.transitions.derivative import query
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import data_and_noise, expand, interpolate, prediction_target
from tim_jax.transitions.prediction import from_F, in_F, share
from tim_jax.transitions.transports import with_shared_times
from tim_jax.types import Output, Query, TangentQuery

MEAN, STD = 0.3, 0.6


def exact(transport):
    """The perfect network of a transport, whose output stands for what `transport.prediction` says."""
    flow = Gaussian(transport, MEAN, STD)

    def answered(q):
        t, r = map(transport.time_of_c_noise, (q.t, q.r))
        F = share(transport, expand(t, q.x_t)) * flow.F(q.x_t, t, r)  # of which the output is the mean of x, or of ε
        return in_F(transport, q, Output(from_F(transport, q.x_t, F, t)))

    return lambda queries: tuple(map(answered, queries))


def in_both(*transports, count=40):
    """Noise levels in the domains of all these transports, their ends included."""
    ends = [transport.level(jnp.array([transport.T_min, transport.T_max])) for transport in transports]
    low, high = max(e[0] for e in ends), min(e[1] for e in ends)
    near = jnp.array([0.0, 1e-5, 1e-3])
    return low + (high - low) * jnp.concatenate([near, jnp.linspace(0.01, 0.99, count), 1 - near[::-1]])


def state(transport, t):
    shape = (len(t), 2, 1, 1)
    return interpolate(transport, MEAN + STD * random(0, shape), random(1, shape), t)


@every_transport
def test_an_exact_network_of_every_transport_is_exact_in_every_other(transport, x64):
    """At r = t as a teacher is asked, and for jumps to r < t."""
    transport = TRANSPORTS[transport]()
    flow = Gaussian(transport, MEAN, STD)
    for name, sigma_d in itertools.product(TRANSPORTS, (0.5, 1.0)):
        own = TRANSPORTS[name](sigma_d) if name == "edm" else TRANSPORTS[name]()
        levels = in_both(transport, own)
        t = transport.time_of_level(levels)
        x_t, net = state(transport, t), in_transport(exact(own), own, transport)
        rows = rows_of(x_t, x_t)
        F = Teacher()({"teacher": net}, transport, x_t, t, rows)
        np.testing.assert_allclose(F, flow.F(x_t, t, t), atol=1e-12, err_msg=name)
        r = transport.time_of_level(levels[0] + 0.5 * (levels - levels[0]))
        r = jnp.where(levels < levels[0] + 0.02, t, r)  # where the closed form itself loses its digits
        (jumps,) = net((query(transport, x_t, t, r, None),))
        np.testing.assert_allclose(jumps.F, flow.F(x_t, t, r), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("own", TRANSPORTS)
@pytest.mark.parametrize("transport", ["ot_fm", "ve"])
def test_beyond_its_own_domain_a_network_errs_by_the_angle_at_most(transport, own, x64):
    transport, own = TRANSPORTS[transport](), TRANSPORTS[own]()
    t = jnp.concatenate([transport.T_min + jnp.array([0.0, 1e-3]), transport.T_max - jnp.array([1e-3, 0.0])])
    level = transport.level(t)
    delta = jnp.pi / 2 * (level - own.level(own.time_of_level(level)))
    x_t = state(transport, t)
    (found,) = in_transport(exact(own), own, transport)((query(transport, x_t, t, t, None),))
    off = found.F - Gaussian(transport, MEAN, STD).F(x_t, t, t)
    # Of states within three standard deviations; 1/STD² is how fast an exact prediction turns near data.
    assert (jnp.abs(off) <= 3 * expand(jnp.abs(delta), off) / STD + 1e-12).all()
    x, _ = data_and_noise(transport, x_t, found.F, t)
    mean, _ = Gaussian(transport, MEAN, STD).posterior_means(x_t, t)
    np.testing.assert_allclose(x, mean, atol=0.02)


def test_how_much_of_the_angle_is_left():
    """What the module says of OT-FM at its ends."""
    ot_fm, found = TRANSPORTS["ot_fm"](), {}
    for name, make in TRANSPORTS.items():
        own = make()
        level = ot_fm.level(jnp.array([0.0, 1.0]))
        found[name] = jnp.pi / 2 * (level - own.level(own.time_of_level(level)))
    said = dict(ot_fm=(0, 0), cosine=(0, 0), trigflow=(0, 0.0008), vp=(-0.001, 0.0066), ve=(-0.02, 0.01))
    for name, angles in (said | dict(edm=(-0.01, 0.0125))).items():
        np.testing.assert_allclose(found[name], np.array(angles), atol=5e-5, err_msg=name)


@pytest.mark.parametrize("own", ["ot_fm", "vp", "edm"])
@pytest.mark.parametrize("prediction", ["x", "noise", "velocity"])
def test_whatever_its_own_output_stands_for(prediction, own, x64):
    """Where the clip acts, x̂ or ε̂ is the network's own, and the other short."""
    transport = TRANSPORTS["trigflow"]()
    own = dataclasses.replace(TRANSPORTS[own](), prediction=prediction)
    t = transport.time_of_level(in_both(transport, own))
    x_t, s = state(transport, t), own.time_of_level(transport.level(t))
    (found,) = in_transport(exact(own), own, transport)((query(transport, x_t, t, t, None),))
    x, noise = Gaussian(transport, MEAN, STD).posterior_means(x_t, t)
    if prediction == "x":
        noise = jnp.minimum(expand(own.sigma(s), x) / own.prediction_clip, 1) * noise
    if prediction == "noise":
        x = jnp.minimum(expand(own.alpha(s), x) / own.prediction_clip, 1) * x
    np.testing.assert_allclose(found.F, prediction_target(transport, x, noise, t), atol=1e-10)


def test_the_network_is_told_its_own_times_and_what_else_it_is_asked(x64):
    transport, plain = TRANSPORTS["ot_fm"](), TRANSPORTS["edm"]()
    own, seen = with_shared_times(plain, 0.5, 5), []
    t = jnp.array([0.3, 0.9, 0.97, 0.98])

    def net(queries, hidden=False):
        seen.extend(queries)
        return tuple(Output(wave(q.x_t, q.t, q.r), hidden=q.x_t if hidden else None) for q in queries)

    keys = jax.random.split(jax.random.key(0), 4)
    x_t, other = state(transport, t), in_transport(net, own, transport)
    asked = TangentQuery(*query(transport, x_t, t, 0.5 * t, {"label": jnp.arange(4)}, keys))
    (output,) = other((asked,), hidden=True)
    (query_seen,) = seen
    told = own.c_noise(t / (1 - t))  # σ/α is the time of EDM
    np.testing.assert_allclose(query_seen.t, told, rtol=1e-9)
    assert (told[:2] < plain.c_noise(t / (1 - t))[:2]).all(), "edges of time"
    np.testing.assert_allclose(query_seen.r, own.c_noise(0.5 * t / (1 - 0.5 * t)), rtol=1e-9)
    assert type(query_seen) is TangentQuery and query_seen.condition is asked.condition and query_seen.key is keys
    np.testing.assert_array_equal(output.hidden, query_seen.x_t)

    # Gradients by the state go through, as score implicit matching takes them.
    def sum_of_F(x_t, net=other):
        return net((Query(x_t, t, t, None),))[0].F.sum()

    flow = Gaussian(transport, MEAN, STD)
    slope = jax.grad(lambda x: sum_of_F(x, in_transport(exact(plain), plain, transport)))(x_t)
    np.testing.assert_allclose(slope, jax.grad(lambda x: flow.F(x, t, t).sum())(x_t), rtol=1e-9)


DEFAULT = ("ctm", "tbcm")
TAUGHT = [*DISTILLED, "tim", "facm", "mean_flow"]


@pytest.mark.parametrize(
    "name, guidance",
    [pytest.param(n, g, marks=() if n in DEFAULT and g == 1 else pytest.mark.slow)
     for n in TAUGHT for g in (1.0, 1.5) if (n, g) != ("flow_dpo", 1.5)],  # which guides nothing
)  # fmt: skip
def test_every_objective_learns_from_it_what_it_learns_from_one_of_its_own(name, guidance, x64):
    """EDM's domain lies within those of OT-FM and TrigFlow, of which here are a teacher and a weaker one."""
    transport, others = TRANSPORTS["edm"](), {"teacher": TRANSPORTS["ot_fm"](), "weaker": TRANSPORTS["trigflow"]()}
    teacher = Teacher(guidance=guidance, weak_checkpoint="somewhere" if guidance != 1 else "")
    objective = dataclasses.replace(OBJECTIVES[name](transport), teacher=teacher).following(1)
    if not objective.teachers:
        objective = dataclasses.replace(objective, velocity="teacher")
    objective.check()
    rows = rows_of(MEAN + STD * random(0), random(1))

    def online(queries):
        return tuple(answer(wave(q.x_t, q.t, q.r), wave(q.x_t, q.t, q.t)) for q in queries)

    def weaker(net):
        return lambda queries: tuple(Output(0.8 * output.F) for output in net(queries))

    nets = dict.fromkeys(objective.networks, online)
    own = {"teacher": exact(transport), "weaker": weaker(exact(transport))}
    changed = {name: in_transport(exact(other), other, transport) for name, other in others.items()}
    changed["weaker"] = weaker(changed["weaker"])
    key = jax.random.key(0)
    expected, _ = objective(nets | own, rows, LATE, key)
    found, _ = objective(nets | changed, rows, LATE, key)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    nothing, _ = objective(nets | {name: online for name in own}, rows, LATE, key)
    assert jnp.abs(nothing - expected).max() > 1e-2 * jnp.abs(expected).max(), "or the teacher does not matter"
