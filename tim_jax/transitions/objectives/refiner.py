"""A velocity refiner (FlowTurbo, arXiv 2409.18128): a small network that corrects a teacher's last prediction.

From a state x_u of data and noise a step of the teacher's leads to x_t, and its prediction there is what is learned:

    x_t = A_{u,t} x_u + B_{u,t} F_T(x_u, u),   F* = F_T(x_t, t),   F = F_T(x_u, u) + G(x_t, t, F_T(x_u, u))

F_T(x_u, u) is an input of the network, condition["prediction"], and added to its output by the network itself.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.jump import data_and_noise, interpolate
from tim_jax.transitions.objective import Objective
from tim_jax.types import Examples


@dataclasses.dataclass(frozen=True)
class VelocityRefiner(Objective):
    """An Objective at states one step of the teacher's after those of the data; see above."""

    max_step: float = 0.12  # of the teacher, uniform from 0, as a share of T_max; velocity_refiner alone has it

    @property
    def prediction_input(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if not 0 < self.max_step <= 1:
            raise ValueError(f"objective.max_step is {self.max_step}; it must lie in (0, 1]")
        if self.velocity != "teacher":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'teacher', whose steps are refined")
        if self.times.share_equal != 1:
            raise ValueError(
                f"times.share_equal is {self.times.share_equal}; it must be 1, as a refiner has r = t alone"
            )
        if self.transport.prediction != "F":
            raise ValueError(
                f"transport.prediction is {self.transport.prediction!r}; it must be 'F' for a refiner, which corrects F"
            )
        if self.input_guidance.active:
            raise ValueError(
                f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1 for a refiner, "
                "whose guidance is teacher.guidance"
            )

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert key is not None, "steps of the teacher are drawn with a key"
        key, step_key = jax.random.split(key)
        length = self.max_step * self.transport.T_max * jax.random.uniform(step_key, t.shape, t.dtype)
        stepped, F = self.after_a_step(nets, examples, t, length)
        distilled = self.distilled(nets, stepped, t)
        given = ({} if c is None else c for c in (examples.condition, examples.null_condition))
        condition, null_condition = ({**c, "prediction": F} for c in given)
        distilled = distilled._replace(condition=condition, null_condition=null_condition)
        # By now data and noise are the teacher's.
        return Objective.loss(dataclasses.replace(self, velocity="data"), nets, distilled, t, r, step, key)

    def after_a_step(
        self, nets: Mapping[str, Net], examples: Examples, t: jax.Array, length: jax.Array
    ) -> tuple[Examples, jax.Array]:
        """Returns examples whose state at t is where a step of the teacher's leads from u, and its prediction there.

        Args:
            nets: The networks by name.
            examples: A batch of B examples.
            t: The times (B,) at which the step ends.
            length: u − t (B,), at least 0, unless that is beyond T_max.
        """
        u = jnp.minimum(t + length, self.transport.T_max)
        x_u = interpolate(self.transport, examples.x, examples.noise, u)
        F = self.teacher(nets, self.transport, x_u, u, examples)
        x, noise = data_and_noise(self.transport, x_u, F, u)
        return examples._replace(x=x, noise=noise), F
