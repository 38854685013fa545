"""The loss of an example, whatever the objective: a few choices on the same axes (see `objectives/table.py`).

    loss = w(t, r) · a · (mean (F − F*)² + λ_dir mean(1 − cos(F, F*)))
         + λ_head · a' · mean (F_head − base)² + λ_align (1 − cos(h, features)) + λ_φ mean ‖φ(x̂) − φ(x)‖²

Here base is α̂_t x + σ̂_t ε, perhaps guided (`guidance.py`), and the target F* where r = t; elsewhere F* comes from a
consistency (`consistency.py`). w is a `TimeWeight` and a an `AdaptiveWeight`; or the network learns the weight,
L → e^{−u} L + u, or the logarithm of a sum, L → log(e^{−u} L + c) + u.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction, slices
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.bootstrap import TWO_JUMPS, Bootstrap
from tim_jax.transitions.consistency import CONSISTENCIES, Group, Prediction
from tim_jax.transitions.coupling import Coupling
from tim_jax.transitions.derivative import Net, Path, central_difference, jvp, query
from tim_jax.transitions.exclusions import check_together
from tim_jax.transitions.groups import Split, split_examples
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import data_and_noise, interpolate
from tim_jax.transitions.latent import with_latent
from tim_jax.transitions.loss import weighted
from tim_jax.transitions.pairs import refreshed
from tim_jax.transitions.perceptual import Perceptual
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.terms.adversary import TEACHER, Adversary
from tim_jax.transitions.terms.matching import Matching
from tim_jax.transitions.terms.reward import Reward
from tim_jax.transitions.terms.rollout import Rollout
from tim_jax.transitions.terms.term import Term, add_terms, auxiliary_loss
from tim_jax.transitions.times import Times, positions
from tim_jax.transitions.transports import Transport
from tim_jax.transitions.weights import DIRECTION_AXES, AdaptiveWeight, TimeWeight
from tim_jax.types import Auxiliary, Examples, Heads, Output, Query, averages

DERIVATIVES = ("jvp", "dde")
ALONG_PATHS = ("eulerian", "annealed")  # the consistencies with dF/dt
VELOCITIES = ("data", "target", "head", "teacher")  # besides the names of networks

UNUSED = {
    ("objective.consistency",): ("times.share_equal is 1", lambda c: c.times.share_equal == 1),
    ("objective.velocity",): (
        "no velocity is followed (times.share_equal is 1 or objective.consistency 'semigroup')",
        lambda c: (  # examples with r = t still learn from data or teacher
            c.objective.velocity not in ("data", "teacher")
            and (c.times.share_equal == 1 or c.objective.consistency == "semigroup")
        ),
    ),
    ("objective.derivative",): (
        "no derivative is used (times.share_equal is 1 or objective.consistency 'semigroup')",
        lambda c: c.times.share_equal == 1 or c.objective.consistency == "semigroup",
    ),
    ("objective.epsilon",): ("objective.derivative is not 'dde'", lambda c: c.objective.derivative != "dde"),
    ("objective.learned_offset",): ("objective.learned_weight is False", lambda c: not c.objective.learned_weight),
    ("objective.direction_weight", "objective.direction_equal"): (
        "objective.direction is 'none'",
        lambda c: c.objective.direction == "none",
    ),
    tuple(f"objective.refresh.{field.name}" for field in dataclasses.fields(Annealing)): (
        "data.paired_noise is False",
        lambda c: not c.data.paired_noise,
    ),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective: objective(nets, examples, step, key, batch) → (losses (B,), metrics).

    `nets` holds the online network as "online"; for the derivative 'dde' also "float32", the same weights without
    gradient in float32; the EMAs by the names that are used; and the networks that `teachers` and `auxiliary` name.

    The derivative is taken along the velocity dx_t/dt of the example's own (x, ε) with `velocity` 'data', or of the
    target at r = t, guidance included, with 'target'. With 'head' it is the prediction of the network's velocity head,
    and with the name of a network its prediction at r = t, which stands for the conditional mean: the target has the
    same mean and a lower variance, since an example's own velocity is noise to the network's Jacobian. These two cost a
    forward pass of the examples with r ≠ t. With 'teacher', x̂ and ε̂ of nets["teacher"] at x_t take the place of (x, ε)
    in all examples, and so in the target at r = t, whose guidance is included as with 'target'.

    With the consistency 'lagrangian' it is that of a network where jumps end: of the online network or an EMA, by its
    name, or with 'data' and 'teacher' of the teacher.

    `shards` is the number of devices on which the batch lies, and `slices` that of the network's depth, one of which
    learns in a step (DiffusionBlocks): slice k at times of the k-th of as many intervals, see `slices.py`.
    """

    transport: Transport
    times: Times
    coupling: Coupling = Coupling()  # of noise with data
    # of examples with r ≠ t: eulerian (dF/dt), lagrangian (∂F/∂r and a velocity where jumps end), semigroup (two
    # jumps), annealed (two jumps, and dF/dt once the first has no length any more)
    consistency: str = "eulerian"
    # "teacher": its velocity takes that of the data's place, in all examples. Otherwise that along which base' and
    # dF/dt are taken: "data", "target", "head", "online" or the name of an EMA. For "lagrangian" that with which jumps
    # end: "online" or the name of an EMA, else the teacher's.
    velocity: str = "data"
    # eulerian, lagrangian and annealed
    derivative: str = "jvp"  # dF/dt: "jvp" (exact) or "dde" (central difference)
    epsilon: float = 0.005  # half step of "dde", in units of t
    tangent: Tangent = Tangent()
    # semigroup and annealed
    bootstrap: Bootstrap = Bootstrap()
    # of pairs, β in √(1 − β²) ε + β ξ, the noise that takes the place of the pair's own ε, ξ being fresh
    refresh: Annealing = Annealing()
    # weights
    weight: TimeWeight = TimeWeight()
    adaptive: AdaptiveWeight = AdaptiveWeight()
    learned_weight: bool = False  # e^{−u(t)} L + u(t), u learned
    learned_offset: float = 0.0  # c of log(e^{−u(t, r)} L + c) + u(t, r), which takes its place; 0: nothing does
    # further terms
    direction: str = "channels"  # axis of the cosine term: none, channels, image (all axes)
    direction_weight: float = 1.0
    direction_equal: bool = False  # examples with r = t alone have it
    head_weight: float = 0.0  # of a second prediction of v by a head of its own; 0: none
    alignment_weight: float = 0.0  # of the cosine to image features of a pretrained encoder; 0: none
    perceptual: Perceptual = Perceptual()
    # terms on samples of the student
    rollout: Rollout = Rollout()
    matching: Matching = Matching()
    adversary: Adversary = Adversary()
    reward: Reward = Reward()
    # guided targets
    guidance: TargetGuidance = TargetGuidance()
    input_guidance: InputGuidance = InputGuidance()
    teacher: Teacher = Teacher()
    shards: int = 1
    slices: int = 1
    name: str = ""  # a name in tim_jax.transitions.objectives.table.OBJECTIVES
    inputs: ClassVar[tuple[str, ...]] = ()  # what examples must bring besides data and condition: "loser", "reward"

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the network must have besides F."""
        velocity = self.head_weight > 0 or self.velocity == "head"
        return ("velocity",) * velocity + (self.log_variance,) * self.learned_weight

    @property
    def log_variance(self) -> str:
        """The head u of the learned weight."""
        return "joint_log_variance" if self.learned_offset else "log_variance"

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of the frozen networks that the objective needs."""
        if self.asks_teacher:
            return self.teacher.names
        return (TEACHER,) if any(heads.trunk == TEACHER for heads in self.auxiliary_heads.values()) else ()

    @property
    def asks_teacher(self) -> bool:
        """Whether the objective asks for the teacher's predictions, not for its hidden states alone."""
        return self.velocity == "teacher" or self.follows_teacher or any(term.asks_teacher for term in self.terms)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms beside the objective's own loss that it has."""
        return tuple(term for term in (self.matching, self.adversary, self.reward) if term.weight)

    @property
    def follows_teacher(self) -> bool:
        """Whether the targets of examples with r ≠ t come from the teacher's own trajectories."""
        solved = self.consistency == "semigroup" and self.bootstrap.solver_steps > 0
        ends = self.consistency == "lagrangian" and self.velocity in VELOCITIES
        return self.times.share_equal < 1 and (solved or ends)

    @property
    def annealing_steps(self) -> int:
        """The number of steps after which α of two jumps and β of pairs do not change; 0: they never do."""
        anneals = self.consistency in TWO_JUMPS and self.bootstrap.split == "alpha"
        return max(self.bootstrap.alpha.end if anneals else 0, self.refresh.end)

    @property
    def auxiliary(self) -> Mapping[str, Auxiliary]:
        """The networks that are trained together with the online network, by name: copies of it, but for heads."""
        return {name: each for term in self.terms for name, each in term.auxiliary.items()}

    @property
    def auxiliary_heads(self) -> Mapping[str, Heads]:
        """Those of the auxiliary networks that are heads on another network's hidden states."""
        return {name: each for term in self.terms for name, each in term.heads.items()}

    @property
    def prediction_input(self) -> bool:
        """Whether the network corrects a prediction that it is given: it samples nothing by itself."""
        return False

    @property
    def transition_head(self) -> bool:
        """Whether the network's prediction is a draw by a head of its own, from noise that it is given."""
        return False

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of all networks that the objective calls, "online" first."""
        names = ["online", *self.teachers, *self.auxiliary, *averages(self.auxiliary), *self.reward.networks]
        if self.guidance.active:
            names.append(self.guidance.ema)
        if self.times.share_equal < 1:
            if self.consistency in TWO_JUMPS:
                names.append(self.bootstrap.ema)
            if self.consistency != "semigroup" and self.velocity not in VELOCITIES:
                names.append(self.velocity)
            if self.consistency in ALONG_PATHS and self.derivative == "dde":
                names.append("float32")
        return tuple(dict.fromkeys(names))

    @property
    def batch_multiple(self) -> int:
        """The number of examples that every batch must be a multiple of."""
        return 1

    def memory(self, example: tuple[int, ...], classes: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and types of what is remembered from step to step, zeros at first; by default nothing.

        Args:
            example: The shape of an example.
            classes: The number of classes; 0 where the condition is text.
        """
        return {}

    def remember(self, memory: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the memory with a global batch, {"x": (B, …), "label": (B,), …}, in it: a pure function of both."""
        return dict(memory)

    def check_batch(self, count: int) -> None:
        """Raises ValueError, naming key and value, for what microbatches of `count` examples cannot give."""

    @property
    def sampler(self) -> str:
        """The sampler, a name in SAMPLERS, that suits a model with this objective."""
        if self.times.share_equal == 1:
            return "euler"
        ends_early = self.times.share_equal + self.times.share_min < 1 - 1e-9  # at an r above T_min
        return "flow_map" if ends_early else "consistency"

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings and for those that exclude one another."""
        prediction.check(self.transport)
        for fitted in (self.times, self.weight, self.guidance, self.coupling):
            fitted.check(self.transport)
        parts = (
            self.adaptive, self.tangent, self.bootstrap, self.perceptual, self.input_guidance, self.teacher,
            self.rollout, self.matching, self.adversary, self.reward,
        )  # fmt: skip
        for settings in parts:
            settings.check()
        for name, known in (("consistency", CONSISTENCIES), ("derivative", DERIVATIVES), ("direction", DIRECTION_AXES)):
            if getattr(self, name) not in known:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("direction_weight", "head_weight", "alignment_weight", "learned_offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")
        check_together(self, type(self).loss is not Objective.loss)
        if self.slices > 1:
            slices.check(self, type(self).draw is Objective.draw)

    def following(self, steps: int) -> "Objective":
        """Returns the objective for so many steps of training, where settings are shares of them."""
        parts = {name: getattr(self, name).following(steps) for name in ("tangent", "bootstrap", "refresh")}
        return dataclasses.replace(self, **parts)

    def __call__(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        step: jax.Array,
        key: jax.Array,
        batch: jax.Array | None = None,
        memory: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws times and returns the losses (B,) and metrics (B,) of the examples; see `loss`.

        Args:
            nets: The networks by name.
            examples: A batch, or a microbatch, of B examples.
            step: The training step, a scalar.
            key: A random key.
            batch: Number of the (micro)batch, counted from the first step on; `step` where a step has one batch.
            memory: What the objective remembers, this step's batch included; None for one that remembers nothing.
        """
        number = step if batch is None else batch
        if self.slices == 1:
            t, r = self.draw(key, len(examples.x), positions(examples.x), number)
        else:
            which = step % self.slices, self.slices
            t, r = self.times.draw_slice(self.transport, key, len(examples.x), positions(examples.x), number, which)
        # Times are drawn by the key itself, whose counter a batch never brings this far.
        examples = refreshed(self.refresh, examples, step, jax.random.fold_in(key, jnp.uint32(2**32 - 2)))
        loss, metrics = self.loss(nets, examples, t, r, step, jax.random.fold_in(key, jnp.uint32(2**32 - 1)))
        return add_terms(self, nets, examples, step, jax.random.fold_in(key, jnp.uint32(2**32 - 3)), loss, metrics)

    def auxiliary_loss(self, nets: Mapping[str, Net], examples: Examples, step: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the losses (B,) of auxiliary networks alone, where a step makes several updates of them."""
        return auxiliary_loss(self, nets, examples, step, key)

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (t, r), each (count,), for the examples of `positions` = height × width in a batch of this number."""
        return self.times.draw(self.transport, key, count, positions, batch)

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the losses of examples at given times.

        Args:
            nets: The networks by name.
            examples: A batch of B examples.
            t, r: The times (B,); the examples with r = t must include those of `times.assign`.
            step: The training step, a scalar.
            key: A random key for the latent variable, split points and guidance scales, where there are any.

        Returns:
            The losses (B,), and metrics by name, each (B,).
        """
        split_key, guidance_key = (None, None) if key is None else jax.random.split(key)
        if self.transport.gamma:
            assert key is not None, "the latent variable is drawn with a key"
            examples = with_latent(self.transport, examples, t, key)
        if self.velocity == "teacher":
            examples = self.distilled(nets, examples, t)
        x_t = interpolate(self.transport, examples.x, examples.noise, t)
        base = prediction.target(self.transport, examples.x, examples.noise, t)
        if self.input_guidance.active:
            assert guidance_key is not None, "guidance scales are drawn with a key"
            whole = (r == t) & (self.times.share_equal < 1)
            examples = self.input_guidance.add_inputs(self.transport, examples, guidance_key, whole)
            head = self.velocity == "head"
            base, known = self.input_guidance(nets["online"], self.transport, x_t, t, examples, base, head)
            examples = examples._replace(known=known)
        if self.guidance.active:
            base = self.guidance(nets[self.guidance.ema], self.transport, x_t, t, examples, base, step)

        split = self.split(len(t))
        groups = [split.take(Group(examples, t, r, base), group) for group in split.groups]
        predictions = self.predict(nets, groups, bool(split.remaining), step, split_key)
        return weighted(self, split, groups, predictions, examples, t, r, step)

    def split(self, count: int) -> Split:
        """Returns the split of a batch of `count` examples; those selected always have r = t."""
        return split_examples(self.times.assign(count)[0], self.shards)

    def distilled(self, nets: Mapping[str, Net], examples: Examples, t: jax.Array) -> Examples:
        """Returns the examples with the teacher's x̂ and ε̂ at x_t for data and noise: the same x_t, its velocity.

        With 'lagrangian' the teacher predicts where a jump with r ≠ t ends. Such examples stay as they are, unless a
        head learns from them.
        """

        def predict(examples: Examples, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_t = interpolate(self.transport, examples.x, examples.noise, t)
            return data_and_noise(self.transport, x_t, self.teacher(nets, self.transport, x_t, t, examples), t)

        split = self.split(len(t))
        if self.consistency != "lagrangian" or self.head_weight or not split.remaining:
            x, noise = predict(examples, t)
        else:
            *diagonal, off_diagonal = [split.take((examples, t), group) for group in split.groups]
            pairs = [predict(*group) for group in diagonal] + [(off_diagonal[0].x, off_diagonal[0].noise)]
            x, noise = (split.merge(parts) for parts in zip(*pairs, strict=True))
        return examples._replace(x=x, noise=noise)

    def adaptive_weight(self, loss: jax.Array, x: jax.Array) -> jax.Array:
        """Returns the adaptive weights (B,) of losses (B,) that are means over the values of an example of x."""
        return self.adaptive(loss, values=x[0].size)

    def predict(
        self,
        nets: Mapping[str, Net],
        groups: Sequence[Group],
        off_diagonal: bool,
        step: jax.Array,
        key: jax.Array | None,
    ) -> list[Prediction]:
        """Returns a prediction for each group.

        Args:
            nets: The networks by name.
            groups: Groups of examples, all but the last with r = t.
            off_diagonal: Whether the last group has examples with r ≠ t.
            step: The training step, a scalar.
            key: A random key for split points, where the objective draws any.
        """
        queries = tuple(
            query(
                self.transport, interpolate(self.transport, examples.x, examples.noise, t), t, r,
                examples.condition, examples.keys,
            )
            for examples, t, r, *_ in groups
        )  # fmt: skip
        last: list[Prediction] = []
        if off_diagonal:
            consistent = CONSISTENCIES[self.consistency]
            outputs, prediction = consistent(self, nets, queries[:-1], groups[-1], step, key)
            last = [prediction]
        else:
            outputs = nets["online"](queries)
        # With r ≠ t in the last group there is one output less than there are groups.
        diagonal = zip(outputs, groups, strict=False)
        return [Prediction(output, group.base, jnp.zeros_like(group.t)) for output, group in diagonal] + last

    def differentiate(
        self, nets: Mapping[str, Net], diagonal: tuple[Query, ...], path: Path
    ) -> tuple[tuple[Output, ...], Output, jax.Array]:
        """Returns the outputs of the `diagonal` queries, the output on the path, and dF/dt (B, …) there."""
        if self.derivative == "jvp":
            return jvp(nets["online"], *path, diagonal=diagonal)
        x_t = interpolate(path.transport, path.x, path.noise, path.t)
        here = query(path.transport, x_t, path.t, path.r, path.condition, path.key)
        *outputs, output = nets["online"]((*diagonal, here))
        return tuple(outputs), output, self.separate_derivative(nets["float32"], path)

    def separate_derivative(self, net: Net, path: Path) -> jax.Array:
        """Returns dF/dt (B, …) on the path from passes of its own."""
        return central_difference(net, *path, epsilon=self.epsilon)
