"""A network of one's own: every objective on vectors, what each says that it needs, the programs of the page."""

import dataclasses
import functools
import pathlib
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, exact_data, in_the_limit, learnt, nothing, plain_times
from tim_jax.transitions import (
    OBJECTIVES,
    TRANSPORTS,
    Examples,
    Output,
    Sampling,
    Teacher,
    Times,
    as_net,
    generate,
    mean_loss,
    unweighted,
)
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import expand
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.weights import AdaptiveWeight

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_network.md"
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)]
LONGEST = 30  # lines of a program that trains and samples
OT_FM = TRANSPORTS["ot_fm"]()
COUNT, WIDTH = 16, 6
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def random(seed, shape=(COUNT, WIDTH)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def moved(gaussian, theta):
    """The exact flow map of a Gaussian, moved by θ in some direction, as a network of one's own with every head."""

    def F(x, t, r):
        t, r = expand(t, x), expand(r, x)
        return gaussian.F(x, t.ravel(), r.ravel()) + theta * (jnp.sin(2 * x + t - 0.5 * r) + 0.3 * jnp.cos(x * r))

    def net(x, t, r, *condition):
        none = jnp.zeros(len(x))
        heads = {"velocity": F(x, t, t), "log_variance": none, "joint_log_variance": none}
        heads["pooled"] = jnp.ones((len(x), 4))
        return Output(F(x, t, r), heads=heads)

    return net


@dataclasses.dataclass(frozen=True)
class ExactTeacher(Teacher):
    """Whose ODE is solved exactly."""

    gaussian: Gaussian | None = None

    def solve(self, nets, transport, x_t, t, s, examples, steps):
        return self.gaussian.flow_map(x_t, t, s)


OWN = ("drifting", "twin_flow", "difference_transition_matching", "flow_dpo")
# One of each kind: the default tests see that vectors reach every line that knew of height and width.
KINDS = ("tim", "improved_mean_flow", "low_noise_contrastive", "ayf_lagrangian", "ctm", "rcm", "tbcm")


TERMS_ALONE = ("distribution_matching",)  # have no loss of their own: see test_matching.py


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
        for name in OBJECTIVES
        if name not in TERMS_ALONE
    ],
)
def test_vectors_have_the_losses_of_images_of_one_position_and_the_exact_flow_map_no_gradient(name, x64):
    transport = plain_times("ot_fm")
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    objective = dataclasses.replace(OBJECTIVES[name](transport), teacher=ExactTeacher(gaussian=gaussian))
    objective = in_the_limit(objective)
    t, r = objective.draw(jax.random.key(0), COUNT, positions=1)
    t, r = jnp.clip(t, 0.02, 0.98), jnp.minimum(r, 0.98)
    r = jnp.where(objective.times.assign(COUNT)[0], t, jnp.minimum(r, t))
    states = expand(transport.alpha(t), random(0)) * 0.3 + gaussian.marginal_std(t)[:, None] * random(0)
    data = exact_data(objective, gaussian)(states, t, r)

    def losses(theta, shape):
        exact = as_net(moved(gaussian, 0.0))
        nets = dict.fromkeys(objective.networks, exact) | {"online": as_net(moved(learnt(objective, gaussian), theta))}
        x, noise = (part.reshape(COUNT, *shape) for part in data)
        label = {"label": jnp.zeros(COUNT, int)}
        more = {"loser": x[::-1], "reward": jnp.linspace(-1, 1, COUNT)}
        examples = Examples(x, noise, label, label, jnp.zeros(COUNT, bool), **more)
        return objective.loss(nets, examples, t, r, LATE, jax.random.key(1))[0]

    @jax.jit
    def slopes(theta):
        values, slope = jax.jvp(lambda theta: losses(theta, (WIDTH,)), (theta,), (jnp.ones_like(theta),))
        return values, slope.sum()

    vectors, off = slopes(jnp.float64(0.1))
    images = jax.jit(lambda theta: losses(theta, (1, 1, WIDTH)))(0.1)
    if name in OWN:  # whose minimum is another; small temperatures of drifting are in single precision
        np.testing.assert_allclose(vectors, images, rtol=1e-4)
        return
    if name != "rcm":  # whose rollouts are drawn in the shape of x
        np.testing.assert_allclose(vectors, images, rtol=1e-9)
    assert vectors.shape == (COUNT,) and abs(off) > 1e-3
    assert abs(slopes(jnp.float64(0.0))[1]) < nothing(objective) * abs(off)


# What mean_loss says is missing, in turn, and what is then given.
STEP, SLOW = ("step=", {"step": 3}), ("slow=, an EMA", {"slow": None})
TEACHER, SCORE = ("teacher=, a trained network", {"teacher": None}), ("score=, a second network", {"score": None})
HEAD = ("heads=", {"heads": True})
LOSER, REWARD = ("loser: missing", {"loser": random(9)}), ("reward: missing", {"reward": jnp.ones(COUNT)})
CLASSES = {"condition": {"class": jnp.ones(COUNT)}, "null_condition": {"class": 0.0}}
CONDITION = ("condition, null_condition: missing", CLASSES)
NEEDS = {
    "improved_mean_flow": [CONDITION, HEAD], "modular_mean_flow": [STEP], "alphaflow": [STEP], "soflow": [STEP],
    "tvm": [STEP, SLOW],
    "scm": [STEP, HEAD], "shortcut": [SLOW],
    "low_noise_contrastive": [HEAD], "dmf": [HEAD], "twin_flow": [SLOW], "cmt": [TEACHER],
    "scm_distillation": [STEP, TEACHER, HEAD], "ayf_eulerian": [STEP, TEACHER],
    "ayf_lagrangian": [STEP, TEACHER], "ctm": [TEACHER, SLOW], "rcm": [STEP, TEACHER, SCORE, HEAD],
    "tbcm": [STEP, TEACHER, HEAD], "velocity_refiner": [TEACHER], "straightening": [TEACHER],
    "distribution_matching": [TEACHER, SCORE],
    "flow_dpo": [LOSER, TEACHER], "reward_weighted_regression": [REWARD],
}  # fmt: skip


def test_the_table_of_the_page_lists_what_is_needed():
    """By the words of its rows: step, slow, teacher, score, head, condition, loser, reward."""
    words = {STEP[0]: "step=", SLOW[0]: "slow=", TEACHER[0]: "teacher=", SCORE[0]: "score=", HEAD[0]: "a head",
             CONDITION[0]: "condition=", LOSER[0]: "loser=", REWARD[0]: "reward="}  # fmt: skip
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|$", PAGE.read_text(), re.M)
    listed = {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed.keys() == NEEDS.keys()
    for name, needs in NEEDS.items():
        assert {word for word in words.values() if word in listed[name]} == {words[message] for message, _ in needs}, (
            name
        )


@pytest.mark.slow
@every_objective
def test_every_objective_says_in_one_line_what_it_needs_and_then_trains_and_samples(name):
    objective, x = OBJECTIVES[name](OT_FM), random(1)
    given = {}

    def net(theta, x, t, r, *condition):
        F = theta * x + (t - 2 * r)[:, None]
        parts = {"velocity": F, "log_variance": theta * t, "joint_log_variance": theta * r, "pooled": theta * x}
        return Output(F, heads=parts) if given.get("heads") else F

    def loss(theta):
        networks = {
            name: functools.partial(net, 0.4 if name == "score" else 0.5)
            for name, value in given.items()
            if value is None
        }
        rest = {name: value for name, value in given.items() if value is not None and name != "heads"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mean_loss(objective, lambda *args: net(theta, *args), x, jax.random.key(2), **rest, **networks)

    for message, answer in NEEDS.get(name, []):
        with pytest.raises(ValueError) as error:
            loss(jnp.float32(0.3))
        assert message in str(error.value) and "\n" not in str(error.value), error.value
        given |= answer
    (value, metrics), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.float32(0.3))
    assert jnp.isfinite(value) and jnp.isfinite(slope) and slope != 0
    assert metrics["error"].shape == metrics["t"].shape == (COUNT,)
    if name in ("tim", "improved_mean_flow", "scm"):  # of each way in which a network is asked
        rest = {key: given[key] for key in ("condition", "null_condition") if key in given}
        drawn = generate(objective, lambda *args: net(0.3, *args), x, 2, key=jax.random.key(3), **rest)
        assert drawn.shape == x.shape and jnp.isfinite(drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "sampler"),
    [("ve", "flow_map"), ("ve", "consistency"), ("ot_fm", "flow_map"), ("ot_fm", "unipc_3"), ("ot_fm", "er_sde_2")],
)
def test_samples_of_the_exact_flow_map_have_the_spread_of_the_data(transport, sampler):
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.0, std=0.5)
    objective = unweighted(transport, Times())
    noise, sampling = random(4, (2000, 2)), Sampling(sampler=sampler, grid="edm")
    net = lambda x, t, r: gaussian.F(x, t, r)  # noqa: E731
    drawn = generate(objective, net, noise, 64, key=jax.random.key(0), sampling=sampling)
    assert drawn.std() == pytest.approx(0.5, rel=0.06)
    path = generate(objective, net, noise, 4, trajectory=True)
    assert path.shape == (5, 2000, 2)
    np.testing.assert_allclose(path[-1], generate(objective, net, noise, 4), atol=1e-5)


def test_one_draw_of_the_step_stands_for_its_number_so_that_shares_are_right_in_the_mean():
    objective = unweighted(OT_FM, Times(share_equal=0.5, share_min=0.1))
    draw = jax.jit(lambda key: mean_loss(objective, lambda x, t, r: x, random(0, (4, 2)), key)[1])
    found = [draw(jax.random.key(n)) for n in range(200)]
    assert np.mean([metrics["r"] == metrics["t"] for metrics in found]) == 0.5
    assert np.mean([metrics["r"] == 0 for metrics in found]) == pytest.approx(0.1, abs=0.03)


def test_dropped_conditions_and_guidance():
    objective, labels = unweighted(OT_FM, Times()), jnp.arange(COUNT) % 3
    seen = []

    def net(x, t, r, label):
        seen.append(label)
        return x + label[:, None]

    given = dict(condition=labels, null_condition=7)
    mean_loss(objective, net, random(0), jax.random.key(0), condition_dropout=1.0, **given)
    assert all((np.asarray(label) == 7).all() for label in seen)
    # F = x + label; guidance by 2 makes it x + 2 label − 7.
    draw = jax.jit(lambda noise: generate(objective, net, noise, 1, sampling=Sampling(guidance=2.0), **given))
    one = draw(random(0))
    np.testing.assert_allclose(one, -(2 * labels - 7.0)[:, None] + 0 * random(0), atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda net: mean_loss(unweighted(OT_FM, Times()), net, jnp.ones(4), jax.random.key(0)), "x is float32 (4,)"),
        (lambda net: mean_loss(unweighted(OT_FM, Times()), net, jnp.ones((4, 2), int), jax.random.key(0)), "floating"),
        (
            lambda net: mean_loss(unweighted(OT_FM, Times()), lambda x, t, r: x[:, :1], random(0), jax.random.key(0)),
            "the network returned",
        ),
        (
            lambda net: mean_loss(unweighted(OT_FM, Times()), net, random(0), jax.random.key(0), fast=net),
            "fast: no network of the objective, which calls no other network",
        ),
        (
            lambda net: mean_loss(unweighted(OT_FM, Times()), net, random(0), jax.random.key(0), condition_dropout=0.1),
            "condition_dropout is 0.1, which takes both",
        ),
        (
            lambda net: mean_loss(unweighted(OT_FM, Times()), net, random(0), jax.random.key(0), noise=jnp.ones(2)),
            "noise has shape (2,)",
        ),
        (
            lambda net: mean_loss(OBJECTIVES["tbcm"](OT_FM), net, random(0)[:9], jax.random.key(0)),
            "the objective takes multiples of 8",
        ),
        (
            lambda net: mean_loss(unweighted(OT_FM, Times()), net, random(0), jax.random.key(0), loser=random(1)),
            "loser: the objective has no use for it",
        ),
        (
            lambda net: mean_loss(
                OBJECTIVES["reward_weighted_regression"](OT_FM), net, random(0), jax.random.key(0), reward=jnp.ones(3)
            ),
            "reward has shape (3,); it must be (16,)",
        ),
        (
            lambda net: mean_loss(
                dataclasses.replace(unweighted(OT_FM, Times()), tangent=Tangent(warmup_share=0.5)),
                net, random(0), jax.random.key(0), step=3,
            ),
            "the objective changes over a share of all steps",
        ),
        (lambda net: generate(unweighted(OT_FM, Times()), net, random(0), 0), "steps is 0"),
        (
            lambda net: generate(OBJECTIVES["scm"](OT_FM), net, random(0), 2),
            "key is missing; the sampler 'consistency' takes fresh noise",
        ),
        (
            lambda net: generate(unweighted(OT_FM, Times()), net, random(0), sampling=Sampling(guidance=2.0)),
            "condition, null_condition: missing",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(call, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError) as error:
            call(lambda x, t, r: x)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_made_for_images_are_warned_of_where_examples_are_points():
    with pytest.warns(UserWarning, match="see unweighted"):
        mean_loss(OBJECTIVES["tim"](OT_FM), lambda x, t, r: x, random(0), jax.random.key(0))


def test_the_mathematics_is_imported_with_jax_alone():
    heavy = {"flax", "optax", "orbax", "grain", "ml_collections", "sklearn", "matplotlib", "PIL", "tensorflow"}
    program = f"import sys, tim_jax.transitions; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def energy_distance(x, y):
    """2 E|x − y| − E|x − x'| − E|y − y'|, 0 for equal distributions."""

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def test_programs_are_short():
    for block in PROGRAMS:
        assert len([line for line in block.splitlines() if line.strip()]) < LONGEST
    trained = [block for block in PROGRAMS if "for step in range" in block]
    assert len(trained) == 3 and "nnx" in trained[0] and "equinox" in trained[1]
    assert "def F(params, x, t, r, label)" in trained[2]


def test_a_plain_function_is_trained_and_sampled():
    """The page's program, for two updates."""
    (program,) = (block for block in PROGRAMS if "def F(params" in block)
    names = {}
    exec(program.replace("range(4000)", "range(2)"), names)
    assert set(names["samples"]) == {1, 4, 16}
    assert all(points.shape == (2000, 2) and bool(jnp.isfinite(points).all()) for points in names["samples"].values())


@pytest.mark.nightly
@pytest.mark.parametrize("block", [n for n, block in enumerate(PROGRAMS) if "for step in range" in block])
def test_programs_of_the_page_come_near_the_data_in_any_number_of_steps(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(PROGRAMS[block], names)
    data, samples = np.asarray(names["data"]), names["samples"]
    noise = energy_distance(np.random.default_rng(0).standard_normal((1000, 2)), data[:1000])
    for steps, points in samples.items():
        assert energy_distance(np.asarray(points)[:1000], data[:1000]) < 0.05 * noise, steps
    if block == 0:
        exec(PROGRAMS[1], names)
        assert (tmp_path / "own_network.png").stat().st_size > 10_000


def test_the_other_programs_of_the_page_run():
    for block in PROGRAMS:
        if "for step in range" not in block and "savefig" not in block:
            exec(block, {})


def test_without_an_offset_losses_are_finite():
    """Where there is no head its error is 0, and has no weight: 0 to the power of −½ is none."""
    objective = dataclasses.replace(OBJECTIVES["tim"](OT_FM), adaptive=AdaptiveWeight(0.5, 0.0))
    loss = lambda theta: mean_loss(objective, lambda x, t, r: theta * x, random(1), jax.random.key(0))[0]  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.3))
    assert jnp.isfinite(value) and jnp.isfinite(slope)
