"""The loss of a row, whatever the objective: a few choices on the same axes (see `objectives.py` for the table).

    loss = w(t, r) · a · (mean (F − F*)² + λ_dir mean(1 − cos(F, F*)))
         + λ_head · a' · mean (F_head − base)² + λ_align (1 − cos(h, features))

base: α̂_t x + σ̂_t ε, perhaps guided (`guidance.py`); the target F* where r = t. Elsewhere F* comes from a consistency
(`consistency.py`). w: `TimeWeight`. a: `AdaptiveWeight`, or learned by the network, L → e^{−u} L + u.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.consistency import CONSISTENCIES, Bootstrap, Prediction, row_mean
from tim_jax.transitions.derivative import Net, central_difference, jvp, query
from tim_jax.transitions.groups import Split, split_rows
from tim_jax.transitions.guidance import InputGuidance, TargetGuidance
from tim_jax.transitions.jump import data_and_noise, interpolate, prediction_target
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.times import Times
from tim_jax.transitions.transports import Transport
from tim_jax.transitions.weights import DIRECTION_AXES, AdaptiveWeight, TimeWeight, alignment_error, direction_error
from tim_jax.types import Examples, Output

DERIVATIVES = ("jvp", "dde")
UNUSED = {
    ("objective.consistency",): ("times.share_equal is 1", lambda c: c.times.share_equal == 1),
    ("objective.velocity",): (
        "dF/dt is not used (times.share_equal is 1 or objective.consistency not 'eulerian')",
        lambda c: (  # examples with r = t still learn from data or teacher
            c.objective.velocity not in ("data", "teacher")
            and (c.times.share_equal == 1 or c.objective.consistency != "eulerian")
        ),
    ),
    ("objective.derivative",): (
        "no derivative is used (times.share_equal is 1 or objective.consistency 'semigroup')",
        lambda c: c.times.share_equal == 1 or c.objective.consistency == "semigroup",
    ),
    ("objective.epsilon",): ("objective.derivative is not 'dde'", lambda c: c.objective.derivative != "dde"),
    ("objective.direction_weight",): ("objective.direction is 'none'", lambda c: c.objective.direction == "none"),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """objective(nets, rows, step, key) → (loss per row (B,), metrics).

    consistency: a name in CONSISTENCIES; without rows r ≠ t (`times.share_equal` 1) it is flow matching.
    velocity: along which dx_t/dt the derivative is taken: 'data', that of the row's own (x, ε); 'target', that of the
    base target, guidance included; 'head', what the network's velocity head predicts; or the name of a network, whose
    prediction at r = t stands for their conditional mean. The target's mean is the same; its variance is lower, since
    a row's own velocity is noise to the network's Jacobian. The last two cost a forward pass of the moving rows. Or
    'teacher': x̂ and ε̂ of nets["teacher"] at x_t take the place of all rows' (x, ε), in the base target as well, whose
    guidance is included as by 'target'.
    derivative: 'jvp' (exact) or 'dde' (central difference with `epsilon`). tangent: what becomes of it.
    bootstrap: for 'semigroup'. direction: a name in DIRECTION_AXES, with `direction_weight`. head_weight: of a second
    prediction of the base target by the network's velocity head, 0 for none. alignment_weight: 0 for none.
    teacher: how it is asked. shards: over how many devices the rows lie.
    nets holds "online", for 'dde' also "float32" (the same weights without gradient, in float32), averages by the
    names that are used, and what `learns_from` and `parts` name.
    """

    transport: Transport
    times: Times
    # of examples with r ≠ t: eulerian (dF/dt), lagrangian (∂F/∂r and a teacher), semigroup (two jumps)
    consistency: str = "eulerian"
    # "teacher": its velocity takes that of the data's place, in all examples. Otherwise that along which base' and
    # dF/dt are taken: "data", "target", "head", "online" or the name of an EMA.
    velocity: str = "data"
    # eulerian and lagrangian
    derivative: str = "jvp"  # dF/dt: "jvp" (exact) or "dde" (central difference)
    epsilon: float = 0.005  # half step of "dde", in units of t
    tangent: Tangent = Tangent()
    # semigroup
    bootstrap: Bootstrap = Bootstrap()
    # weights
    weight: TimeWeight = TimeWeight()
    adaptive: AdaptiveWeight = AdaptiveWeight()
    learned_weight: bool = False  # e^{−u(t)} L + u(t), u learned
    # further terms
    direction: str = "channels"  # axis of the cosine term: none, channels, image (all axes)
    direction_weight: float = 1.0
    head_weight: float = 0.0  # of a second prediction of v by a head of its own; 0: none
    alignment_weight: float = 0.0  # of the cosine to image features of a pretrained encoder; 0: none
    # guided targets
    guidance: TargetGuidance = TargetGuidance()
    input_guidance: InputGuidance = InputGuidance()
    teacher: Teacher = Teacher()
    shards: int = 1
    name: str = ""  # a name in tim_jax.transitions.objectives.OBJECTIVES

    @property
    def heads(self) -> tuple[str, ...]:
        """What the network must tell besides F."""
        velocity = self.head_weight > 0 or self.velocity == "head"
        return ("velocity",) * velocity + ("log_variance",) * self.learned_weight

    @property
    def learns_from(self) -> tuple[str, ...]:
        """The frozen networks that it asks."""
        return self.teacher.names if self.velocity == "teacher" or self._follows else ()

    @property
    def _follows(self) -> bool:
        """Whether the targets of rows with r ≠ t come from the teacher's own way."""
        solved = self.consistency == "semigroup" and self.bootstrap.solver_steps > 0
        return self.times.share_equal < 1 and (solved or self.consistency == "lagrangian")

    @property
    def parts(self) -> tuple[str, ...]:
        """Networks of the student's kind that are trained beside it, each in nets under its name."""
        return ()

    @property
    def row_group(self) -> int:
        """Rows of a batch come in multiples of this."""
        return 1

    @property
    def sampler(self) -> str:
        """How a model that was trained like this is meant to be sampled, a name in SAMPLERS."""
        if self.times.share_equal == 1:
            return "euler"
        return "consistency" if self.times.share_min == 1 else "flow_map"

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for part in (self.times, self.weight, self.guidance):
            part.check(self.transport)
        for part in (self.adaptive, self.tangent, self.bootstrap, self.input_guidance, self.teacher):
            part.check()
        for name, known in (
            ("consistency", CONSISTENCIES), ("derivative", DERIVATIVES), ("direction", DIRECTION_AXES)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("direction_weight", "head_weight", "alignment_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")
        domain = self.transport.T_max - self.transport.T_min
        if not 0 < self.epsilon < domain / 2:
            raise ValueError(f"objective.epsilon is {self.epsilon}; it must lie in (0, {domain / 2:g})")
        if self.tangent.differentiate_steps and self.derivative != "jvp":
            raise ValueError(
                f"objective.derivative is {self.derivative!r}; it must be 'jvp' where the tangent is differentiated"
            )
        if self.consistency == "lagrangian" and self.derivative != "jvp":
            raise ValueError(f"objective.derivative is {self.derivative!r}; it must be 'jvp' for 'lagrangian'")
        if self.guidance.active and self.input_guidance.active:
            raise ValueError(
                f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1 with target "
                "guidance (objective.guidance)"
            )
        if self._follows and (self.guidance.active or self.input_guidance.active):
            given = f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1"
            if self.guidance.active:
                given = "objective.guidance.w_gt, objective.guidance.w_cond are "
                given += f"{self.guidance.w_gt}, {self.guidance.w_cond}; they must be 1, 0"
            raise ValueError(f"{given} where jumps follow a teacher, whose guidance is teacher.guidance")

    def __call__(
        self, nets: Mapping[str, Net], rows: Examples, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch, height, width = rows.x.shape[:3]
        t, r = self.draw(key, batch, height * width)
        # Times are drawn by the key itself, whose counter a batch never brings this far.
        return self.loss(nets, rows, t, r, step, jax.random.fold_in(key, jnp.uint32(2**32 - 1)))

    def draw(self, key: jax.Array, rows: int, positions: int) -> tuple[jax.Array, jax.Array]:
        """(t, r), each (rows,), for rows of `positions` height × width."""
        return self.times.draw(self.transport, key, rows, positions)

    def loss(
        self,
        nets: Mapping[str, Net],
        rows: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss per row and metrics at given times t, r (B,), whose rows with r = t are those of `times.assign`.

        key: for split points and guidance scales, where the objective has any.
        """
        split_key, guidance_key = (None, None) if key is None else jax.random.split(key)
        if self.velocity == "teacher":
            rows = self.taught(nets, rows, t)
        x_t = interpolate(self.transport, rows.x, rows.noise, t)
        base = prediction_target(self.transport, rows.x, rows.noise, t)
        if self.input_guidance.active:
            rows = self.input_guidance.ask(self.transport, rows, guidance_key)
            base = self.input_guidance(nets["online"], self.transport, x_t, t, rows, base)
        if self.guidance.active:
            base = self.guidance(nets[self.guidance.ema], self.transport, x_t, t, rows, base, step)

        split = self.split(len(t))
        groups = [split.take((rows, t, r, base), group) for group in split.groups]
        predictions = self.predict(nets, groups, bool(split.moving), step, split_key)
        terms = [self.terms(*group, *prediction) for group, prediction in zip(groups, predictions, strict=True)]
        error, direction, head, log_variance, alignment, tangent = split.merge(terms).T

        denoising = error + self.direction_weight * direction
        loss = self.weight(self.transport, t, r) * self.weigh(denoising, rows.x) * denoising
        if self.learned_weight:
            loss = jnp.exp(-log_variance) * loss + log_variance
        loss = loss + self.head_weight * self.weigh(head, rows.x) * head + self.alignment_weight * alignment
        metrics = dict(error=error, denoising=denoising, alignment=alignment, tangent=tangent, t=t, r=r)
        return loss, metrics | dict(level_t=self.transport.level(t), level_r=self.transport.level(r))

    def split(self, rows: int) -> Split:
        """The rows with r = t and the others."""
        return split_rows(self.times.assign(rows)[0], self.shards)

    def taught(self, nets: Mapping[str, Net], rows: Examples, t: jax.Array) -> Examples:
        """The rows with the teacher's x̂ and ε̂ at x_t for data and noise: the same x_t, the teacher's velocity.

        'lagrangian' asks where a jump with r ≠ t ends, and leaves those rows as they are unless a head learns from
        them.
        """

        def ask(rows, t):
            x_t = interpolate(self.transport, rows.x, rows.noise, t)
            return data_and_noise(self.transport, x_t, self.teacher(nets, self.transport, x_t, t, rows), t)

        split = self.split(len(t))
        if self.consistency != "lagrangian" or self.head_weight or not split.moving:
            x, noise = ask(rows, t)
        else:
            own = [split.take((rows, t), group) for group in split.groups]
            parts = [ask(*group) for group in own[:-1]] + [(own[-1][0].x, own[-1][0].noise)]
            x, noise = (split.merge(list(part)) for part in zip(*parts, strict=True))
        return rows._replace(x=x, noise=noise)

    def weigh(self, loss: jax.Array, x: jax.Array) -> jax.Array:
        """The adaptive weight of losses (B,) that are means over the values of a row of x."""
        return self.adaptive(loss, values=x[0].size)

    def predict(
        self, nets: Mapping[str, Net], groups: list, moving: bool, step: jax.Array, key: jax.Array | None
    ) -> list[Prediction]:
        """Each group's output, target and size of dF/dt. moving: whether the last group has rows with r ≠ t."""
        queries = tuple(
            query(self.transport, interpolate(self.transport, rows.x, rows.noise, t), t, r, rows.condition, rows.keys)
            for rows, t, r, _ in groups
        )
        if moving:
            consistent = CONSISTENCIES[self.consistency]
            outputs, last = consistent(self, nets, queries[:-1], groups[-1], step, key)
        else:
            outputs, last = nets["online"](queries), None
        plain = [Prediction(output, group[3], jnp.zeros_like(group[1])) for output, group in zip(outputs, groups)]
        return plain + [last] * moving

    def differentiate(self, nets: Mapping[str, Net], plain: tuple, path: tuple) -> tuple[tuple, Output, jax.Array]:
        """Outputs of the plain queries, of the rows on `path`, the arguments of `derivative.jvp`, and their dF/dt."""
        if self.derivative == "jvp":
            return jvp(nets["online"], *path, plain=plain)
        transport, x, noise, t, r, condition, keys = path
        x_t = interpolate(transport, x, noise, t)
        *outputs, output = nets["online"]((*plain, query(transport, x_t, t, r, condition, keys)))
        return tuple(outputs), output, self.apart(nets["float32"], path)

    def apart(self, net: Net, path: tuple) -> jax.Array:
        """dF/dt from passes of its own."""
        return central_difference(net, *path, epsilon=self.epsilon)

    def terms(
        self,
        rows: Examples,
        t: jax.Array,
        r: jax.Array,
        base: jax.Array,
        output: Output,
        target: jax.Array,
        tangent: jax.Array,
    ) -> jax.Array:
        """(B, 6): errors of F, its direction and the velocity head, log variance, alignment error, size of dF/dt."""
        if not self.tangent.differentiate_steps:
            target = jax.lax.stop_gradient(target)
        error = row_mean((output.F - target) ** 2)
        direction = head = log_variance = alignment = jnp.zeros_like(error)
        if DIRECTION_AXES[self.direction] is not None:
            direction = direction_error(output.F, target, DIRECTION_AXES[self.direction])
        if self.head_weight:
            head = row_mean((output.heads["velocity"] - jax.lax.stop_gradient(base)) ** 2)
        if self.learned_weight:
            log_variance = output.heads["log_variance"]
        if self.alignment_weight:
            alignment = alignment_error(output.hidden, rows.features, rows.features_mask)
        return jnp.stack([error, direction, head, log_variance, alignment, tangent], axis=1)
